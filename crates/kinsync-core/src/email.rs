//! Ownership of email addresses. An email address is an attribute of a user, never an identity.
//!
//! Of the live users with the same newest email address, the user with the smallest (first version, id) owns it. The
//! owner depends on the set of observations alone, not on their order.

use crate::{
    field::{Field, Value},
    ids::UserId,
    state::UserState,
    version::{Rank, Version},
};

impl UserState {
    /// Returns the newest email address of this user; `None` for a deleted user and for a user without an address.
    /// The document shows it only if this user owns it.
    pub fn claimed_email(&self) -> Option<&str> {
        if self.is_live() { self.text(Field::Email) } else { None }
    }

    /// Returns whether Kinde verified this address: one snapshot contained the address and its verification. A later
    /// observation of the address, even of the same text, makes the verification unknown again.
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

/// Returns an address without surrounding white space and with ASCII letters in lower case. Two addresses with the same result
/// are similar. Other letters stay: some of them have the lower case of an ASCII letter and reach another mailbox.
pub fn folded(address: &str) -> String {
    address.trim().to_ascii_lowercase()
}

/// Returns the owner of an address among its claimants, or `None` without claimants.
///
/// The caller passes only users with the address as their [`UserState::claimed_email`], or as their
/// [`UserState::stored_email`] where the store changes its form.
pub fn owner<'a>(claimants: impl IntoIterator<Item = (&'a UserId, &'a UserState)>) -> Option<&'a UserId> {
    claimants.into_iter().min_by_key(|(id, state)| seniority(id, state)).map(|(id, _)| id)
}

/// Returns the sort key of ownership: the smallest one owns. A user known from tokens alone sorts after all others.
fn seniority<'a>(id: &'a UserId, state: &UserState) -> (bool, Option<Version>, &'a UserId) {
    (state.is_provisional(), state.first_version(), id)
}
