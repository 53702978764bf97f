//! The memberships as a list of parts, each with the version of its observation.

use serde::{Deserialize, Serialize};

use super::{Entry, Known, Memberships};
use crate::{field::Value, version::Version};

/// A part of a membership: each has a value and a version of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// Whether the user is a member.
    Member,
    /// The roles.
    Roles,
    /// The permissions that were listed for the member.
    Permissions,
    /// Whether the member cannot sign in to the organization.
    IsSuspended,
    /// When the user joined the organization.
    JoinedOn,
}

/// The value of one part, with the version of its observation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MembershipPart<'a> {
    /// The organization; `None`: each one without a part of its own, which has [`Part::Member`] alone.
    pub code: Option<&'a str>,
    /// Which part it is.
    pub part: Part,
    /// The value, with ids of roles and permissions.
    pub value: Value,
    /// Version of the observation.
    pub version: &'a Version,
}

impl Memberships {
    /// Returns the parts of each membership and the absences, sorted by code; last the absence of every other code.
    pub fn parts(&self) -> impl Iterator<Item = MembershipPart<'_>> {
        let others = self.absent.iter().map(|version| absence(None, version));
        self.entries.iter().flat_map(|(code, entry)| entry.parts(code)).chain(others)
    }

    /// Returns the version of the observation that decides a part: of its value, of a newer absence of the member, or, for
    /// permissions, of newer roles, which make them unknown. `None` while no observation does.
    pub fn decided_by(&self, code: Option<&str>, part: Part) -> Option<&Version> {
        let Some(entry) = code.and_then(|code| self.entries.get(code)) else { return self.absent.as_ref() };
        entry.version(part).or(entry.absent.as_ref())
    }
}

impl Entry {
    fn parts<'a>(&'a self, code: &'a str) -> impl Iterator<Item = MembershipPart<'a>> {
        let Self { absent, member, roles, permissions, is_suspended, joined_on } = self;
        let of = |part, value, version| MembershipPart { code: Some(code), part, value, version };
        let ids = |known: &Known<Vec<String>>| Value::Codes(known.value.clone());
        let parts = [
            absent.as_ref().map(|version| absence(Some(code), version)),
            member.as_ref().map(|version| of(Part::Member, Value::Flag(true), version)),
            roles.as_ref().map(|known| of(Part::Roles, ids(known), &known.version)),
            permissions.as_ref().map(|known| of(Part::Permissions, ids(known), &known.version)),
            is_suspended.as_ref().map(|known| of(Part::IsSuspended, known.value.into(), &known.version)),
            joined_on.as_ref().map(|known| of(Part::JoinedOn, known.value.into(), &known.version)),
        ];
        parts.into_iter().flatten()
    }

    fn version(&self, part: Part) -> Option<&Version> {
        let roles = self.roles.as_ref().map(|known| &known.version);
        match part {
            Part::Member => self.member.as_ref(),
            Part::Roles => roles,
            Part::Permissions if self.permissions().is_none() => roles.filter(|_| self.permissions.is_some()),
            Part::Permissions => self.permissions.as_ref().map(|known| &known.version),
            Part::IsSuspended => self.is_suspended.as_ref().map(|known| &known.version),
            Part::JoinedOn => self.joined_on.as_ref().map(|known| &known.version),
        }
    }
}

fn absence<'a>(code: Option<&'a str>, version: &'a Version) -> MembershipPart<'a> {
    MembershipPart { code, part: Part::Member, value: Value::Flag(false), version }
}
