//! `lastSeenAt`, written behind: coalesced per user, flushed in batches through the one door, never on the path.
//!
//! What is pending is lost when the process is killed, which makes a time older than it is and nothing else wrong.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kinsync_core::{Micros, Observation, Source, UserId, Version, What};
use kinsync_engine::{apply::apply, clock::Clock, store::Store};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{CachedUser, Config};
use crate::problem::chain;

/// Users in one batch.
const BATCH: usize = 512;
/// The longest wait for one batch to be written.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct LastSeenWriter {
    store: Arc<dyn Store>,
    clock: Clock,
    resolution: i64,
    every: Duration,
    bound: usize,
    pending: Mutex<HashMap<UserId, Micros>>,
}

impl LastSeenWriter {
    pub(super) fn new(store: Arc<dyn Store>, clock: Clock, config: &Config) -> Self {
        let resolution = i64::try_from(config.seen_resolution.as_micros()).unwrap_or(i64::MAX);
        let (every, bound) = (config.flush_every, config.cached_users);
        Self { store, clock, resolution, every, bound, pending: Mutex::default() }
    }

    /// Notes that the user was seen, if that is news.
    pub(super) fn note(&self, user: &CachedUser, at: Micros) {
        let is_news = user.last_seen_at.is_none_or(|last| at.0.saturating_sub(last.0) >= self.resolution);
        if is_news {
            self.keep(user.document.kinde_id.clone(), at);
        }
    }

    fn keep(&self, user: UserId, at: Micros) {
        let mut pending = self.pending();
        if pending.len() < self.bound || pending.contains_key(&user) {
            let last = pending.entry(user).or_insert(at);
            *last = at.max(*last);
        }
    }

    /// Flushes regularly until told to stop, and once more then.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(self.every)).await.is_some() {
            self.flush().await;
        }
        self.flush().await;
    }

    async fn flush(&self) {
        let taken: Vec<_> = std::mem::take(&mut *self.pending()).into_iter().collect();
        for (n, batch) in taken.chunks(BATCH).enumerate() {
            if let Err(error) = self.write(batch).await {
                tracing::warn!(error, "`lastSeenAt` could not be written; it is tried again");
                for (user, at) in &taken[n * BATCH..] {
                    self.keep(user.clone(), *at);
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
        match timeout(PATIENCE, apply(&*self.store, seen, self.clock.now())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(passed) => Err(passed.to_string()),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<UserId, Micros>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
