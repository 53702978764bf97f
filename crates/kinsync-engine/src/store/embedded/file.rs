//! The SQLite file: lock, schema and settings.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use super::worker::failure;
use crate::store::Error;

/// Schema version. Increases with each change that an older kinsync cannot read.
const SCHEMA: i64 = 7;

const TABLES: &str = r"
CREATE TABLE users (
    id          TEXT PRIMARY KEY,
    revision    INTEGER NOT NULL,
    live        INTEGER NOT NULL,
    -- The address that is shown, and the one that a live user claims.
    email       TEXT UNIQUE,
    claim       TEXT,
    state       TEXT NOT NULL,
    holds_email INTEGER NOT NULL,
    held_by     TEXT,
    inserted_at INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    source      TEXT,
    pending_emails   TEXT
) STRICT;
CREATE INDEX users_claim ON users (claim) WHERE claim IS NOT NULL;
CREATE INDEX users_deleted ON users (id) WHERE live = 0;
CREATE INDEX users_pending_emails ON users (id) WHERE pending_emails IS NOT NULL;
CREATE TABLE events (
    event_id    TEXT PRIMARY KEY,
    type        TEXT NOT NULL,
    user        TEXT,
    at          INTEGER,
    received_at INTEGER NOT NULL,
    scheme      TEXT NOT NULL,
    payload     TEXT NOT NULL
) STRICT;
CREATE INDEX events_received ON events (received_at, event_id);
CREATE INDEX events_user ON events (user, received_at, event_id);
CREATE INDEX events_type ON events (type, received_at, event_id);
CREATE TABLE pings (id INTEGER PRIMARY KEY, n INTEGER NOT NULL) STRICT;
";

/// Added by schema 3: which scans compared a row.
const COMPARISONS: &str = r"
ALTER TABLE users ADD COLUMN compared_since INTEGER;
ALTER TABLE users ADD COLUMN changed_after INTEGER;
";

/// Added by schema 4: the search for an address in any case.
const ADDRESSES: &str = r"
CREATE INDEX users_address ON users (trim(claim) COLLATE NOCASE);
";

/// Added by schema 5: which records are marked, and the users that refer to an organization, a role or a permission.
const REFERENCES: &str = r"
ALTER TABLE state ADD COLUMN is_due INTEGER;
CREATE INDEX state_due ON state (key) WHERE is_due = 1;
CREATE TABLE user_references (
    user      TEXT NOT NULL,
    reference TEXT NOT NULL,
    PRIMARY KEY (user, reference)
) STRICT, WITHOUT ROWID;
CREATE INDEX user_references_users ON user_references (reference, user);
INSERT INTO user_references SELECT DISTINCT users.id, json_extract(entry.value, '$.id')
    FROM users, json_each(users.state, '$.directory.entries') AS entry;
";

/// Added by schema 6: entries of the log from every source, with checksums.
const SOURCES: &str = r"
ALTER TABLE events ADD COLUMN source TEXT NOT NULL DEFAULT 'webhook';
ALTER TABLE events ADD COLUMN version TEXT;
ALTER TABLE events ADD COLUMN schema INTEGER;
ALTER TABLE events ADD COLUMN checksum TEXT;
UPDATE events SET source = 'login' WHERE scheme = 'login';
CREATE INDEX events_source ON events (source, received_at, event_id);
";

/// Added by schema 7: the lists of users.
const LISTS: &str = r"
ALTER TABLE users ADD COLUMN first_name TEXT;
ALTER TABLE users ADD COLUMN last_name TEXT;
ALTER TABLE users ADD COLUMN phone TEXT;
ALTER TABLE users ADD COLUMN provided_id TEXT;
ALTER TABLE users ADD COLUMN is_suspended INTEGER;
ALTER TABLE users ADD COLUMN deleted_at INTEGER;
UPDATE users SET
    first_name   = json_extract(state, '$.fields.firstName.value.text'),
    last_name    = json_extract(state, '$.fields.lastName.value.text'),
    phone        = json_extract(state, '$.fields.phone.value.text'),
    provided_id  = json_extract(state, '$.fields.providedId.value.text'),
    is_suspended = json_extract(state, '$.fields.isSuspended.value.flag'),
    deleted_at   = CASE live WHEN 0 THEN json_extract(state, '$.deleted.t') END
    WHERE json_valid(state);
DROP INDEX users_address;
CREATE INDEX users_address ON users (trim(claim) COLLATE NOCASE, id);
CREATE INDEX users_first_name ON users (first_name COLLATE NOCASE, id);
CREATE INDEX users_last_name ON users (last_name COLLATE NOCASE, id);
CREATE INDEX users_phone ON users (phone, id);
CREATE INDEX users_provided_id ON users (provided_id, id);
CREATE INDEX users_updated_at ON users (updated_at, id);
CREATE INDEX users_live ON users (id) WHERE live = 1;
CREATE INDEX users_deleted_at ON users (deleted_at, id) WHERE live = 0;
CREATE INDEX users_suspended ON users (id) WHERE is_suspended = 1;
CREATE INDEX users_in_conflict ON users (id) WHERE held_by IS NOT NULL;
";

