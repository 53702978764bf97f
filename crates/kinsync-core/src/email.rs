//! Who owns an address. An email is an attribute, never an identity.
//!
//! The owner of an address is the live user with the smallest (first version, id) among those
//! whose newest email it is. That depends on the set of observations alone, not on their order.

use crate::{
    field::{Field, Value},
    ids::UserId,
    state::UserState,
    version::{Rank, Version},
};

impl UserState {
    /// The address that this user would show if nobody else had a better claim; `None` for a
    /// deleted user and for one without an email.
    pub fn claimed_email(&self) -> Option<&str> {
        if self.is_live() { self.text(Field::Email) } else { None }
    }

    /// Whether Kinde said that just this address is verified: one snapshot told of both. An address
    /// that was told of later, even the same one, is not known to be.
    pub fn has_verified_email(&self) -> bool {
        let of = |field| self.fields.get(&field);
        let (Some(email), Some(verified)) = (of(Field::Email), of(Field::EmailVerified)) else {
            return false;
        };
        self.claimed_email().is_some()
            && verified.value == Value::Flag(true)
            && verified.version == email.version
            && email.version.rank == Rank::Snapshot
    }
}

/// Of the users who claim one address, the one who owns it.
///
/// The caller passes only users for whom [`UserState::claimed_email`] is the address.
pub fn owner<'a>(claimants: impl IntoIterator<Item = (&'a UserId, &'a UserState)>) -> Option<&'a UserId> {
    claimants.into_iter().min_by_key(|(id, state)| seniority(id, state)).map(|(id, _)| id)
}

/// Smaller is older. A user known by tokens alone comes after all others.
fn seniority<'a>(id: &'a UserId, state: &'a UserState) -> (bool, Option<&'a Version>, &'a UserId) {
    (state.is_provisional(), state.first.as_ref(), id)
}
