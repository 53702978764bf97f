//! kinsync's own records in the store, as typed values under a key.
//!
//! A stored record is an envelope: the format of the value, the term of the lease under which it was last written, and the
//! value. A record of another format, or one that cannot be decoded, is an error that names the record and the remedies. It
//! never counts as empty: that would drop approvals, held deletions or the deletion budget.
//!
//! Terms fence. A write under a lease states the term of the lease, and is refused after a process with a newer lease has
//! written the record. The comparison and the write are one compare-and-set, so a process that was suspended for longer than
//! its lease overwrites nothing.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    contention::{MAX_ROUNDS, pause},
    store::{Error, Saved, Store},
};

const READ: &str = "read a record of kinsync";

const WRITE: &str = "write a record of kinsync";

/// Name and format of a record.
#[derive(Debug)]
pub struct Key {
    /// Key in the store.
    pub name: &'static str,
    /// What a reset loses.
    pub reset: &'static str,
    /// Format of the value. Increases with each change that an older kinsync would misread.
    format: u32,
}

impl Key {
    /// Returns the key of a record in format 1.
    pub(crate) const fn new(name: &'static str, reset: &'static str) -> Self {
        Self { name, reset, format: 1 }
    }
}

/// Number of a lease. Increases by one each time that a process takes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Term(pub u64);

/// A record as it is stored.
#[derive(Debug)]
pub(crate) struct Record<T> {
    pub(crate) value: T,
    /// Term of the newest write under a lease.
    pub(crate) term: Term,
    /// Revision to write over; 0 if the record is not stored.
    pub(crate) revision: i64,
}

/// Loads the value of a record; the default if it is not stored.
pub(crate) async fn load<T: DeserializeOwned + Default>(store: &dyn Store, key: &Key) -> Result<T, Error> {
    Ok(read(store, key).await?.value)
}

/// Loads a record.
pub(crate) async fn read<T: DeserializeOwned + Default>(
    store: &dyn Store,
    key: &Key,
) -> Result<Record<T>, Error> {
    match store.state(key.name).await? {
        Some(saved) => decode(key, saved),
        None => Ok(Record { value: T::default(), term: Term::default(), revision: 0 }),
    }
}

/// Changes a record with compare-and-set. `change` runs again after a concurrent write. Writes nothing if the value stays
/// the same.
pub(crate) async fn change<T, R>(
    store: &dyn Store,
    key: &Key,
    change: impl Fn(&mut T) -> R,
) -> Result<R, Error>
where
    T: Serialize + DeserializeOwned + Default + PartialEq + Clone,
{
    let done = change_under(store, key, Term::default(), change).await?;
    Ok(done.expect("only a write under a lease is refused"))
}

/// Changes a record like [`change`], under the lease with this term. Returns `None`, and writes nothing, after a process
/// with a newer lease has written the record.
pub(crate) async fn change_under<T, R>(
    store: &dyn Store,
    key: &Key,
    term: Term,
    change: impl Fn(&mut T) -> R,
) -> Result<Option<R>, Error>
where
    T: Serialize + DeserializeOwned + Default + PartialEq + Clone,
{
    for round in 0..MAX_ROUNDS {
        pause(round).await;
        let Record { value: before, term: newest, revision } = read::<T>(store, key).await?;
        if term != Term::default() && term < newest {
            return Ok(None);
        }
        let mut after = before.clone();
        let result = change(&mut after);
        let is_known = revision > 0 && after == before && term <= newest;
        let record = Record { value: after, term: term.max(newest), revision };
        if is_known || put(store, key, &record).await? {
            return Ok(Some(result));
        }
    }
    let source = format!("other processes write `{}` continuously", key.name).into();
    Err(Error::Unavailable { doing: WRITE, source })
}

/// Writes a record over its revision. Returns `false`, and writes nothing, after a concurrent write.
pub(crate) async fn put<T: Serialize>(
    store: &dyn Store,
    key: &Key,
    record: &Record<T>,
) -> Result<bool, Error> {
    let value = json!({ "format": key.format, "term": record.term, "value": record.value });
    store.put_state(key.name, &value, record.revision).await
}

/// Replaces the value of a record by the default, whatever it is. Its term stays. Returns whether the record is stored.
pub async fn reset(store: &dyn Store, key: &Key) -> Result<bool, Error> {
    for round in 0..MAX_ROUNDS {
        pause(round).await;
        let Some(saved) = store.state(key.name).await? else { return Ok(false) };
        let term = saved.value.get("term").and_then(Value::as_u64).map(Term).unwrap_or_default();
        if put(store, key, &Record { value: Value::Null, term, revision: saved.revision }).await? {
            return Ok(true);
        }
    }
    Err(Error::Unavailable { doing: WRITE, source: "the record changes continuously".into() })
}

/// Returns whether a record is stored.
///
/// # Errors
/// [`Error::Refused`] names the record if this version cannot use it.
pub async fn check(store: &dyn Store, key: &Key) -> Result<bool, Error> {
    Ok(read::<Value>(store, key).await?.revision > 0)
}

#[derive(Deserialize)]
struct Envelope {
    format: u32,
    #[serde(default)]
    term: Term,
    /// Null after a reset.
    value: Value,
}

/// Decodes a record that was read together with others.
pub(crate) fn decode<T: DeserializeOwned + Default>(key: &Key, saved: Saved) -> Result<Record<T>, Error> {
    let Key { name, reset, .. } = key;
    let refused = |problem: String| Error::Refused {
        doing: READ,
        hint: format!(
            "the record `{name}` {problem}: run the version of kinsync that wrote it, or reset the record with `kinsync state \
             reset {name}` while no other kinsync runs ({reset})"
        ),
        source: None,
    };
    let undecodable = |error: serde_json::Error| refused(format!("cannot be decoded ({error})"));
    let Envelope { format, term, value } = Envelope::deserialize(saved.value).map_err(undecodable)?;
    if format != key.format {
        return Err(refused(format!("has format {format}, and this version reads format {}", key.format)));
    }
    let value = if value.is_null() { T::default() } else { T::deserialize(value).map_err(undecodable)? };
    Ok(Record { value, term, revision: saved.revision })
}
