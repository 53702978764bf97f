//! A lease for a background task: of all processes that share the store, one does the work.
//!
//! It compares no clocks: a process takes the lease of another one after it has seen no renewal for the duration. A process that was
//! suspended for longer may continue beside the new one, so the work must be safe to do twice.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::{
    random,
    state_records::{self, Key, Record, Term},
    store::{Error, Store},
};

/// Value of the record: the number of the process with the lease.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Holder {
    process: Option<u64>,
    renewals: u64,
}

/// Takes a lease when it is free or expired.
#[derive(Debug)]
pub(crate) struct WorkLease {
    store: Arc<dyn Store>,
    key: &'static Key,
    process: u64,
    duration: Duration,
    /// Last seen revision, and since when.
    seen: Mutex<Option<(i64, Instant)>>,
}

/// A taken lease.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    lease: &'a WorkLease,
    revision: i64,
    renewals: u64,
}

impl WorkLease {
    pub(crate) fn new(store: Arc<dyn Store>, key: &'static Key, duration: Duration) -> Self {
        Self { store, key, process: random::number(), duration, seen: Mutex::default() }
    }

    /// Takes the lease. Returns `None` if another process has it.
    pub(crate) async fn take(&self) -> Result<Option<Held<'_>>, Error> {
        let known: Record<Holder> = state_records::read(&*self.store, self.key).await?;
        let is_ours = known.value.process == Some(self.process);
        if known.value.process.is_some() && !is_ours && !self.has_expired(known.revision) {
            return Ok(None);
        }
        let held = Held { lease: self, revision: known.revision, renewals: 0 };
        let is_taken = held.put(Some(self.process)).await?;
        Ok(is_taken.then(|| Held { revision: known.revision + 1, ..held }))
    }

    /// Returns whether this revision stayed unchanged for the duration of a lease.
    fn has_expired(&self, revision: i64) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((known, since)) if known == revision => since.elapsed() > self.duration,
            _ => {
                *seen = Some((revision, Instant::now()));
                false
            }
        }
    }
}

impl Held<'_> {
    /// Does work and renews the lease meanwhile. Returns `None`, and drops the work, when another process has the lease.
    pub(crate) async fn during<T, E: From<Error>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Option<T>, E> {
        let mut work = pin!(work);
        loop {
            match timeout(self.lease.duration / 4, &mut work).await {
                Ok(done) => return done.map(Some),
                Err(_) if self.renew().await? => {}
                Err(_) => return Ok(None),
            }
        }
    }

    /// Renews the lease. Returns `false` if another process has it: the work must end.
    async fn renew(&mut self) -> Result<bool, Error> {
        self.renewals += 1;
        let is_renewed = self.put(Some(self.lease.process)).await?;
        self.revision += 1;
        Ok(is_renewed)
    }

    /// Releases the lease, so that the next process does not wait for its expiry.
    pub(crate) async fn release(self) -> Result<(), Error> {
        self.put(None).await.map(drop)
    }

    async fn put(&self, process: Option<u64>) -> Result<bool, Error> {
        let value = Holder { process, renewals: self.renewals };
        let record = Record { value, term: Term::default(), revision: self.revision };
        state_records::put(&*self.lease.store, self.lease.key, &record).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::EmbeddedStore;

    static KEY: Key = Key::new("test.lease", "nothing");

    fn lease(store: &Arc<dyn Store>, duration: Duration) -> WorkLease {
        WorkLease::new(Arc::clone(store), &KEY, duration)
    }

    async fn revision(store: &Arc<dyn Store>) -> i64 {
        store.state(KEY.name).await.expect("the store answers").map_or(0, |saved| saved.revision)
    }

    #[tokio::test]
    async fn a_lease_is_renewed_during_long_work_which_ends_when_another_process_takes_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir.path()).expect("an empty folder"));
        let (one, other) = (lease(&store, Duration::from_millis(40)), lease(&store, Duration::ZERO));
        let mut held = one.take().await.expect("the store answers").expect("it is free");
        let first = revision(&store).await;
        let renewed = held.during(async {
            while revision(&store).await < first + 3 {
                tokio::task::yield_now().await;
            }
            Ok::<_, Error>("done")
        });
        assert_eq!(renewed.await.expect("the store answers"), Some("done"));

        let lost = held.during(async {
            // A lease of another process that does not wait for its expiry.
            while other.take().await?.is_none() {
                tokio::task::yield_now().await;
            }
            std::future::pending::<Result<(), Error>>().await
        });
        assert_eq!(lost.await.expect("the store answers"), None);
        assert!(one.take().await.expect("the store answers").is_none(), "the other one has it");
    }
}
