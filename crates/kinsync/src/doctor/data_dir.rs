//! The data folder: access, free space, the duration of a sync, and dead letters.
//!
//! No lock is taken and no file of the queue is changed, because a server may use the folder.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use kinsync_engine::internal::queue::{self, embedded};
use kinsync_tower::problem::chain;
use tokio::time::Instant;

use super::Finding;
use crate::{app::data_dir, config::Config, plural::counted};

const ACCESS: &str = "data_dir.access";
const SPACE: &str = "data_dir.space";
const FSYNC: &str = "data_dir.fsync";
const DEAD_LETTERS: &str = "queue.dead_letters";

pub(super) const IDS: [&str; 4] = [ACCESS, SPACE, FSYNC, DEAD_LETTERS];

/// Below this a further file of the queue does not fit.
const LEAST_FREE: u64 = 64 << 20;
/// Every delivery waits for one sync.
const SLOW_SYNC: Duration = Duration::from_millis(50);
const SYNCS: usize = 15;
/// No further sync starts after this time.
const SYNC_BUDGET: Duration = Duration::from_secs(3);
/// About the size of a delivery.
const BLOCK: [u8; 4096] = [0; 4096];

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let (dir, max_bytes) = (config.data_dir.clone(), config.queue.max_bytes);
    let looked = tokio::task::spawn_blocking(move || look(&dir, max_bytes)).await;
    looked.unwrap_or_else(|_| {
        IDS.iter().map(|id| Finding::failed(id, "the check ended early", REPORT)).collect()
    })
}

const REPORT: &str = "this is a bug in kinsync: report it";

fn look(dir: &Path, max_bytes: u64) -> Vec<Finding> {
    let access = access(dir);
    let fsync = match &access {
        Ok((Some(file), _)) => fsync(file.as_file()),
        Ok((None, _)) => Finding::skipped(
            FSYNC,
            "the folder does not exist yet",
            "start `kinsync serve`, which creates it",
        ),
        Err(_) => Finding::needs(FSYNC, ACCESS),
    };
    let access = access.map_or_else(|finding| finding, |(_, finding)| finding);
    vec![access, space(dir, max_bytes), fsync, dead_letters(dir)]
}

/// Creates a file in the folder if it exists, else a folder where it would be created. Returns the file and the finding.
fn access(dir: &Path) -> Result<(Option<tempfile::NamedTempFile>, Finding), Finding> {
    let name = dir.display();
    let fix = format!(
        "make it a folder that this user can write (`install -d -m 700 {name}`), or set KINSYNC_DATA_DIR"
    );
    let failed = |found: String| Finding::failed(ACCESS, found, fix.clone());
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => return Err(failed(format!("{name} is not a folder"))),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = existing(dir).ok_or_else(|| "its path is not valid".to_owned());
            return match above.and_then(|above| try_folder(&above)) {
                Ok(()) => Ok((
                    None,
                    Finding::ok(ACCESS, format!("{name} does not exist yet; `kinsync serve` creates it")),
                )),
                Err(why) => Err(failed(format!("{name} does not exist and cannot be created: {why}"))),
            };
        }
        Err(error) => return Err(failed(format!("{name} cannot be read: {error}"))),
    }
    let file = tempfile::Builder::new().prefix(".doctor-").tempfile_in(dir);
    let file = file.map_err(|error| failed(format!("{name} cannot be written: {}", reason(&error))))?;
    if let Err(error) = data_dir::check(dir) {
        let text = error.to_string();
        let (found, fix) = text.split_once(": ").unwrap_or((&text, &fix));
        return Err(Finding::failed(ACCESS, found, fix));
    }
    let finding = if is_open_to_group(dir) {
        Finding::warning(
            ACCESS,
            format!("the group can write to {name}, which holds personal data of your users"),
            format!("run `chmod 700 {name}`"),
        )
    } else {
        Finding::ok(ACCESS, name.to_string())
    };
    Ok((Some(file), finding))
}

/// The reason without the path, which the message has already.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" at path ").map_or(text.as_str(), |(reason, _)| reason).to_owned()
}

/// The folder itself, or its nearest existing parent.
fn existing(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    absolute.ancestors().find(|path| path.is_dir()).map(Path::to_owned)
}

