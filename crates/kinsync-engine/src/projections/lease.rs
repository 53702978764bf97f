//! Which process computes: usually one. Two at a time do no harm, only the same work twice.

use serde::{Deserialize, Serialize};

use crate::{
    random,
    state_records::{self, Key, Record},
    store::{Error, Store},
};

/// Record of the process that computes.
pub(crate) const KEY: Key =
    Key::new("projections.lease", "two processes may compute the same figures at the same time");

/// Name of the process that computes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Holder(String);

/// A process that wants to compute. No clocks are compared: a process takes over when it has seen no renewal for a whole interval.
#[derive(Debug)]
pub(super) struct Lease {
    name: Holder,
    /// Revision of the record of another process at the last attempt.
    seen: Option<i64>,
}

impl Lease {
    pub(super) fn new() -> Self {
        Self { name: Holder(format!("{:016x}", random::number::<u64>())), seen: None }
    }

    /// Takes or renews the lease. Returns whether this process has it.
    pub(super) async fn take(&mut self, store: &dyn Store) -> Result<bool, Error> {
        let known: Record<Holder> = state_records::read(store, &KEY).await?;
        let revision = known.revision;
        let is_free = known.value == Holder::default() || known.value == self.name;
        if !is_free && self.seen != Some(revision) {
            self.seen = Some(revision);
            return Ok(false);
        }
        state_records::put(store, &KEY, &Record { value: self.name.clone(), ..known }).await
    }

    /// Releases the lease, so that another process takes it at once.
    pub(super) async fn release(&self, store: &dyn Store) -> Result<(), Error> {
        let known: Record<Holder> = state_records::read(store, &KEY).await?;
        if known.value == self.name {
            state_records::put(store, &KEY, &Record { value: Holder::default(), ..known }).await?;
        }
        Ok(())
    }
}
