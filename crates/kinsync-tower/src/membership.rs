//! The membership of a user in the organization of the token, as the store has it.

use kinsync_core::Organization;

/// What the store has of the user in the organization of the token. As fresh as the refusal of deleted users: what any process
/// stores of the user, the organization or a role is visible within a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Membership<'a> {
    /// The token names no organization.
    NoOrganization,
    /// No source has listed the memberships of the user, or there is no document because the store did not answer.
    Unknown,
    /// The user is no member: it never was one or has left, or the organization was deleted.
    NotMember,
    /// The user is a member and suspended in this organization. Only scans that compare roles observe such a suspension.
    Suspended(&'a Organization),
    /// The user is a member. Its roles and permissions may be unknown.
    Member(&'a Organization),
}

impl<'a> Membership<'a> {
    /// Finds the membership among those of a document, which are sorted by code.
    pub(crate) fn of(code: Option<&str>, memberships: Option<&'a [Organization]>) -> Self {
        let Some(code) = code else { return Self::NoOrganization };
        let Some(memberships) = memberships else { return Self::Unknown };
        match memberships.binary_search_by(|membership| membership.code.as_str().cmp(code)) {
            Ok(found) if memberships[found].is_suspended == Some(true) => {
                Self::Suspended(&memberships[found])
            }
            Ok(found) => Self::Member(&memberships[found]),
            Err(_) => Self::NotMember,
        }
    }
}
