//! The state of one user: a product of registers. A register only ever grows.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    directory::{self, Directory},
    field::{Field, Organization, Profile, Value},
    membership::Memberships,
    observation::{Observation, What},
    property::Properties,
    register::{Register, with_register},
    version::{Micros, Rank, Version},
};

/// The smallest versions of a user, one for each kind of source. They decide the ownership of an email address.
///
/// The version of a read is the time of its request less an allowance: early on purpose, so that an event during the read
/// wins. It is a poor estimate of the age of a user and is used only while Kinde's `created_on` is unknown.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstVersions {
    /// Smallest version of an event.
    pub event: Option<Version>,
    /// Smallest `created_on` that Kinde returned.
    pub created_on: Option<Micros>,
    /// Smallest version of a read.
    pub read: Option<Version>,
}

/// The state of one user. The default is the state without observations.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserState {
    /// The newest value of each observed field.
    #[serde(deserialize_with = "fields")]
    pub fields: BTreeMap<Field, Register>,
    /// The newest deletion (the tombstone).
    pub deleted: Option<Version>,
    /// The newest confirmation, by two reads of Kinde, that the user exists.
    pub confirmed: Option<Version>,
    /// The smallest versions of the user's events, reads and `created_on`. Tokens do not count.
    pub first: FirstVersions,
    /// Time of the newest authenticated request.
    pub last_seen: Option<Micros>,
    /// Time of the newest sign-in at Kinde.
    pub last_signed_in: Option<Micros>,
    /// What is known of the organizations, roles and permissions that the memberships refer to.
    #[serde(default, skip_serializing_if = "Directory::is_empty")]
    pub directory: Directory,
    /// The deletion after which the user was erased. Such a state contains this deletion and nothing else: see [`Self::erased`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<Version>,
}

impl UserState {
    /// Returns the state of a user that was erased after this deletion. A join with any other state adds nothing to it.
    pub fn erased(deletion: Version) -> Self {
        Self { deleted: Some(deletion.clone()), erased: Some(deletion), ..Self::default() }
    }

    /// Returns the state with this observation only.
    pub fn of(observation: &Observation) -> Self {
        let version = &observation.version;
        let empty = Self { first: FirstVersions::of(version), ..Self::default() };
        match &observation.what {
            What::Fields(profile) => empty.with_fields(profile, version),
            What::Exists(profile) => {
                Self { confirmed: Some(version.clone()), ..empty }.with_fields(profile, version)
            }
            What::Membership { code, membership } => {
                let read = Memberships::read(code, membership.as_ref(), version);
                empty.with_register(Field::Organizations, version.clone(), Value::Memberships(read))
            }
            What::Deleted => Self { deleted: Some(version.clone()), ..empty },
            What::SignedIn(at) => Self { last_signed_in: Some(*at), ..empty },
            What::Seen(at) => Self { last_seen: Some(*at), ..Self::default() },
        }
    }

    fn with_fields(mut self, profile: &Profile, version: &Version) -> Self {
        for (field, value) in profile.iter() {
            self = self.with_register(field, version.clone(), value.clone());
        }
        if let Some(Value::Time(created_on)) = profile.value(Field::CreatedOn) {
            self.first.created_on = Some(*created_on);
        }
        self
    }

    /// Returns the state with the join of one more register. Lists of memberships, in the forms of events and of scans, become
    /// one register.
    #[must_use]
    pub fn with_register(mut self, field: Field, version: Version, value: Value) -> Self {
        let (field, value) = match (field, value) {
            (Field::Organizations | Field::OrganizationCodes, value) => {
                (Field::Organizations, Value::Memberships(memberships(value, &version)))
            }
            other => other,
        };
        self.fields = with_register(self.fields, field, Register { version, value });
        self
    }

    /// Returns the smaller of the first event and Kinde's `created_on`; the first read if `created_on` is unknown and no
    /// event is older. `None` for a user that is known from tokens alone.
    pub fn first_version(&self) -> Option<Version> {
        let FirstVersions { event, created_on, read } = &self.first;
        let created = created_on.map(|at| Version { at, rank: Rank::Event, tie: "".into() });
        event.iter().cloned().chain(created.or_else(|| read.clone())).min()
    }

    /// Returns whether the user is not deleted. Only a confirmation with a later time overrides a deletion; at equal
    /// times the deletion wins.
    pub fn is_live(&self) -> bool {
        match (&self.deleted, &self.confirmed) {
            (None, _) => true,
            (Some(deleted), confirmed) => confirmed.as_ref().is_some_and(|c| c.at > deleted.at),
        }
    }

    /// Returns whether a deleted user has an observation newer than the tombstone. No event restores a user, so the
    /// caller schedules two reads of the Management API.
    pub fn needs_check(&self) -> bool {
        let Some(deleted) = &self.deleted else { return false };
        let changed_after = self.fields.values().any(|r| r.version.at > deleted.at);
        let signed_in_after = self.last_signed_in.is_some_and(|at| at > deleted.at);
        !self.is_live() && (changed_after || signed_in_after)
    }

    /// Returns whether the two states are equal, apart from [`Self::last_seen`].
    pub fn eq_ignoring_last_seen(&self, other: &Self) -> bool {
        let Self { fields, deleted, confirmed, first, last_seen: _, last_signed_in, directory, erased } =
            self;
        (fields, directory, erased) == (&other.fields, &other.directory, &other.erased)
            && (deleted, confirmed, first) == (&other.deleted, &other.confirmed, &other.first)
            && last_signed_in == &other.last_signed_in
    }

