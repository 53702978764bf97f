//! Releases quarantined events when this machine's clock reaches their time.
//!
//! An event from the future is a dead letter. Its time comes: the clock was behind, or the sender's was ahead. Each process
//! keeps a list of the quarantined dead letters that it made, and adds those of other processes from the queue: after its start,
//! then regularly.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use kinsync_core::Micros;
use tokio_util::sync::CancellationToken;

use super::Projector;
use crate::{
    breaker::error_chain,
    decode,
    queue::{self, DeadLetter, Entry, EntryId, Payload},
};

/// Longest interval at which the times are compared with the clock.
const EVERY: Duration = Duration::from_secs(10);
/// Comparisons with the clock after which the dead letters are read from the queue again.
const READ_AFTER: u32 = 60;
/// Dead letters per page.
const PAGE: usize = 500;

/// Quarantined dead letters by the time of their event.
#[derive(Debug, Default)]
pub(super) struct Quarantine(Mutex<BTreeSet<(Micros, EntryId)>>);

impl Quarantine {
    pub(super) fn extend(&self, letters: impl IntoIterator<Item = (Micros, EntryId)>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(letters);
    }

    /// Removes and returns the letters with a time until `latest`.
    fn take(&self, latest: Micros) -> BTreeSet<(Micros, EntryId)> {
        let mut letters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let later = letters.split_off(&(Micros(latest.0.saturating_add(1)), EntryId::new("")));
        std::mem::replace(&mut *letters, later)
    }
}

impl Projector {
    /// Runs until `stop` is cancelled.
    pub(super) async fn release_regularly(&self, stop: &CancellationToken) {
        let mut rounds_to_read = 0;
        loop {
            if rounds_to_read == 0 && logged(self.load_quarantined().await) {
                rounds_to_read = READ_AFTER;
            }
            rounds_to_read = rounds_to_read.saturating_sub(1);
            logged(self.release_quarantined().await);
            let pause = tokio::time::sleep(EVERY.min(self.config.sweep_every));
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn load_quarantined(&self) -> Result<(), queue::Error> {
        // Dead letters reach their age also where there are no new ones.
        self.queue.dead_letter(&[]).await?;
        let mut page = self.queue.dead_letters(None, PAGE).await?;
        while let Some(last) = page.last().map(|letter| letter.id.clone()) {
            self.quarantine.extend(page.into_iter().filter_map(quarantined));
            page = self.queue.dead_letters(Some(&last), PAGE).await?;
        }
        Ok(())
    }

    async fn release_quarantined(&self) -> Result<(), queue::Error> {
        let latest = decode::latest(self.clock.now(), self.config.future_tolerance);
        for (at, id) in self.quarantine.take(latest) {
            match self.queue.retry_dead_letter(&id).await {
                Ok(()) => tracing::info!(%id, "the time of a quarantined event has come; it is applied"),
                // An operator was faster, or the queue removed its payload.
                Err(queue::Error::NoSuchDeadLetter { .. } | queue::Error::PayloadRemoved { .. }) => {}
                Err(error) => {
                    self.quarantine.extend([(at, id)]);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Returns the time and the id of a dead letter if it is quarantined.
fn quarantined(letter: DeadLetter) -> Option<(Micros, EntryId)> {
    if !letter.reason.starts_with(decode::QUARANTINED) {
        return None;
    }
    let payload = Payload::from_parts(&letter.scheme, None, Bytes::from(letter.payload?))?;
    let entry = Entry { event_id: letter.event_id, received_at: letter.received_at, payload };
    // An event without a time of its own is retried at once: the queue keeps the time of its signature.
    let at = decode::decode(&entry, Micros(i64::MAX)).event.at.unwrap_or(Micros(i64::MIN));
    Some((at, letter.id))
}

/// Logs a failure of the queue. Returns whether there was none.
fn logged(done: Result<(), queue::Error>) -> bool {
    match done {
        Ok(()) => true,
        Err(queue::Error::Closed) => false,
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(error, "quarantined events could not be released; this is repeated");
            false
        }
    }
}
