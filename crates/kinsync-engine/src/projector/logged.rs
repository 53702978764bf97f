//! Deliveries of an event that the log has already, and entries of the log that a row lacks.

use futures_util::{StreamExt, TryStreamExt, stream};

use kinsync_core::Micros;
use tokio_util::sync::CancellationToken;

use super::{Projector, piece::Item};
use crate::{
    breaker::error_chain,
    decode::{self, Failure},
    log_follower::follow,
    random, store,
};

/// Age of an entry, in sweeps of the store, at which it is compared with its row: five minutes by default.
const AGE: u32 = 10;

/// Entries of the log that are read concurrently.
const CONCURRENCY: usize = 16;

impl Projector {
    /// Replaces the decoded entries at these positions, which have a known id, by those in the log.
    ///
    /// A repeated delivery may have another time or, without a time of the sender, another order of receipt. Of all deliveries of an
    /// event, the log has one, and the state of a user is the join of the log.
    pub(super) async fn recall(&self, items: &mut [Item], known: &[usize]) -> Result<(), store::Error> {
        let limit = self.latest();
        // A text with damaged characters is not the payload that was received.
        let is_readable =
            |n: &&usize| !matches!(items[**n].decoded.observations, Err(Failure::Undecodable(_)));
        let ids: Vec<(usize, String)> =
            known.iter().filter(is_readable).map(|&n| (n, items[n].decoded.event.id.clone())).collect();
        let reads = ids.into_iter().map(async |(n, id)| Ok((n, self.store.event(&id).await?)));
        let mut reads = stream::iter(reads).buffer_unordered(CONCURRENCY);
        while let Some((n, logged)) = reads.try_next().await? {
            // Not replaced by the marker of an erased event, or by a damaged entry.
            let Some(first) = logged.and_then(|event| decode::decode_logged(&event, limit)) else { continue };
            let received_at = items[n].decoded.event.received_at;
            items[n].decoded = first;
            // The lag is that of this delivery.
            items[n].decoded.event.received_at = received_at;
        }
        Ok(())
    }

    /// Joins entries into rows that lack them, until `stop` is cancelled.
    pub(super) async fn follow_regularly(&self, stop: &CancellationToken) {
        loop {
            let pause = random::jitter(self.config.sweep_every, 0.8..=1.0);
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            let now = self.clock.now();
            let age = i64::try_from((self.config.sweep_every * AGE).as_micros()).unwrap_or(i64::MAX);
            let until = Micros(now.0.saturating_sub(age));
            match stop.run_until_cancelled(follow(&*self.store, until, now)).await {
                None => return,
                Some(Ok(0)) => {}
                Some(Ok(users)) => tracing::info!(
                    users,
                    "joined entries of the log into users that lacked them after interrupted writes"
                ),
                Some(Err(error)) => tracing::warn!(
                    error = error_chain(&error),
                    "the log could not be compared with the users; this is repeated"
                ),
            }
        }
    }
}