    /// Returns whether the user is known from tokens alone.
    pub fn is_provisional(&self) -> bool {
        self.first == FirstVersions::default()
    }

    /// Returns whether no event or snapshot has set a field. Sign-in events carry no fields, and fields from tokens are
    /// provisional.
    pub fn has_no_kinde_fields(&self) -> bool {
        self.fields.values().all(|register| register.version.is_provisional())
    }

    /// Returns the newest value of a field, or `None` if the field was never observed.
    pub fn value(&self, field: Field) -> Option<&Value> {
        self.fields.get(&field).map(|register| &register.value)
    }

    /// Returns the registers of the memberships; `None` while no source has observed one.
    pub fn memberships(&self) -> Option<&Memberships> {
        match self.value(Field::Organizations)? {
            Value::Memberships(memberships) => Some(memberships),
            _ => None,
        }
    }

    /// Returns the registers of the properties; `None` while no read has observed one.
    pub fn properties(&self) -> Option<&Properties> {
        match self.value(Field::Properties)? {
            Value::Properties(properties) => Some(properties),
            _ => None,
        }
    }

    /// Returns the state with what this directory has of the objects that the memberships refer to, and without other objects.
    /// A membership ends with its organization, unless a newer observation contains it. A directory without all of these
    /// objects changes nothing.
    #[must_use]
    pub fn with_directory(mut self, directory: &Directory) -> Self {
        let references = self.references();
        if !directory.has_all(&references) {
            return self;
        }
        let ended = self.ended(&self.directory).join(self.ended(directory));
        self.directory = self.directory.join(directory.only(&references));
        self = self.join(ended);
        // The permissions of roles are known now.
        let references = self.references();
        self.directory = self.directory.join(directory.only(&references)).only(&references);
        self
    }

    /// Returns what [`Self::with_directory`] adds to the memberships, as a state to join: the ends of those in deleted
    /// organizations.
    #[must_use]
    pub fn ended_by(&self, directory: &Directory) -> Self {
        if self.memberships().is_none() || !directory.has_all(&self.references()) {
            return Self::default();
        }
        self.ended(&self.directory).join(self.ended(directory))
    }

    /// Returns the newest deletion of each organization with a membership. It counts also if the organization was created
    /// again later: the members of the former one are none of the new one.
    fn ended(&self, directory: &Directory) -> Self {
        let codes = self.memberships().into_iter().flat_map(Memberships::codes);
        codes.fold(Self::default(), |ended, code| {
            let deletion = directory.entry(&code).and_then(directory::Entry::deletion);
            let Some(deletion) = deletion else { return ended };
            let end = Memberships::read(&code, None, deletion);
            ended.with_register(Field::Organizations, deletion.clone(), Value::Memberships(end))
        })
    }

    /// Returns the codes and ids that the memberships refer to.
    pub fn references(&self) -> BTreeSet<String> {
        let mut references: BTreeSet<String> =
            self.memberships().into_iter().flat_map(Memberships::references).collect();
        let given = references.iter().filter_map(|id| self.directory.entry(id)?.permissions()).flatten();
        let given: Vec<String> = given.cloned().collect();
        references.extend(given);
        references
    }

    /// Returns the versions of the observations that determine the state.
    pub fn versions(&self) -> impl Iterator<Item = &Version> {
        let memberships = self.memberships().into_iter().flat_map(Memberships::versions);
        let properties = self.properties().into_iter().flat_map(Properties::versions);
        let is_list = |field: &Field| *field == Field::Organizations;
        let fields = self.fields.iter().filter(move |(field, _)| !is_list(field));
        let first = self.first.event.iter().chain(&self.first.read);
        fields
            .map(|(_, register)| &register.version)
            .chain(memberships)
            .chain(properties)
            .chain(self.deleted.iter().chain(&self.confirmed))
            .chain(first)
    }

    /// Returns the newest text of a field; `None` also for null.
    pub fn text(&self, field: Field) -> Option<&str> {
        match self.value(field) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// Returns the memberships in a value. A null list means no membership.
fn memberships(value: Value, version: &Version) -> Memberships {
    match value {
        Value::Memberships(memberships) => memberships,
        Value::Organizations(list) => Memberships::listed(&list, version),
        Value::Codes(codes) => {
            let list: Vec<Organization> = codes.into_iter().map(Organization::new).collect();
            Memberships::listed(&list, version)
        }
        _ => Memberships::listed(&[], version),
    }
}

/// Reads registers as [`UserState::with_register`] joins them: a row of an earlier version has lists of memberships.
fn fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Field, Register>, D::Error> {
    let stored = BTreeMap::<Field, Register>::deserialize(deserializer)?;
    let join =
        |state: UserState, (field, Register { version, value })| state.with_register(field, version, value);
    Ok(stored.into_iter().fold(UserState::default(), join).fields)
}

impl FirstVersions {
    fn of(version: &Version) -> Self {
        let first = Some(version.clone());
        match version.rank {
            Rank::Provisional => Self::default(),
            Rank::Receipt | Rank::Event => Self { event: first, ..Self::default() },
            Rank::Snapshot => Self { read: first, ..Self::default() },
        }
    }
}
