//! Damaged bytes are kept aside for a person, and reported once.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use super::disk::{Disk, DiskFile};

const COPIED_AT_ONCE: u64 = 1 << 20;

/// Copies the damaged range of the file into `damaged/` beside it, counts it and raises an alarm;
/// a range that is there already was reported before. Answers whether the bytes are kept.
pub(super) fn set_aside(disk: &dyn Disk, path: &Path, file: &mut dyn DiskFile, range: &Range<u64>) -> bool {
    let copy = copy_path(path, range);
    if disk.exists(&copy) {
        return true;
    }
    metrics::counter!("kinsync_queue_damaged_records_total").increment(1);
    tracing::error!(
        file = %path.display(), from = range.start, to = range.end, copy = %copy.display(),
        "part of the queue is damaged and was left out: check the disk; the next reconcile repairs what it said"
    );
    match copy_range(disk, &copy, file, range) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, copy = %copy.display(), "the damaged part could not be copied");
            let _ = disk.remove(&copy);
            false
        }
    }
}

fn copy_path(path: &Path, range: &Range<u64>) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = format!("{stem}-{:020}-{}.bin", range.start, range.end - range.start);
    path.with_file_name("damaged").join(name)
}

fn copy_range(disk: &dyn Disk, to: &Path, file: &mut dyn DiskFile, range: &Range<u64>) -> io::Result<()> {
    let dir = to.parent().unwrap_or(Path::new(""));
    disk.make_dir(dir)?;
    let mut copy = disk.create(to)?;
    let mut at = range.start;
    while at < range.end {
        let len = COPIED_AT_ONCE.min(range.end - at);
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        let count = file.read(at, &mut bytes)?;
        copy.write(at - range.start, &bytes[..count])?;
        at += len;
    }
    copy.sync()?;
    disk.sync_dir(dir)
}
