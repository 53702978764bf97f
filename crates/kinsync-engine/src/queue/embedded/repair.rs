//! Replaces a damaged file by what can be read of it. The damaged one is kept in `damaged/`.
//!
//! A kill at any moment loses nothing: the new file is complete before the old one is moved, and
//! [`complete`] finishes what a killed process began.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use kinsync_core::Micros;
use rusqlite::{Connection, OptionalExtension as _, params_from_iter, types::Value};

use super::file::{self, Failure, NAME, OpenError, make_dir, sync_dir, unavailable};
use crate::queue::Error;

/// The new file, complete.
const REPAIRED: &str = "repaired.sqlite";
/// The new file while it is written.
const UNFINISHED: &str = "repair.tmp";
/// Damaged files that are kept.
const KEPT: usize = 3;
/// Tables and their keys.
const TABLES: [(&str, &str); 3] = [("entries", "id"), ("dead_letters", "id"), ("seen", "first")];

/// The path of a file of `SQLite` beside another, such as `-wal`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Replaces the file in the folder. No connection to it may be open.
pub(super) fn replace(dir: &Path, now: Micros) -> Result<(), Error> {
    let (old, new) = (dir.join(NAME), dir.join(UNFINISHED));
    let failed = |source: io::Error| unavailable(dir, source);
    discard(&new);
    let copied = copy_file(&old, &new).map_err(|refusal| refusal.at(&new))?;
    metrics::counter!("kinsync_queue_damaged_records_total").increment(copied.lost.max(1));
    tracing::error!(
        file = %old.display(), kept = copied.rows, lost = copied.lost,
        "the queue's file is damaged: what can be read was copied to a new file, the damaged one is in `damaged`; \
         check the disk; the next scan repairs what was lost"
    );
    fs::rename(&new, dir.join(REPAIRED)).and_then(|()| sync_dir(dir)).map_err(failed)?;
    complete(dir, now)
}

/// Puts a complete new file in the place of the damaged one.
pub(super) fn complete(dir: &Path, now: Micros) -> Result<(), Error> {
    discard(&dir.join(UNFINISHED));
    let repaired = dir.join(REPAIRED);
    if !repaired.exists() {
        return Ok(());
    }
    let path = dir.join(NAME);
    let moved = aside(dir, now).and_then(|aside| {
        for suffix in ["-wal", ""] {
            match fs::rename(beside(&path, suffix), aside.join(format!("{NAME}{suffix}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let _ = fs::remove_file(beside(&path, "-shm"));
        fs::rename(&repaired, &path)?;
        sync_dir(&aside)?;
        sync_dir(dir)
    });
    moved.map_err(|source| unavailable(dir, source))
}

/// A new folder for damaged files. Old ones are deleted.
pub(super) fn aside(dir: &Path, now: Micros) -> io::Result<PathBuf> {
    let damaged = dir.join("damaged");
    let aside = damaged.join(format!("{:020}", now.0));
    make_dir(&aside)?;
    let mut kept: Vec<PathBuf> =
        fs::read_dir(&damaged)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    kept.sort();
    for old in kept.iter().take(kept.len().saturating_sub(KEPT)) {
        let _ = fs::remove_dir_all(old);
    }
    Ok(aside)
}

fn discard(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(beside(path, suffix));
    }
}

#[derive(Default)]
struct Copied {
    rows: u64,
    /// Rows that could not be read, at most: in a gap some had been deleted before.
    lost: u64,
}

fn copy_file(old: &Path, new: &Path) -> Result<Copied, OpenError> {
    let new = file::connect(new)?;
    let mut copied = Copied::default();
    new.execute_batch("BEGIN IMMEDIATE")?;
    // A file with a damaged first page cannot be opened at all.
    if let Ok(old) = file::read_only(old).or_else(|_| file::read_only(old)) {
        for (table, key) in TABLES {
            copy_table(&old, &new, table, key, &mut copied)?;
        }
    }
    new.execute_batch("COMMIT")?;
    new.close().map_err(|(_, error)| error)?;
    Ok(copied)
}

fn copy_table(
    old: &Connection,
    new: &Connection,
    table: &str,
    key: &str,
    copied: &mut Copied,
) -> Result<(), Failure> {
    let next = format!("SELECT {key} FROM {table} WHERE {key} > ?1 ORDER BY {key} LIMIT 1");
    let next = |after: i64| -> rusqlite::Result<Option<i64>> {
        old.prepare_cached(&next)?.query_row([after], |row| row.get(0)).optional()
    };
    let mut after = 0;
    loop {
        match next(after) {
            Ok(None) => return Ok(()),
            Ok(Some(id)) => {
                let row = read_row(old, table, key, id);
                match row.and_then(|values| insert_row(new, table, values).transpose()) {
                    Some(inserted) => {
                        inserted?;
                        copied.rows += 1;
                    }
                    None => copied.lost += 1,
                }
                after = id;
            }
            Err(_) => {
                let Some(end) = behind_gap(&next, after) else {
                    copied.lost += 1;
                    return Ok(());
                };
                copied.lost += end.abs_diff(after);
                after = end;
            }
        }
    }
}

/// All values of a row; `None` if it cannot be read.
fn read_row(old: &Connection, table: &str, key: &str, id: i64) -> Option<Vec<Value>> {
    let select = format!("SELECT * FROM {table} WHERE {key} = ?1");
    let mut select = old.prepare_cached(&select).ok()?;
    let columns = select.column_count();
    select.query_row([id], |row| (0..columns).map(|column| row.get(column)).collect()).ok()
}

/// `None` if the values do not fit, which damage can cause.
fn insert_row(new: &Connection, table: &str, values: Vec<Value>) -> Result<Option<()>, Failure> {
    let places = vec!["?"; values.len()].join(", ");
    let insert = format!("INSERT INTO {table} VALUES ({places})");
    match new.prepare_cached(&insert)?.execute(params_from_iter(values)) {
        Ok(_) => Ok(Some(())),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where rows can be read again: the key before the first readable one after `after`.
fn behind_gap(next: &dyn Fn(i64) -> rusqlite::Result<Option<i64>>, after: i64) -> Option<i64> {
    let is_readable = |key: i64| next(key).is_ok();
    let mut step = 1;
    while !is_readable(after.checked_add(step)?) {
        step *= 2;
        if step > 1 << 32 {
            return None;
        }
    }
    let (mut bad, mut good) = (after + step / 2, after + step);
    while bad + 1 < good {
        let middle = i64::midpoint(bad, good);
        if is_readable(middle) { good = middle } else { bad = middle }
    }
    Some(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_damaged_files_are_kept() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folders: Vec<PathBuf> =
            (0..9).map(|now| aside(dir.path(), Micros(now)).expect("it can be written")).collect();
        let kept: Vec<&PathBuf> = folders.iter().filter(|folder| folder.exists()).collect();
        assert_eq!(kept, folders[9 - KEPT..].iter().collect::<Vec<_>>());
    }
}
