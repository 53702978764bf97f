//! All that is known of one user: a product of registers, each of which only ever grows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    field::{Field, Profile, Value},
    observation::{Observation, What},
    version::{Micros, Rank, Version},
};

/// The newest value of one field, with the version that made it so.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Register {
    // The order of the fields is the order of the join: version first, then value.
    /// When the value was told.
    pub version: Version,
    /// What was told.
    pub value: Value,
}

/// All that is known of one user. The default is a user of whom nothing is known.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserState {
    /// The newest value of each field that was ever told.
    pub fields: BTreeMap<Field, Register>,
    /// The newest deletion: the tombstone.
    pub deleted: Option<Version>,
    /// The newest confirmation by two reads that the user exists.
    pub confirmed: Option<Version>,
    /// The oldest version of the user's events and snapshots, and Kinde's `created_on`.
    pub first: Option<Version>,
    /// The newest authenticated request.
    pub last_seen: Option<Micros>,
    /// The newest sign-in at Kinde.
    pub last_signed_in: Option<Micros>,
}

impl UserState {
    /// What is known when this observation is all there is.
    pub fn of(observation: &Observation) -> Self {
        let version = &observation.version;
        let known = Self { first: ranked_version(version), ..Self::default() };
        match &observation.what {
            What::Fields(profile) => known.with_fields(profile, version),
            What::Exists(profile) => {
                Self { confirmed: Some(version.clone()), ..known }.with_fields(profile, version)
            }
            What::Deleted => Self { deleted: Some(version.clone()), ..known },
            What::SignedIn(at) => Self { last_signed_in: Some(*at), ..known },
            What::Seen(at) => Self { last_seen: Some(*at), ..Self::default() },
        }
    }

    fn with_fields(mut self, profile: &Profile, version: &Version) -> Self {
        for (field, value) in profile.iter() {
            self.fields.insert(field, Register { version: version.clone(), value: value.clone() });
        }
        if let Some(Value::Time(created_on)) = profile.value(Field::CreatedOn) {
            let created = Version { at: *created_on, rank: Rank::Event, tie: "".into() };
            self.first = Some(self.first.map_or(created.clone(), |first| first.min(created)));
        }
        self
    }

    /// Whether the user is not deleted. A deletion is outweighed only by a later confirmation;
    /// at equal time the deletion wins.
    pub fn is_live(&self) -> bool {
        match (&self.deleted, &self.confirmed) {
            (None, _) => true,
            (Some(deleted), confirmed) => confirmed.as_ref().is_some_and(|c| c.at > deleted.at),
        }
    }

    /// Whether something newer than the tombstone was told of a deleted user. No event restores
    /// a user, so this asks for two reads of the Management API.
    pub fn needs_check(&self) -> bool {
        let Some(deleted) = &self.deleted else { return false };
        let changed_after = self.fields.values().any(|r| r.version.at > deleted.at);
        let signed_in_after = self.last_signed_in.is_some_and(|at| at > deleted.at);
        !self.is_live() && (changed_after || signed_in_after)
    }

    /// Whether this is the other state but for when the user was last seen.
    pub fn eq_ignoring_last_seen(&self, other: &Self) -> bool {
        let Self { fields, deleted, confirmed, first, last_seen: _, last_signed_in } = self;
        fields == &other.fields
            && (deleted, confirmed, first) == (&other.deleted, &other.confirmed, &other.first)
            && last_signed_in == &other.last_signed_in
    }

    /// Whether nothing but tokens has told of this user.
    pub fn is_provisional(&self) -> bool {
        self.first.is_none()
    }

    /// Whether Kinde has told no field of this user: sign-ins tell none, and tokens are not Kinde's word.
    pub fn has_no_kinde_fields(&self) -> bool {
        self.fields.values().all(|register| register.version.is_provisional())
    }

    /// The newest value of a field, if it was ever told.
    pub fn value(&self, field: Field) -> Option<&Value> {
        self.fields.get(&field).map(|register| &register.value)
    }

    /// The newest text of a field; `None` also when it is null.
    pub fn text(&self, field: Field) -> Option<&str> {
        match self.value(field) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// The version, if it counts for who came first: a token's word does not.
fn ranked_version(version: &Version) -> Option<Version> {
    (!version.is_provisional()).then(|| version.clone())
}
