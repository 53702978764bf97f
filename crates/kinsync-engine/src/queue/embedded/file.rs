//! The file: its lock, schema, version and settings.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, ffi};

use super::{
    dead_letters, repair, rows,
    state::Totals,
    wal,
    window::{self, Fingerprint, Window},
};
use crate::{
    clock::Clock,
    queue::{Error, Source},
};

pub(super) const NAME: &str = "queue.sqlite";
/// Marks the file as a queue of kinsync: "kinq".
const APPLICATION: i64 = 0x6b69_6e71;
/// Version of the format. A file of any other version is refused. A new verification scheme raises it.
const VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE entries (
    id          INTEGER PRIMARY KEY,
    event_id    TEXT NOT NULL,
    -- The verification scheme of a delivery; `login` for a sighting.
    scheme      TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    signed_at   INTEGER,
    payload     BLOB NOT NULL,
    checksum    INTEGER NOT NULL
) STRICT;
CREATE TABLE dead_letters (
    id          INTEGER PRIMARY KEY,
    event_id    TEXT NOT NULL,
    scheme      TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    signed_at   INTEGER,
    dead_at     INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    -- NULL once it was removed to keep the bound.
    payload     BLOB
) STRICT;
-- Hashes of recent event ids, 16 bytes each: those of the entries `first`, `first + 1`, and so on.
CREATE TABLE seen (
    first  INTEGER PRIMARY KEY,
    hashes BLOB NOT NULL
) STRICT;
";

/// Pages in the write-ahead log at which `SQLite` moves them into the file: 8 MiB.
pub(super) const WAL_PAGES: u32 = 2048;
pub(super) const PAGE: u32 = 4096;
/// How long to wait for a program that reads the file.
const BUSY: Duration = Duration::from_secs(5);

/// A failed call to `SQLite`.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Failure(#[from] rusqlite::Error);

impl Failure {
    fn code(&self) -> Option<ErrorCode> {
        self.0.sqlite_error_code()
    }

    fn extended_code(&self) -> Option<i32> {
        self.0.sqlite_error().map(|error| error.extended_code)
    }

    /// Part of the file cannot be read, or is not what was written.
    pub(super) fn is_damage(&self) -> bool {
        // A value of another type, or a statement that does not fit the schema: the statements are fixed.
        let is_unexpected = matches!(
            self.0,
            rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::SqlInputError { .. }
        );
        is_unexpected
            || matches!(self.code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            || matches!(
                self.extended_code(),
                Some(ffi::SQLITE_IOERR_READ | ffi::SQLITE_IOERR_SHORT_READ | ffi::SQLITE_IOERR_CORRUPTFS)
            )
    }

    pub(super) fn is_full(&self) -> bool {
        self.code() == Some(ErrorCode::DiskFull) || self.extended_code() == Some(ffi::SQLITE_IOERR_SHMSIZE)
    }

    pub(super) fn at(self, path: &Path) -> Error {
        unavailable(path, self.0)
    }
}

pub(super) fn unavailable(path: &Path, source: impl Into<Source>) -> Error {
    let hint = format!("`{}` cannot be read or written; free space or repair the disk", path.display());
    Error::Unavailable { hint, source: source.into() }
}

/// The file, open for its one writer.
#[derive(Debug)]
pub(super) struct QueueFile {
    dir: PathBuf,
    path: PathBuf,
    sqlite: Connection,
    /// False while the connection is closed because the file could not be opened again.
    is_attached: bool,
    /// Whether commits are synced to the disk.
    is_durable: bool,
    /// Whether everything that an earlier process wrote was synced.
    is_synced: bool,
    /// Other processes are kept out while this is open.
    _lock: File,
}

impl QueueFile {
    /// Opens or creates the file. A damaged one is repaired first.
    pub(super) fn open(dir: &Path, clock: &Clock) -> Result<Self, Error> {
        let path = dir.join(NAME);
        make_dir(dir).map_err(|source| unavailable(dir, source))?;
        let lock = lock(dir)?;
        repair::complete(dir, clock.now())?;
        let is_synced = sync_wal(&path);
        wal::examine(dir, clock.now());
        let opened = connect(&path);
        let sqlite = match opened {
            Err(OpenError::Failed(failure)) if failure.is_damage() => {
                repair::replace(dir, clock.now())?;
                connect(&path)
            }
            opened => opened,
        };
        let sqlite = sqlite.map_err(|refusal| refusal.at(&path))?;
        let (dir, is_attached, is_durable) = (dir.to_owned(), true, true);
        let mut file = Self { dir, path, sqlite, is_attached, is_durable, is_synced, _lock: lock };
        let is_damaged = file.probe().map_or_else(|failure| failure.is_damage(), |is_right| !is_right);
        if is_damaged {
            file.replace(clock)?;
        }
        Ok(file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn sqlite(&self) -> &Connection {
        &self.sqlite
    }

    /// A second connection, for reading.
    pub(super) fn reader(&self) -> Result<Connection, Error> {
        read_only(&self.path).map_err(|failure| failure.at(&self.path))
    }

    /// Chooses whether the next commits are synced to the disk. A synced commit also syncs those before it.
    pub(super) fn set_durable(&mut self, is_durable: bool) -> Result<(), Failure> {
        if self.is_durable != is_durable {
            self.sqlite.pragma_update(None, "synchronous", if is_durable { "full" } else { "normal" })?;
            self.is_durable = is_durable;
        }
        Ok(())
    }

    /// Writes a page without changing it.
    pub(super) fn touch(&self) -> Result<(), Failure> {
        Ok(self.sqlite.pragma_update(None, "user_version", VERSION)?)
    }

    /// What the file holds; entries up to `cursor` are not counted.
    pub(super) fn totals(&self, cursor: i64) -> Result<Totals, Failure> {
        totals(&self.sqlite, cursor)
    }

    /// Recent event ids, and the id of the next entry.
    pub(super) fn window(&self, capacity: usize) -> Result<(Window, i64), Failure> {
        let mut window = Window::new(capacity);
        let mut next_id = 1;
        let mut select = self.sqlite.prepare("SELECT first, hashes FROM seen ORDER BY first")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (first, hashes): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let (hashes, _) = hashes.as_chunks::<{ size_of::<Fingerprint>() }>();
            next_id = first + i64::try_from(hashes.len()).unwrap_or(0);
            if self.is_synced {
                for hash in hashes {
                    window.insert(*hash);
                }
            }
        }
        for table in ["entries", "dead_letters"] {
            next_id = next_id.max(1 + last_id(&self.sqlite, table)?);
        }
        Ok((window, next_id))
    }

    /// Reads the ids of the queued entries.
    pub(super) fn window_of_entries(&self, capacity: usize) -> Result<Window, Failure> {
        let mut window = Window::new(capacity);
        let mut select = self.sqlite.prepare("SELECT event_id FROM entries ORDER BY id")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            window.insert(window::fingerprint_in(row)?);
        }
        Ok(window)
    }

