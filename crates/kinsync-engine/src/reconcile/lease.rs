//! A lease in the store: one process reads Kinde and writes what it found, among all processes that share the store.
//!
//! The lease compares no clocks of different machines. It expires when a watching process has seen no renewal for the
//! duration of the lease, or at once if its process ran on this machine and has exited. A process that was suspended for
//! longer than its lease may continue after another one took it: its records are refused, because they carry an older term
//! ([`state_records`]), and its observations do no harm, because joins accept them in any order.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use super::budget;
use crate::{
    state_records::{self, Key, Record, Term},
    store::{Error, Store},
};

pub(super) const KEY: Key = Key::new("reconcile.lease", "two processes may scan at the same time");

/// Longest pause between two reads of a lease that another process holds.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Value of the record. The term of the record is the term of the newest lease.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Holder {
    /// Name of the process with the lease; `None` if the lease is free.
    name: Option<String>,
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
    name: String,
    duration: Duration,
    /// Last seen revision, and since when.
    seen: Mutex<Option<(i64, Instant)>>,
    /// Notified when this process releases the lease.
    released: Arc<Notify>,
}

/// A taken lease. Valid while [`Lease::keep`] is polled, or until its release. A dropped lease expires after its duration.
#[derive(Debug)]
pub(super) struct Lease {
    store: Arc<dyn Store>,
    holder: Holder,
    term: Term,
    revision: Mutex<i64>,
    duration: Duration,
    released: Arc<Notify>,
}

impl Leases {
    pub(super) fn new(store: Arc<dyn Store>, name: String, duration: Duration) -> Self {
        Self { store, name, duration, seen: Mutex::default(), released: Arc::default() }
    }

    /// Takes the lease. Returns the name of the holder as the inner `Err` if another process has it.
    pub(super) async fn take(&self) -> Result<Result<Lease, String>, Error> {
        let known: Record<Holder> = state_records::read(&*self.store, &KEY).await?;
        let revision = known.revision;
        if let Some(name) = self.active(&known) {
            return Ok(Err(name.to_owned()));
        }
        // An operator may have removed the record of the lease.
        let fenced = state_records::read::<serde_json::Value>(&*self.store, &budget::KEY).await?.term;
        let term = Term(known.term.max(fenced).0 + 1);
        let holder = Holder { name: Some(self.name.clone()), place: ProcessLocation::here() };
        let record = Record { value: holder, term, revision };
        if !state_records::put(&*self.store, &KEY, &record).await? {
            return Ok(Err("another process".into()));
        }
        let lease = Lease {
            store: Arc::clone(&self.store),
            holder: record.value,
            term,
            revision: Mutex::new(revision + 1),
            duration: self.duration,
            released: Arc::clone(&self.released),
        };
        // From here on a process with an older lease draws nothing from the budget.
        match budget::seal(&*self.store, term).await {
            Ok(true) => Ok(Ok(lease)),
            Ok(false) => Ok(Err("another process".into())),
            Err(error) => {
                lease.release().await;
                Err(error)
            }
        }
    }

    /// Waits until the lease is free or expired. The pauses grow with the time waited, and a release by this process ends
    /// them at once.
    pub(super) async fn wait_until_free(&self) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            let released = self.released.notified();
            if self.active_term().await?.is_none() {
                return Ok(());
            }
            let pause = (started.elapsed() / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            _ = tokio::time::timeout(pause, released).await;
        }
    }

    /// Returns the term of the lease that a process holds; `None` if the lease is free or expired.
    pub(super) async fn active_term(&self) -> Result<Option<Term>, Error> {
        let known: Record<Holder> = state_records::read(&*self.store, &KEY).await?;
        Ok(self.active(&known).map(|_| known.term))
    }

    /// Returns the name of the process with the lease.
    fn active<'a>(&self, known: &'a Record<Holder>) -> Option<&'a str> {
        let name = known.value.name.as_deref()?;
        let has_exited = known.value.place.as_ref().is_some_and(ProcessLocation::has_exited);
        (!has_exited && !self.has_expired(known.revision)).then_some(name)
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
            match self.renew().await {
                Ok(true) => renewed = started,
                Ok(false) => return,
                Err(error) => {
                    tracing::debug!(error = crate::breaker::error_chain(&error), "the lease was not renewed");
                }
            }
        }
    }

    /// Renews the lease. Returns `false` if another process has it.
    async fn renew(&self) -> Result<bool, Error> {
        if self.put(self.holder.clone()).await? {
            self.set_revision(self.revision() + 1);
            return Ok(true);
        }
        // The previous renewal may have been written although its response was lost.
        let saved: Record<Holder> = state_records::read(&*self.store, &KEY).await?;
        self.set_revision(saved.revision);
        Ok(saved.term == self.term && saved.value == self.holder)
    }

    /// Releases the lease, so that the next process does not wait for its expiry. A failure is only logged.
    pub(super) async fn release(self) {
        if let Err(error) = self.put(Holder::default()).await {
            tracing::debug!(
                error = crate::breaker::error_chain(&error),
                "the lease was not released; it expires"
            );
        }
        self.released.notify_waiters();
    }

    /// Returns the number of this lease.
    pub(super) fn term(&self) -> Term {
        self.term
    }

    async fn put(&self, value: Holder) -> Result<bool, Error> {
        let record = Record { value, term: self.term, revision: self.revision() };
        state_records::put(&*self.store, &KEY, &record).await
    }

    fn revision(&self) -> i64 {
        *self.revision.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_revision(&self, revision: i64) {
        *self.revision.lock().unwrap_or_else(PoisonError::into_inner) = revision;
    }
}
