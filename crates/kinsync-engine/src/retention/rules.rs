//! How long entries of each type are kept.

use std::{collections::BTreeMap, time::Duration};

use kinsync_core::Micros;

use super::KEPT;
use crate::{log_entry::LogEntry, store::Kinds};

/// Shortest age at which an entry is removed. Kinde repeats a delivery for some days, and the log recognizes an event without a time
/// of its own by its id.
pub const MIN_AGE: Duration = Duration::from_hours(7 * 24);

/// How long entries of each type are kept. The default keeps all of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// By type.
    pub by_kind: BTreeMap<String, Duration>,
    /// For all other types; `None` keeps them.
    pub others: Option<Duration>,
}

impl Rules {
    /// Returns whether all entries are kept.
    pub fn keep_all(&self) -> bool {
        self.by_kind.is_empty() && self.others.is_none()
    }

    /// Returns whether an entry is to be removed.
    pub(super) fn is_old(&self, entry: &LogEntry, now: Micros) -> bool {
        let age = self.by_kind.get(&entry.kind).copied().or(self.others);
        age.is_some_and(|age| entry.received_at < before(now, age))
    }

    /// Returns the searches that find all entries to be removed.
    pub(super) fn searches(&self) -> Vec<(Kinds, Duration)> {
        let named = self.by_kind.iter().map(|(kind, age)| (Kinds::One(kind.clone()), *age));
        let except = self.by_kind.keys().cloned().chain(KEPT.map(str::to_owned));
        let others = self.others.map(|age| (Kinds::Except(except.collect()), age));
        named.chain(others).collect()
    }
}

/// Returns the time before which entries are older than this.
pub(super) fn before(now: Micros, age: Duration) -> Micros {
    Micros(now.0.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX)))
}
