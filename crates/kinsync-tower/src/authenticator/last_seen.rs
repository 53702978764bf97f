//! Writes `lastSeenAt` in the background: at most one value per user, in batches, never while a request waits.
//!
//! Values that were not written yet are lost when the process is killed; `lastSeenAt` is then older than it could be.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use kinsync_core::{Micros, Observation, Source, UserId, Version, What};
use kinsync_engine::{
    Clock,
    internal::{apply::apply, store::Store},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{CachedUser, Config};
use crate::problem::chain;

/// Users per write.
const BATCH: usize = 512;
/// Longest time for one write.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct LastSeenWriter {
    store: Arc<dyn Store>,
    clock: Clock,
    resolution: i64,
    interval: Duration,
    max_pending: usize,
    pending: Mutex<HashMap<UserId, Micros>>,
}

impl LastSeenWriter {
    pub(super) fn new(store: Arc<dyn Store>, clock: Clock, config: &Config) -> Self {
        let resolution = i64::try_from(config.seen_resolution.as_micros()).unwrap_or(i64::MAX);
        let (interval, max_pending) = (config.flush_every, config.cached_users);
        Self { store, clock, resolution, interval, max_pending, pending: Mutex::default() }
    }

    /// Records that the user made a request, if the last record of one is older than the resolution.
    pub(super) fn record(&self, user: &CachedUser, at: Micros) {
        let is_due = at.0.saturating_sub(user.seen_at.load(Relaxed)) >= self.resolution;
        if is_due && self.add(user.document.kinde_id.clone(), at) {
            user.seen_at.store(at.0, Relaxed);
        }
    }

    /// Returns false if too many are pending.
    fn add(&self, user: UserId, at: Micros) -> bool {
        let mut pending = self.pending();
        let has_room = pending.len() < self.max_pending || pending.contains_key(&user);
        if has_room {
            let last = pending.entry(user).or_insert(at);
            *last = at.max(*last);
        }
        has_room
    }

    /// Writes at each interval until the token is cancelled, and once after that.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(self.interval)).await.is_some() {
            self.flush().await;
        }
        self.flush().await;
    }

    async fn flush(&self) {
        let taken: Vec<_> = std::mem::take(&mut *self.pending()).into_iter().collect();
        for (n, batch) in taken.chunks(BATCH).enumerate() {
            if let Err(error) = self.write(batch).await {
                tracing::warn!(error, "`lastSeenAt` could not be written; the next interval tries again");
                for (user, at) in &taken[n * BATCH..] {
                    // Without room a request after the resolution records the user again.
                    let _ = self.add(user.clone(), *at);
                }
                return;
            }
        }
    }

    async fn write(&self, batch: &[(UserId, Micros)]) -> Result<(), String> {
        let seen = batch.iter().map(|(user, at)| Observation {
            user: user.clone(),
            version: Version::provisional(),
            source: Source::Login,
            what: What::Seen(*at),
        });
        match timeout(WRITE_DEADLINE, apply(&*self.store, seen, self.clock.now())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(elapsed) => Err(elapsed.to_string()),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<UserId, Micros>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kinsync_engine::internal::{
        known_users::KnownUser,
        store::{Row, embedded::EmbeddedStore},
    };

    use super::*;

    #[test]
    fn a_user_is_recorded_once_in_the_resolution() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(folder.path()).unwrap());
        let config = Config { cached_users: 1, ..Config::default() };
        let writer = LastSeenWriter::new(store, Clock::system(), &config);
        let user = |id| {
            let row = Row::unknown(UserId::parse(id).unwrap());
            CachedUser::of(&KnownUser { row, is_document_refused: false })
        };
        let taken = || std::mem::take(&mut *writer.pending()).into_values().collect::<Vec<_>>();
        let (ada, grace) = (user("kp_ada"), user("kp_grace"));
        writer.record(&ada, Micros(1_000_000));
        writer.record(&grace, Micros(2_000_000));
        assert_eq!(taken(), [Micros(1_000_000)], "there is room for one");
        writer.record(&ada, Micros(60_999_999));
        assert_eq!(taken(), []);
        writer.record(&ada, Micros(61_000_000));
        assert_eq!(taken(), [Micros(61_000_000)]);
        writer.record(&grace, Micros(2_000_001));
        assert_eq!(taken(), [Micros(2_000_001)], "a user without room is recorded by the next request");
    }
}
