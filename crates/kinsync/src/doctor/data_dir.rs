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

/// Creates a file in the folder if it exists. Returns the file and the finding.
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
            let above = existing(dir);
            let writable = above.as_deref().is_some_and(is_writable);
            return if writable {
                Ok((
                    None,
                    Finding::ok(ACCESS, format!("{name} does not exist yet; `kinsync serve` creates it")),
                ))
            } else {
                Err(failed(format!("{name} does not exist and cannot be created")))
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
    let inner = error.get_ref().and_then(|inner| inner.source()?.downcast_ref::<io::Error>());
    let code = error.raw_os_error().or_else(|| inner?.raw_os_error());
    code.map_or_else(|| error.to_string(), |code| io::Error::from_raw_os_error(code).to_string())
}

/// The folder itself, or its nearest existing parent.
fn existing(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    absolute.ancestors().find(|path| path.is_dir()).map(Path::to_owned)
}

#[cfg(unix)]
fn is_writable(dir: &Path) -> bool {
    use rustix::fs::Access;
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

#[cfg(not(unix))]
fn is_writable(dir: &Path) -> bool {
    fs::metadata(dir).is_ok_and(|found| !found.permissions().readonly())
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
    let Some(free) = existing(dir).as_deref().and_then(free_bytes) else {
        return Finding::skipped(SPACE, "the system does not report it", "check it with `df`");
    };
    let found = format!("{} free", size(free));
    let more = "free or add disk space for the data folder, or set KINSYNC_DATA_DIR to a larger disk";
    if free < LEAST_FREE {
        return Finding::failed(
            SPACE,
            format!("{found}: deliveries are answered 503 when the disk is full"),
            more,
        );
    }
    let left = max_bytes.saturating_sub(used(&dir.join("queue")));
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
    let found = rustix::fs::statvfs(dir).ok()?;
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
