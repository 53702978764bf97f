//! Memory and file descriptors of the process, from `/proc`, under the names that Prometheus clients use.

use metrics::gauge;

/// Sets the gauges. Without `/proc` they stay absent.
pub(super) fn export() {
    if let Some(kibibytes) = resident_kibibytes() {
        gauge!("process_resident_memory_bytes").set(f64::from(kibibytes) * 1024.0);
    }
    if let Some(open) = open_descriptors() {
        gauge!("process_open_fds").set(f64::from(open));
    }
}

fn resident_kibibytes() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Without the one that the count itself needs.
fn open_descriptors() -> Option<u32> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    u32::try_from(count.saturating_sub(1)).ok()
}
