//! Releases quarantined events when this machine's clock reaches their time.
//!
//! An event from the future is a dead letter. Its time comes: the clock was behind, or the sender's was ahead. Each process reads
//! all dead letters regularly, whichever process made them, and keeps nothing of them.

use bytes::Bytes;
use kinsync_core::Micros;
use tokio_util::sync::CancellationToken;

use super::Projector;
use crate::{
    breaker::error_chain,
    decode,
    queue::{self, DeadLetter, Entry, EntryId, Payload},
    random,
};

/// Sweeps of the store between two reads of all dead letters. An event is applied at most this long after its time: two minutes by
/// default.
const SWEEPS: u32 = 4;
/// Dead letters per page.
const PAGE: usize = 100;

impl Projector {
    /// Runs until `stop` is cancelled.
    pub(super) async fn release_regularly(&self, stop: &CancellationToken) {
        loop {
            match stop.run_until_cancelled(self.release_quarantined()).await {
                None => return,
                Some(Ok(()) | Err(queue::Error::Closed)) => {}
                Some(Err(error)) => tracing::warn!(
                    error = error_chain(&error),
                    "quarantined events could not be released; this is repeated"
                ),
            }
            // Processes that started together do not read together.
            let pause = random::jitter(self.config.sweep_every * SWEEPS, 0.8..=1.0);
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn release_quarantined(&self) -> Result<(), queue::Error> {
        // Dead letters reach their age also where there are no new ones.
        self.queue.dead_letter(&[]).await?;
        // All are read before the first is released: one that is quarantined again must not be found in the same round.
        let mut due = Vec::new();
        let mut page = self.queue.dead_letters(None, PAGE).await?;
        while let Some(last) = page.last().map(|letter| letter.id.clone()) {
            due.extend(page.into_iter().filter_map(|letter| self.due(letter)));
            page = self.queue.dead_letters(Some(&last), PAGE).await?;
        }
        for id in due {
            match self.queue.retry_dead_letter(&id).await {
                Ok(()) => tracing::info!(%id, "the time of a quarantined event has come; it is applied"),
                // Another process or an operator was faster, or the queue removed its payload.
                Err(queue::Error::NoSuchDeadLetter { .. } | queue::Error::PayloadRemoved { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the id of a dead letter if it is quarantined and its time has come.
    fn due(&self, letter: DeadLetter) -> Option<EntryId> {
        if !letter.reason.starts_with(decode::QUARANTINED) {
            return None;
        }
        let payload = Payload::from_parts(&letter.scheme, None, Bytes::from(letter.payload?))?;
        let entry = Entry { event_id: letter.event_id, received_at: letter.received_at, payload };
        // The dead letter of an event without a time of its own does not show the time of its signature.
        let at = decode::decode(&entry, Micros(i64::MAX)).event.at.unwrap_or(letter.received_at);
        (at <= self.latest()).then_some(letter.id)
    }
}