    /// Whether the file has its tables, and what a start reads can be read.
    fn probe(&self) -> Result<bool, Failure> {
        self.totals(0)?;
        self.window(0)?;
        has_schema(&self.sqlite)
    }

    /// Whether every page can be read and is consistent.
    pub(super) fn is_whole(&self) -> bool {
        let checked = read_only(&self.path).and_then(|sqlite| {
            let found: String = sqlite.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            Ok(found == "ok" && has_schema(&sqlite)?)
        });
        checked.is_ok_and(|is_whole| is_whole)
    }

    /// Replaces the file by what can be read of it. Other connections must be closed.
    pub(super) fn replace(&mut self, clock: &Clock) -> Result<(), Error> {
        self.detach()?;
        let replaced = repair::replace(&self.dir, clock.now());
        self.attach()?;
        replaced
    }

    fn detach(&mut self) -> Result<(), Error> {
        let nothing = Connection::open_in_memory().map_err(|error| unavailable(&self.path, error))?;
        self.sqlite = nothing;
        self.is_attached = false;
        Ok(())
    }

    /// Opens the file again if it was closed.
    pub(super) fn attach(&mut self) -> Result<(), Error> {
        if !self.is_attached {
            self.sqlite = connect(&self.path).map_err(|refusal| refusal.at(&self.path))?;
            (self.is_attached, self.is_durable) = (true, true);
        }
        Ok(())
    }
}

/// Whether the file has the tables of this version: its text is not protected by the check of `SQLite`.
fn has_schema(sqlite: &Connection) -> Result<bool, Failure> {
    let schema = |sqlite: &Connection| -> rusqlite::Result<Vec<String>> {
        let mut select = sqlite.prepare("SELECT name || tbl_name || sql FROM sqlite_schema ORDER BY 1")?;
        select.query_map([], |row| row.get(0))?.collect()
    };
    let new = Connection::open_in_memory()?;
    new.execute_batch(SCHEMA)?;
    Ok(schema(sqlite)? == schema(&new)?)
}

/// Reads what the file holds; entries up to `cursor` are not counted.
pub(super) fn totals(sqlite: &Connection, cursor: i64) -> Result<Totals, Failure> {
    let size = rows::size_in_sql();
    let select = format!("SELECT count(*), coalesce(sum({size}), 0) FROM entries WHERE id > ?1");
    let (entries, bytes): (i64, i64) =
        sqlite.query_row(&select, [cursor], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let oldest = "SELECT received_at FROM entries WHERE id > ?1 ORDER BY id LIMIT 1";
    let oldest = sqlite.query_row(oldest, [cursor], |row| row.get(0)).optional()?;
    Ok(Totals {
        entries: entries.unsigned_abs(),
        bytes: bytes.unsigned_abs(),
        last_id: last_id(sqlite, "entries")?,
        oldest_received_at: oldest.map(kinsync_core::Micros),
        dead_letters: dead_letters::count(sqlite)?,
    })
}

fn last_id(sqlite: &Connection, table: &str) -> Result<i64, Failure> {
    Ok(sqlite.query_row(&format!("SELECT coalesce(max(id), 0) FROM {table}"), [], |row| row.get(0))?)
}

/// Why a file was not opened.
pub(super) enum OpenError {
    Failed(Failure),
    Unknown { application: i64, version: i64 },
}

impl<T: Into<Failure>> From<T> for OpenError {
    fn from(failure: T) -> Self {
        Self::Failed(failure.into())
    }
}

impl OpenError {
    pub(super) fn at(self, path: &Path) -> Error {
        match self {
            Self::Failed(failure) => failure.at(path),
            Self::Unknown { application, version } => {
                let found = if application == APPLICATION {
                    format!("has format {version}, and this kinsync reads format {VERSION}")
                } else {
                    "is not a queue of kinsync".to_owned()
                };
                let hint = format!(
                    "`{}` {found}: run the version that wrote it until the queue is empty, or move the file away \
                     and run `kinsync backfill`",
                    path.display()
                );
                Error::Refused { hint, source: None }
            }
        }
    }
}

/// Opens or creates a file, for writing.
pub(super) fn connect(path: &Path) -> Result<Connection, OpenError> {
    // Created here and not by `SQLite`, so that it is never readable for others. `SQLite` gives the
    // files beside it the same permissions. An error shows when it is opened.
    if private_file().open(path).is_ok() {
        let _ = sync_dir(path.parent().unwrap_or(Path::new("")));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sqlite = Connection::open_with_flags(path, flags)?;
    sqlite.busy_timeout(BUSY)?;
    let is_new = check_version(&sqlite)?;
    sqlite.pragma_update(None, "page_size", PAGE)?;
    sqlite.pragma_update(None, "journal_mode", "wal")?;
    sqlite.pragma_update(None, "synchronous", "full")?;
    sqlite.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    sqlite.pragma_update(None, "journal_size_limit", WAL_PAGES * PAGE * 2)?;
    sqlite.pragma_update(None, "temp_store", "memory")?;
    sqlite.set_prepared_statement_cache_capacity(32);
    if is_new {
        let create = format!(
            "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT"
        );
        sqlite.execute_batch(&create)?;
    }
    Ok(sqlite)
}

/// Opens a file for reading, beside its writer.
pub(super) fn read_only(path: &Path) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sqlite = Connection::open_with_flags(path, flags)?;
    sqlite.busy_timeout(BUSY)?;
    Ok(sqlite)
}

/// Refuses what this version cannot read. True for a file without content.
pub(super) fn check_version(sqlite: &Connection) -> Result<bool, OpenError> {
    let pragma = |name| sqlite.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 = sqlite.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (application, version, tables) {
        (APPLICATION, VERSION, _) => Ok(false),
        (0, 0, 0) => Ok(true),
        _ => Err(OpenError::Unknown { application, version }),
    }
}

/// Syncs what a killed process may have written and not synced: it counts as committed now, and a
/// duplicate of it is acknowledged. False if that failed.
fn sync_wal(path: &Path) -> bool {
    match File::open(repair::beside(path, "-wal")).and_then(|file| file.sync_all()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "the queue's write-ahead log could not be synced: duplicates may be processed twice");
            false
        }
        _ => true,
    }
}

/// Keeps other processes out while the file is open; the lock of a killed process is released.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = private_file().open(&path).map_err(|source| unavailable(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(source)) => Err(unavailable(&path, source)),
        Err(TryLockError::WouldBlock) => {
            let hint = format!(
                "the queue in `{}` is in use by another process; set KINSYNC_DATA_DIR to another folder for each process",
                dir.display()
            );
            Err(Error::Refused { hint, source: None })
        }
    }
}

/// Creates the folder and those above it, durably.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new(""));
    make_dir(parent)?;
    match private_dir().create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(parent),
    }
}

/// Makes what was created, renamed and removed in the folder durable.
#[cfg(unix)]
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
pub(super) fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// Opens or creates a file that only this user can read: it holds personal data.
pub(super) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn private_dir() -> DirBuilder {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}
