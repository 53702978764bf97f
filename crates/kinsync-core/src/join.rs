//! How two states become one: register by register, the greater one stays.
//!
//! Each register is a join semilattice (a maximum or a minimum of a total order), and so is their
//! product: associative, commutative, idempotent. See Shapiro et al., "Conflict-free Replicated
//! Data Types" (2011), section 2.

use std::collections::btree_map::Entry;

use crate::{observation::Observation, state::UserState};

impl UserState {
    /// Everything that either state knows.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (field, register) in other.fields {
            match self.fields.entry(field) {
                Entry::Vacant(vacant) => {
                    vacant.insert(register);
                }
                Entry::Occupied(mut known) if register > *known.get() => {
                    known.insert(register);
                }
                Entry::Occupied(_) => {}
            }
        }
        self.deleted = greatest(self.deleted, other.deleted);
        self.confirmed = greatest(self.confirmed, other.confirmed);
        self.first = smallest(self.first, other.first);
        self.last_seen = greatest(self.last_seen, other.last_seen);
        self.last_signed_in = greatest(self.last_signed_in, other.last_signed_in);
        self
    }

    /// This state and one more observation of the same user.
    #[must_use]
    pub fn observe(self, observation: &Observation) -> Self {
        self.join(Self::of(observation))
    }
}

/// The greater of two; nothing known is less than anything.
fn greatest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    a.max(b)
}

/// The smaller of two; nothing known is more than anything.
fn smallest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (known, None) | (None, known) => known,
    }
}