/// Added by schema 2: kinsync's own records.
const STATE: &str = r"
CREATE TABLE state (
    key      TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    value    TEXT NOT NULL
) STRICT;
";

const DOING: &str = "open the embedded store";
/// Further attempts to empty the write-ahead log, and the pause between them.
const CHECKPOINTS: usize = 100;
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(25);

/// Opens the file for writing. The returned lock must live as long as the connection.
pub(super) fn for_writing(folder: &Path) -> Result<(File, Connection), Error> {
    let lock = lock(folder)?;
    let path = path(folder);
    // Created here and not by SQLite, so that other users cannot read it for a moment. SQLite gives its -wal and -shm
    // files the same permissions.
    private().open(&path).map_err(|error| io_failure(&path, error))?;
    let mut sqlite = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    migrate(&mut sqlite, &path)?;
    Ok((lock, sqlite))
}

/// Opens the file for reading, also while another process writes it.
pub(super) fn for_reading(folder: &Path) -> Result<Connection, Error> {
    let path = path(folder);
    let sqlite = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    match version(&sqlite)? {
        SCHEMA => Ok(sqlite),
        0 => Err(refused(format!("`{}` is empty; start the server first", path.display()))),
        1..SCHEMA => Err(refused(format!(
            "`{}` was written by an older kinsync; start the server once to migrate it",
            path.display()
        ))),
        _ => Err(newer(&path)),
    }
}

/// Writes a row: a read alone does not prove that the disk accepts writes.
pub(super) fn touch(sqlite: &Connection) -> rusqlite::Result<()> {
    let sql = "INSERT INTO pings VALUES (1, 1) ON CONFLICT DO UPDATE SET n = n + 1";
    sqlite.prepare_cached(sql)?.execute([]).map(|_| ())
}

/// Moves the write-ahead log into the file and empties it, as soon as no reader needs it and the writer does not do the same.
pub(super) fn checkpoint(folder: &Path) -> Result<(), Error> {
    let sqlite = connect(&path(folder), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // It waits for readers, and not for another checkpoint.
    sqlite.busy_timeout(CHECKPOINT_PAUSE).map_err(|error| failure("empty the write-ahead log", error))?;
    let truncate = || sqlite.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    let mut is_busy = truncate();
    for _ in 0..CHECKPOINTS {
        if !matches!(is_busy, Ok(true)) {
            break;
        }
        std::thread::sleep(CHECKPOINT_PAUSE);
        is_busy = truncate();
    }
    match is_busy {
        Ok(false) => Ok(()),
        Ok(true) => {
            let source = "a reader needs the write-ahead log".into();
            Err(Error::Unavailable { doing: "empty the write-ahead log", source })
        }
        Err(error) => Err(failure("empty the write-ahead log", error)),
    }
}

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("kinsync.sqlite")
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options
}

fn lock(folder: &Path) -> Result<File, Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| io_failure(folder, error))?;
    let path = folder.join("kinsync.sqlite.lock");
    let file = private().open(&path).map_err(|error| io_failure(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(io_failure(&path, error)),
        Err(TryLockError::WouldBlock) => Err(refused(format!(
            "another process writes to `{}`; stop it, or set KINSYNC_DATA_DIR to another folder for each process",
            folder.display()
        ))),
    }
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sqlite = Connection::open_with_flags(path, flags).map_err(|error| failure(DOING, error))?;
    let set = || {
        sqlite.busy_timeout(Duration::from_secs(5))?;
        if flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
            sqlite.pragma_update(None, "journal_mode", "wal")?;
            sqlite.pragma_update(None, "synchronous", "full")?;
            // What is removed is overwritten with zeros.
            sqlite.pragma_update(None, "secure_delete", true)?;
        }
        sqlite.set_prepared_statement_cache_capacity(32);
        Ok(())
    };
    set().map_err(|error| failure(DOING, error))?;
    Ok(sqlite)
}

fn migrate(sqlite: &mut Connection, path: &Path) -> Result<(), Error> {
    match version(sqlite)? {
        SCHEMA => Ok(()),
        found @ 0..SCHEMA => {
            let steps = [TABLES, STATE, COMPARISONS, ADDRESSES, REFERENCES, SOURCES, LISTS];
            let missing = usize::try_from(found).map_or(steps.as_slice(), |done| &steps[done..]);
            make(sqlite, missing).map_err(|error| failure(DOING, error))
        }
        _ => Err(newer(path)),
    }
}

fn make(sqlite: &mut Connection, tables: &[&str]) -> rusqlite::Result<()> {
    let transaction = sqlite.transaction()?;
    transaction.execute_batch(&tables.concat())?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()
}

fn version(sqlite: &Connection) -> Result<i64, Error> {
    let version = sqlite.pragma_query_value(None, "user_version", |row| row.get(0));
    version.map_err(|error| failure(DOING, error))
}

fn newer(path: &Path) -> Error {
    refused(format!(
        "`{}` was written by a newer kinsync; run that version, or move the file away",
        path.display()
    ))
}

fn refused(hint: String) -> Error {
    Error::Refused { doing: DOING, hint, source: None }
}

fn io_failure(path: &Path, source: io::Error) -> Error {
    let hint = format!("check that this user may write `{}`", path.display());
    Error::Refused { doing: DOING, hint, source: Some(source.into()) }
}
