//! Entries and dead letters as fields of a stream.

use bytes::Bytes;
use kinsync_core::Micros;
use redis::{Cmd, Value};

use crate::queue::{DeadLetter, Entry, EntryId, Found, Payload, unreadable::UNREADABLE};

/// Format of the fields of an entry, which `enqueue.lua` writes.
const FORMAT: &str = "1";

/// Adds the fields of an entry to a script, in the order that the script expects.
pub(super) fn add_entry(script: &mut Cmd, entry: &Entry) {
    let signed_at = entry.payload.signed_at().map(|at| at.0.to_string()).unwrap_or_default();
    script.arg(&entry.event_id).arg(entry.payload.scheme()).arg(entry.received_at.0).arg(signed_at);
    script.arg(&entry.payload.bytes()[..]);
}

/// What this version can read of the fields of an entry.
pub(super) enum Content {
    Entry(Entry),
    /// A newer version wrote it.
    Newer,
    /// It is damaged, or another program wrote it.
    Damaged,
}

/// Reads the fields of an entry.
pub(super) fn entry(fields: &Value) -> Content {
    match text(fields, "format") {
        Some(FORMAT) => known(fields).unwrap_or(Content::Damaged),
        Some(_) => Content::Newer,
        None => Content::Damaged,
    }
}

/// Reads the fields of this format. A newer version may have added a scheme.
fn known(fields: &Value) -> Option<Content> {
    let signed_at = text(fields, "signed_at")?;
    let signed_at = if signed_at.is_empty() { None } else { Some(Micros(signed_at.parse().ok()?)) };
    let body = Bytes::copy_from_slice(field(fields, "body")?);
    let (event_id, received_at) = (text(fields, "event_id")?.to_owned(), time(fields, "received_at")?);
    Some(match Payload::from_parts(text(fields, "scheme")?, signed_at, body) {
        Some(payload) => Content::Entry(Entry { event_id, received_at, payload }),
        None => Content::Newer,
    })
}

/// Returns the dead letter of these fields, also one that another version wrote.
pub(super) fn dead_letter(id: &str, fields: &Value) -> DeadLetter {
    let name = |field| text(fields, field).unwrap_or("unknown").to_owned();
    DeadLetter {
        id: EntryId::new(id),
        event_id: name("event_id"),
        scheme: name("scheme"),
        received_at: time(fields, "received_at").unwrap_or(Micros(0)),
        dead_at: time(fields, "dead_at").unwrap_or(Micros(0)),
        reason: text(fields, "reason").unwrap_or(UNREADABLE).to_owned(),
        payload: field(fields, "body").map(|body| String::from_utf8_lossy(body).into_owned()),
    }
}

/// When an entry was received, also one that another version wrote; at the latest when it was stored.
pub(super) fn received_at(id: &str, fields: &Value) -> Option<Micros> {
    time(fields, "received_at").or_else(|| stored_at(id))
}

/// When the server stored the entry with this id, by its clock.
pub(super) fn stored_at(id: &str) -> Option<Micros> {
    let (millis, _) = id.split_once('-')?;
    Some(Micros(millis.parse::<i64>().ok()?.checked_mul(1000)?))
}

/// Returns the scheme and the payload of an entry or a dead letter. Another version may name its fields differently, and a damaged entry may
/// lack some: without a payload every value is one.
pub(super) fn contents(fields: &Value) -> (&str, Vec<&[u8]>) {
    let bodies = field(fields, "body")
        .map_or_else(|| pairs(fields).map(|(_, value)| value).collect(), |body| vec![body]);
    (text(fields, "scheme").unwrap_or("unknown"), bodies)
}

/// Returns an entry as a search lists it, also one that this version cannot apply.
pub(super) fn found(fields: &Value) -> Found {
    let (scheme, bodies) = contents(fields);
    Found {
        event_id: text(fields, "event_id").unwrap_or_default().to_owned(),
        scheme: scheme.to_owned(),
        received_at: time(fields, "received_at").unwrap_or(Micros(0)),
        payload: String::from_utf8_lossy(&bodies.join(&b'\n')).into_owned(),
    }
}

/// Returns the ids that a stream can have.
pub(super) fn valid(ids: &[EntryId]) -> Vec<&str> {
    ids.iter().filter(|id| is_valid(id)).map(EntryId::as_str).collect()
}

/// Returns whether a stream can have this id.
pub(super) fn is_valid(id: &EntryId) -> bool {
    let parts = id.as_str().split_once('-');
    parts.is_some_and(|(time, number)| time.parse::<u64>().is_ok() && number.parse::<u64>().is_ok())
}

fn time(fields: &Value, name: &str) -> Option<Micros> {
    Some(Micros(text(fields, name)?.parse().ok()?))
}

fn text<'a>(fields: &'a Value, name: &str) -> Option<&'a str> {
    std::str::from_utf8(field(fields, name)?).ok()
}

fn field<'a>(fields: &'a Value, name: &str) -> Option<&'a [u8]> {
    pairs(fields).find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
}

fn pairs(fields: &Value) -> impl Iterator<Item = (&[u8], &[u8])> {
    let fields = if let Value::Array(fields) = fields { fields.as_slice() } else { &[] };
    fields.chunks_exact(2).filter_map(|pair| Some((bytes(&pair[0])?, bytes(&pair[1])?)))
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}