/// Creates a folder in this one and removes it. Permissions alone do not show whether it can be done: /proc grants them
/// and refuses every folder.
fn try_folder(above: &Path) -> Result<(), String> {
    let made =
        tempfile::Builder::new().prefix(".doctor-").tempdir_in(above).and_then(tempfile::TempDir::close);
    made.map_err(|error| format!("no folder can be created in {}: {}", above.display(), reason(&error)))
}

#[cfg(unix)]
fn is_open_to_group(dir: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & 0o020 != 0)
}

#[cfg(not(unix))]
fn is_open_to_group(_dir: &Path) -> bool {
    false
}

fn space(dir: &Path, max_bytes: u64) -> Finding {
    match existing(dir).as_deref().and_then(free_bytes) {
        Some(free) => space_left(free, max_bytes.saturating_sub(used(&dir.join("queue")))),
        None => Finding::skipped(SPACE, "the system does not report it", "check it with `df`"),
    }
}

/// Compares the free bytes with those that the queue may still use.
fn space_left(free: u64, left: u64) -> Finding {
    let found = format!("{} free", size(free));
    let more = "free or add disk space for the data folder, or set KINSYNC_DATA_DIR to a larger disk";
    if free < LEAST_FREE {
        return Finding::failed(
            SPACE,
            format!("{found}: deliveries are answered 503 when the disk is full"),
            more,
        );
    }
    if free < left {
        return Finding::warning(
            SPACE,
            format!("{found}, less than the {} that the queue may still use", size(left)),
            format!("{more}, or lower KINSYNC_QUEUE_MAX_BYTES"),
        );
    }
    Finding::ok(SPACE, found)
}

#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    // A file system without a disk, such as /proc, has no blocks at all.
    let found = rustix::fs::statvfs(dir).ok().filter(|found| found.f_blocks > 0)?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
}

fn used(queue: &Path) -> u64 {
    let files = fs::read_dir(queue).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

fn size(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit);
    unit.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{} {name}", bytes / unit))
}

fn fsync(file: &File) -> Finding {
    let mut times = match measure(file) {
        Ok(times) => times,
        Err(error) => {
            let fix = "check the disk of the data folder: no delivery can be stored durably on it";
            return Finding::failed(FSYNC, format!("a file cannot be synced: {}", reason(&error)), fix);
        }
    };
    times.sort_unstable();
    let median = times[times.len() / 2];
    let found = format!("{:.1} ms, the median of {}", median.as_secs_f64() * 1e3, times.len());
    if median > SLOW_SYNC {
        let fix = "set KINSYNC_DATA_DIR to a folder on a local SSD: each delivery is answered after one sync";
        return Finding::warning(FSYNC, found, fix);
    }
    Finding::ok(FSYNC, found)
}

/// Measures at least one sync, done as the queue does it.
fn measure(mut file: &File) -> io::Result<Vec<Duration>> {
    let began = Instant::now();
    let mut times = Vec::with_capacity(SYNCS);
    while times.is_empty() || (times.len() < SYNCS && began.elapsed() < SYNC_BUDGET) {
        file.write_all(&BLOCK)?;
        let started = Instant::now();
        file.sync_data()?;
        times.push(started.elapsed());
    }
    Ok(times)
}

fn dead_letters(dir: &Path) -> Finding {
    match embedded::inspect(dir).map(|stats| stats.dead_letters) {
        Ok(0) => Finding::ok(DEAD_LETTERS, "none"),
        Ok(count) => Finding::warning(
            DEAD_LETTERS,
            format!("{} that could not be processed", counted(count, "delivery", "deliveries")),
            "read the reasons with `kinsync dead-letters list`, then `retry` or `drop` them",
        ),
        Err(error @ queue::Error::Refused { .. }) => {
            Finding::failed(DEAD_LETTERS, chain(&error), "run the version of kinsync that wrote the queue")
        }
        Err(error) => {
            Finding::skipped(DEAD_LETTERS, chain(&error), "run this as the user that runs the server")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_full_disk_fails_and_less_than_the_queue_may_use_is_a_warning() {
        let check = |free, left, status, text: &str| {
            let finding = space_left(free, left);
            assert_eq!(finding.status, status, "{finding:?}");
            assert!(finding.found.contains(text), "{finding:?}");
        };
        check(0, 1 << 30, Status::Failed, "0 B free: deliveries are answered 503");
        check(512 << 20, 1 << 30, Status::Warning, "512 MiB free, less than the 1 GiB");
        check(2 << 30, 1 << 30, Status::Ok, "2 GiB free");
    }
}
