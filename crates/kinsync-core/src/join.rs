//! The join of two states: register by register, the greater one wins. Memberships and properties join by themselves.
//!
//! Each register is a join semilattice (the maximum or minimum of a total order), and so is their product. The join is
//! therefore associative, commutative and idempotent. See Shapiro et al., "Conflict-free Replicated
//! Data Types" (2011), section 2.

use crate::{
    observation::Observation,
    register::{greatest, smallest, with_register},
    state::UserState,
};

impl UserState {
    /// Returns the join of two states of the same user.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (field, register) in other.fields {
            self.fields = with_register(self.fields, field, register);
        }
        self.deleted = greatest(self.deleted, other.deleted);
        self.confirmed = greatest(self.confirmed, other.confirmed);
        self.first.event = smallest(self.first.event, other.first.event);
        self.first.created_on = smallest(self.first.created_on, other.first.created_on);
        self.first.read = smallest(self.first.read, other.first.read);
        self.directory = self.directory.join(other.directory);
        self.last_seen = greatest(self.last_seen, other.last_seen);
        self.last_signed_in = greatest(self.last_signed_in, other.last_signed_in);
        // An erased state absorbs every other one, and its deletion never changes: the log contains no later one.
        match greatest(self.erased.take(), other.erased) {
            Some(deletion) => Self::erased(deletion),
            None => self,
        }
    }

    /// Returns the join of this state and one more observation of the same user.
    #[must_use]
    pub fn observe(self, observation: &Observation) -> Self {
        self.join(Self::of(observation))
    }
}
