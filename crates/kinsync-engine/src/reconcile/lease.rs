//! A lease in the store: one scan at a time among all processes that share the store.
//!
//! The lease compares no clocks of different machines. It expires when a watching process has seen no renewal for the
//! duration of the lease, or at once if its process ran on this machine and has exited. A process that lost its lease
//! unnoticed does no harm: it writes observations, and joins accept them in any order.

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

/// Key of the record in the store.
const KEY: &str = "reconcile.lease";

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    /// Name of the process with the lease; `None` if the lease is free.
    holder: Option<String>,
    /// Random id of this lease.
    term: u64,
    /// Location of the process, so that processes on the same machine can detect its exit.
    place: Option<ProcessLocation>,
}

/// Identifies a process on a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct ProcessLocation {
    /// Boot id of the machine and its namespace of process ids.
    machine: String,
    pid: u32,
}

impl ProcessLocation {
    /// Returns the location of this process; `None` on a system without `/proc`.
    fn here() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let pids = std::fs::read_link("/proc/self/ns/pid").ok()?;
        Some(Self { machine: format!("{} {}", boot.trim(), pids.display()), pid: std::process::id() })
    }

    /// Returns whether the process ran on this machine and has exited. A new process with the same id counts as the old
    /// one.
    fn has_exited(&self) -> bool {
        let is_here = Self::here().is_some_and(|here| here.machine == self.machine);
        is_here && !std::path::Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

/// Takes the lease when it is free or expired.
#[derive(Debug)]
pub(super) struct Leases {
    store: Arc<dyn Store>,
    holder: String,
    duration: Duration,
    /// Last seen revision, and since when.
    seen: Mutex<Option<(i64, Instant)>>,
}

/// A taken lease. Valid while [`Lease::keep`] is polled, or until its release. A dropped lease expires after its duration.
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

    /// Takes the lease. Returns the name of the holder as the inner `Err` if another process has it.
    pub(super) async fn take(&self) -> Result<Result<Lease, String>, Error> {
        let saved = self.store.state(KEY).await?;
        let revision = saved.as_ref().map_or(0, |saved| saved.revision);
        let record: Record = read(saved.as_ref());
        let has_exited = record.place.as_ref().is_some_and(ProcessLocation::has_exited);
        if let Some(holder) = record.holder.filter(|_| !has_exited && !self.has_expired(revision)) {
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

impl Lease {
    /// Renews the lease periodically. Returns when another process may have taken it.
    pub(super) async fn keep(&self) {
        let mut renewed = Instant::now();
        // Ends well before another process may take the lease.
        while renewed.elapsed() < self.duration.mul_f64(0.8) {
            tokio::time::sleep(self.duration / 4).await;
            let started = Instant::now();
            match renew(&*self.store, &self.record, self.revision()).await {
                Ok(Some(next)) => {
                    *self.revision.lock().unwrap_or_else(PoisonError::into_inner) = next;
                    renewed = started;
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(error = crate::breaker::error_chain(&error), "the lease was not renewed");
                }
            }
        }
    }

    /// Releases the lease, so that the next process does not wait for its expiry. A failure is only logged.
    pub(super) async fn release(self) {
        if let Err(error) = put(&*self.store, &Record::default(), self.revision()).await {
            tracing::debug!(
                error = crate::breaker::error_chain(&error),
                "the lease was not released; it expires"
            );
        }
    }

    /// Returns the id of this lease.
    pub(super) fn term(&self) -> u64 {
        self.record.term
    }

    fn revision(&self) -> i64 {
        *self.revision.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews the lease. Returns the new revision, or `None` if another process has the lease.
async fn renew(store: &dyn Store, record: &Record, revision: i64) -> Result<Option<i64>, Error> {
    if put(store, record, revision).await? {
        return Ok(Some(revision + 1));
    }
    // The previous renewal may have been written although its response was lost.
    let saved = store.state(KEY).await?;
    let is_ours = read::<Record>(saved.as_ref()) == *record;
    Ok(saved.filter(|_| is_ours).map(|saved| saved.revision))
}

async fn put(store: &dyn Store, record: &Record, revision: i64) -> Result<bool, Error> {
    let value = serde_json::to_value(record).expect("a name and a number are JSON");
    store.put_state(KEY, &value, revision).await
}
