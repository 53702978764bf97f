//! Dead letters as records of kinsync in the store.
//!
//! A queue of RabbitMQ can be listed only by taking its messages, and a stream cannot delete one. The store of users is shared by
//! all processes and does both.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use kinsync_core::Micros;
use serde::{Deserialize, Serialize};

use crate::{
    clock::Clock,
    queue::{
        DeadLetter, Entry, EntryId, Error, Matcher, Payload, Search,
        embedded::{DeadLetterBounds, report_bounded},
        unreadable::UNREADABLE,
    },
    store::{self, Saved, Store},
};

/// Start of the keys of the records.
const PREFIX: &str = "dead_letter/";
/// Records that are removed at once.
const PAGE: usize = 100;
/// Format of the records.
const FORMAT: u32 = 1;

/// A dead letter as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    format: u32,
    event_id: String,
    scheme: String,
    received_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_at: Option<i64>,
    dead_at: i64,
    reason: String,
    body: Body,
}

/// The payload: text, or hexadecimal digits where it is not UTF-8.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Body {
    Text(String),
    Hex(String),
}

/// The dead letters.
pub(super) struct DeadLetters {
    store: Arc<dyn Store>,
    clock: Clock,
    bounds: DeadLetterBounds,
}

impl DeadLetters {
    pub(super) fn new(store: Arc<dyn Store>, clock: Clock, bounds: DeadLetterBounds) -> Self {
        Self { store, clock, bounds }
    }

    /// Stores a dead letter under this id. One that is stored stays as it is.
    pub(super) async fn add(
        &self,
        id: &str,
        entry: Option<&Entry>,
        body: &[u8],
        reason: &str,
    ) -> Result<(), Error> {
        let stored = Stored {
            format: FORMAT,
            event_id: entry.map_or("unknown", |entry| &entry.event_id).into(),
            scheme: entry.map_or("unknown", |entry| entry.payload.scheme()).into(),
            received_at: entry.map_or(0, |entry| entry.received_at.0),
            signed_at: entry.and_then(|entry| entry.payload.signed_at()).map(|at| at.0),
            dead_at: self.clock.now().0,
            reason: reason.into(),
            body: Body::of(body),
        };
        let value = serde_json::to_value(stored).map_err(|error| Error::Unavailable {
            hint: "a dead letter could not be encoded".into(),
            source: error.into(),
        })?;
        self.store.put_state(&key(id), &value, 0).await.map_err(failed)?;
        Ok(())
    }

    /// Removes the oldest dead letters until the others are within the bounds.
    pub(super) async fn limit(&self) -> Result<(), Error> {
        let age = i64::try_from(self.bounds.max_age.as_micros()).unwrap_or(i64::MAX);
        let oldest = self.clock.now().0.saturating_sub(age);
        loop {
            // Counted each time: other processes remove some too.
            let surplus = self.count().await?.saturating_sub(self.bounds.max_count);
            let surplus = usize::try_from(surplus).unwrap_or(PAGE).min(PAGE);
            let page = self.store.list_states(PREFIX, None, PAGE).await.map_err(failed)?;
            let is_old = |saved: &Saved| decode(saved).is_some_and(|stored| stored.dead_at < oldest);
            let page = page.into_iter().enumerate();
            let outdated: Vec<(String, i64)> = page
                .filter(|(n, (_, saved))| *n < surplus || is_old(saved))
                .map(|(_, (key, saved))| (key, saved.revision))
                .collect();
            if outdated.is_empty() {
                return Ok(());
            }
            self.store.remove_states(&outdated).await.map_err(failed)?;
            report_bounded(outdated.len() as u64, 0);
        }
    }

    pub(super) async fn count(&self) -> Result<u64, Error> {
        self.store.count_states(PREFIX).await.map_err(failed)
    }

    pub(super) async fn list(&self, after: Option<&EntryId>, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let after = after.map(|id| key(id.as_str()));
        let page = self.store.list_states(PREFIX, after.as_deref(), limit).await.map_err(failed)?;
        Ok(page.iter().map(|(key, saved)| letter(key.strip_prefix(PREFIX).unwrap_or(key), saved)).collect())
    }

