//! One scan at a time, among all processes that share a store.
//!
//! No clock of one machine is compared with another's: a lease is over when nobody renewed it for
//! as long as it duration while one process watched, or at once when its process was one of this machine
//! and is no more. A process that lost its lease without noticing
//! does no harm: what it still writes are observations, and joins do not mind.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    random,
    state_records::read,
    store::{Error, Store},
};

/// Where it is kept.
const KEY: &str = "reconcile.lease";

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    /// Who has it; `None`: nobody.
    holder: Option<String>,
    /// Which of the holder's leases it is.
    term: u64,
    /// Where its process is, so that others there can see whether it lives.
    place: Option<ProcessLocation>,
}

/// A process, as others on the same machine see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct ProcessLocation {
    /// This start of the machine, and this world of process ids in it.
    machine: String,
    pid: u32,
}

impl ProcessLocation {
    /// Of this process; `None` where nobody could see it.
    fn here() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let pids = std::fs::read_link("/proc/self/ns/pid").ok()?;
        Some(Self { machine: format!("{} {}", boot.trim(), pids.display()), pid: std::process::id() })
    }

    /// Whether it was on this machine and is no more. Another process with its id is taken for it.
    fn has_exited(&self) -> bool {
        let is_here = Self::here().is_some_and(|here| here.machine == self.machine);
        is_here && !std::path::Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

/// Watches who has the lease, and takes it.
#[derive(Debug)]
pub(super) struct Leases {
    store: Arc<dyn Store>,
    holder: String,
    duration: Duration,
    /// The revision that was seen last, and since when.
    seen: Mutex<Option<(i64, Instant)>>,
}

/// Held for as long as [`Lease::keep`] is polled, or until it is released. One that is dropped is over after its time.
#[derive(Debug)]
pub(super) struct Lease {
    store: Arc<dyn Store>,
    record: Record,
    revision: Mutex<i64>,
    duration: Duration,
}

impl Leases {
    pub(super) fn new(store: Arc<dyn Store>, holder: String, duration: Duration) -> Self {
        Self { store, holder, duration, seen: Mutex::default() }
    }

    /// Takes the lease; `Err` inside: who has it.
    pub(super) async fn take(&self) -> Result<Result<Lease, String>, Error> {
        let saved = self.store.state(KEY).await?;
        let revision = saved.as_ref().map_or(0, |saved| saved.revision);
        let record: Record = read(saved.as_ref());
        let has_exited = record.place.as_ref().is_some_and(ProcessLocation::has_exited);
        if let Some(holder) = record.holder.filter(|_| !has_exited && !self.is_over(revision)) {
            return Ok(Err(holder));
        }
        let record = Record {
            holder: Some(self.holder.clone()),
            term: random::number(),
            place: ProcessLocation::here(),
        };
        if !put(&*self.store, &record, revision).await? {
            return Ok(Err("another process".into()));
        }
        let (store, revision) = (Arc::clone(&self.store), Mutex::new(revision + 1));
        Ok(Ok(Lease { store, record, revision, duration: self.duration }))
    }

    /// Whether this revision was there for as long as a lease duration.
    fn is_over(&self, revision: i64) -> bool {
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

impl Lease {
    /// Renews it; ends when somebody else may have it.
    pub(super) async fn keep(&self) {
        let mut renewed = Instant::now();
        // Stops well before another process may take it.
        while renewed.elapsed() < self.duration.mul_f64(0.8) {
            tokio::time::sleep(self.duration / 4).await;
            let began = Instant::now();
            match renew(&*self.store, &self.record, self.revision()).await {
                Ok(Some(next)) => {
                    *self.revision.lock().unwrap_or_else(PoisonError::into_inner) = next;
                    renewed = began;
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(error = crate::breaker::error_chain(&error), "the lease was not renewed");
                }
            }
        }
    }

    /// Gives it back, so that the next one need not wait. A failure does no harm.
    pub(super) async fn release(self) {
        if let Err(error) = put(&*self.store, &Record::default(), self.revision()).await {
            tracing::debug!(
                error = crate::breaker::error_chain(&error),
                "the lease was not given back; it runs out"
            );
        }
    }

    /// Which lease this is.
    pub(super) fn term(&self) -> u64 {
        self.record.term
    }

    fn revision(&self) -> i64 {
        *self.revision.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The new revision; `None`: somebody else has it.
async fn renew(store: &dyn Store, record: &Record, revision: i64) -> Result<Option<i64>, Error> {
    if put(store, record, revision).await? {
        return Ok(Some(revision + 1));
    }
    // Perhaps it was we who wrote, and only the answer was lost.
    let saved = store.state(KEY).await?;
    let is_ours = read::<Record>(saved.as_ref()) == *record;
    Ok(saved.filter(|_| is_ours).map(|saved| saved.revision))
}

async fn put(store: &dyn Store, record: &Record, revision: i64) -> Result<bool, Error> {
    let value = serde_json::to_value(record).expect("a name and a number are JSON");
    store.put_state(KEY, &value, revision).await
}
