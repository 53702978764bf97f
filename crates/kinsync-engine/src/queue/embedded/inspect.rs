//! Reads the queue's file beside the process that owns it. Takes no lock and changes nothing.

use std::path::Path;

use kinsync_core::Micros;
use serde::Serialize;

use super::file::{self, NAME, OpenError};
use crate::queue::{Error, Stats};

/// An entry in the file, without its payload.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Identifies the entry.
    pub id: String,
    /// Id of the event.
    pub event_id: String,
    /// Name of the verification scheme; `login` for a sighting.
    pub scheme: String,
    /// When it was received.
    pub received_at: Micros,
    /// Bytes of its payload.
    pub bytes: u64,
}

/// Reads the state of the queue in the folder `queue` of `dir`. Blocks on the disk.
///
/// Entries that a running process has applied but not yet deleted count.
///
/// # Errors
/// [`Error::Refused`] if the format is unknown, [`Error::Unavailable`] if the file cannot be read.
pub fn inspect(dir: &Path) -> Result<Stats, Error> {
    let found = read(dir, |sqlite| Ok(file::totals(sqlite, 0)?))?.unwrap_or_default();
    Ok(Stats {
        depth: found.entries,
        oldest_received_at: found.oldest_received_at,
        bytes: found.bytes,
        dead_letters: found.dead_letters.count,
        dead_letter_bytes: found.dead_letters.bytes,
        ..Stats::default()
    })
}

/// Lists up to `limit` entries in the folder `queue` of `dir`, oldest first. Blocks on the disk.
///
/// # Errors
/// As [`inspect`].
pub fn list(dir: &Path, limit: usize) -> Result<Vec<Listed>, Error> {
    let select = "SELECT id, event_id, scheme, received_at, octet_length(payload)
        FROM entries ORDER BY id LIMIT ?1";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let listed = read(dir, |sqlite| {
        let mut select = sqlite.prepare(select)?;
        let rows = select.query_map([limit], |row| {
            let id: i64 = row.get(0)?;
            let (id, event_id, scheme) = (id.to_string(), row.get(1)?, row.get(2)?);
            Ok(Listed {
                id,
                event_id,
                scheme,
                received_at: Micros(row.get(3)?),
                bytes: row.get::<_, i64>(4)?.unsigned_abs(),
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    });
    Ok(listed?.unwrap_or_default())
}

/// `None` if there is no file.
fn read<T>(
    dir: &Path,
    read: impl Fn(&rusqlite::Connection) -> Result<T, OpenError>,
) -> Result<Option<T>, Error> {
    let path = dir.join("queue").join(NAME);
    match path.try_exists() {
        Ok(false) => return Ok(None),
        Ok(true) => {}
        Err(error) => return Err(file::unavailable(&path, error)),
    }
    let found = file::read_only(&path)
        .map_err(OpenError::from)
        .and_then(|sqlite| if file::check_version(&sqlite)? { Ok(None) } else { read(&sqlite).map(Some) });
    found.map_err(|refusal| refusal.at(&path))
}