    pub(super) async fn find(&self, id: &EntryId) -> Result<DeadLetter, Error> {
        Ok(letter(id.as_str(), &self.read(id).await?))
    }

    /// Returns the entry of a dead letter, and the revision of its record.
    pub(super) async fn entry(&self, id: &EntryId) -> Result<(Entry, i64), Error> {
        let saved = self.read(id).await?;
        let entry = decode(&saved).and_then(|stored| stored.entry()).ok_or_else(|| Error::Refused {
            hint: format!("dead letter {id}: {UNREADABLE}"),
            source: None,
        })?;
        Ok((entry, saved.revision))
    }

    /// Counts or removes the dead letters that the matcher finds.
    pub(super) async fn search(&self, matcher: &Matcher, search: Search) -> Result<u64, Error> {
        let (mut found, mut after) = (0, None::<String>);
        loop {
            let page = self.store.list_states(PREFIX, after.as_deref(), PAGE).await.map_err(failed)?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            after = Some(last.clone());
            let is_wanted = |saved: &Saved| {
                let stored = decode(saved)?;
                Some(matcher(&stored.scheme, &stored.body.bytes()?))
            };
            let wanted = page.into_iter().filter(|(_, saved)| is_wanted(saved) == Some(true));
            let wanted: Vec<_> = wanted.map(|(key, saved)| (key, saved.revision)).collect();
            found += wanted.len() as u64;
            if search == Search::Remove && !wanted.is_empty() {
                self.store.remove_states(&wanted).await.map_err(failed)?;
            }
        }
    }

    /// Removes a dead letter.
    pub(super) async fn remove(&self, id: &EntryId) -> Result<(), Error> {
        let revision = self.read(id).await?.revision;
        self.remove_revision(id, revision).await
    }

    pub(super) async fn remove_revision(&self, id: &EntryId, revision: i64) -> Result<(), Error> {
        self.store.remove_states(&[(key(id.as_str()), revision)]).await.map_err(failed)
    }

    async fn read(&self, id: &EntryId) -> Result<Saved, Error> {
        let saved = self.store.state(&key(id.as_str())).await.map_err(failed)?;
        saved.ok_or_else(|| Error::NoSuchDeadLetter { id: id.clone() })
    }
}

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

fn decode(saved: &Saved) -> Option<Stored> {
    let stored: Stored = serde_json::from_value(saved.value.clone()).ok()?;
    (stored.format == FORMAT).then_some(stored)
}

/// Returns the dead letter of a record, also of one that another version wrote.
fn letter(id: &str, saved: &Saved) -> DeadLetter {
    let id = EntryId::new(id);
    match decode(saved) {
        Some(stored) => DeadLetter {
            id,
            payload: stored.body.bytes().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            event_id: stored.event_id,
            scheme: stored.scheme,
            received_at: Micros(stored.received_at),
            dead_at: Micros(stored.dead_at),
            reason: stored.reason,
        },
        None => DeadLetter {
            id,
            event_id: "unknown".into(),
            scheme: "unknown".into(),
            received_at: Micros(0),
            dead_at: Micros(0),
            reason: UNREADABLE.into(),
            payload: None,
        },
    }
}

impl Stored {
    fn entry(&self) -> Option<Entry> {
        let body = self.body.bytes()?.into();
        Some(Entry {
            event_id: self.event_id.clone(),
            received_at: Micros(self.received_at),
            payload: Payload::from_parts(&self.scheme, self.signed_at.map(Micros), body)?,
        })
    }
}

impl Body {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex(bytes.iter().fold(String::new(), |mut digits, byte| {
                _ = write!(digits, "{byte:02x}");
                digits
            })),
        }
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.as_bytes().to_vec()),
            Self::Hex(digits) => {
                let pairs = digits.as_bytes().chunks(2);
                pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
            }
        }
    }
}

fn failed(error: store::Error) -> Error {
    let hint = "dead letters are kept in the store of users, which failed".into();
    Error::Unavailable { hint, source: error.into() }
}

/// Longest time to count dead letters for the state of the queue.
pub(super) const COUNT: Duration = Duration::from_millis(300);
