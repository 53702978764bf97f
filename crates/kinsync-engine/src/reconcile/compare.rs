//! One user at Kinde beside the stored one. Pure.
//!
//! Only what differs is told: a field that is as Kinde has it keeps its version, and a user who is,
//! costs no write. Counters of sign-ins are never compared.

use std::sync::OnceLock;

use kinde::{management, response::RequestTiming};
use kinsync_core::{
    Field, Group, Micros, Observation, Profile, Source, UserId, UserState, Value, Version, What,
};

use super::record::{Drift, Kind};
use crate::{floor::codes, snapshot, store::Row};

/// A user as a read of Kinde told of it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) user: UserId,
    pub(super) told: Profile,
    pub(super) signed_in: Option<Micros>,
    /// When the read was asked for, by Kinde's clock.
    pub(super) at: Micros,
    /// Made when first asked for: it hashes what was told, and most users are as they were.
    version: OnceLock<Version>,
}

/// What is to be done about a user.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing.
    Same,
    /// These observations bring the store up to date.
    Differs(Drift, Vec<Observation>),
    /// Deleted in the store; Kinde should be asked a second time.
    Doubtful,
    /// Deleted in the store by Kinde's own word, and told of all the same.
    Listed(Drift),
}

impl Found {
    /// Whether an event should have announced the difference.
    pub(super) fn is_missed(&self) -> bool {
        matches!(self, Self::Differs(drift, _) if drift.kind.is_missed())
    }
}

impl Seen {
    /// `None` for a user whose id cannot be one.
    pub(super) fn new(user: management::User, sent: &RequestTiming) -> Option<Self> {
        let id = UserId::parse(&user.id).ok()?;
        let signed_in = user.last_signed_in.map(|at| Micros(at.as_microsecond()));
        let told = snapshot::of_user(user);
        Some(Self { user: id, told, signed_in, at: snapshot::sent_at(sent), version: OnceLock::new() })
    }

    fn version(&self) -> &Version {
        self.version.get_or_init(|| snapshot::version(self.at, &self.told))
    }

    pub(super) fn observe(&self, what: What) -> Observation {
        let (user, version) = (self.user.clone(), self.version().clone());
        Observation { user, version, source: Source::Reconcile, what }
    }

    /// That the user exists, after two reads.
    pub(super) fn exists(&self) -> Vec<Observation> {
        let exists = self.observe(What::Exists(self.told.clone()));
        std::iter::once(exists).chain(self.sign_in()).collect()
    }

    fn sign_in(&self) -> Option<Observation> {
        self.signed_in.map(|at| self.observe(What::SignedIn(at)))
    }

    /// Compares with the stored row.
    pub(super) fn compare(&self, row: Option<&Row>) -> Found {
        let Some(row) = row.filter(|row| row.revision > 0) else {
            let drift = self.drift(Kind::Missing, Vec::new(), None);
            return Found::Differs(drift, self.all());
        };
        if let Some(deleted) = row.state.deleted.as_ref().filter(|_| !row.state.is_live()) {
            if deleted.at >= self.at {
                return Found::Same;
            }
            // By kinsync's own finding, or something was told since.
            if deleted.rank == kinsync_core::Rank::Snapshot || row.state.needs_check() {
                return Found::Doubtful;
            }
            return Found::Listed(self.drift(Kind::Listed, Vec::new(), Some(row)));
        }
        if row.state.is_provisional() {
            return Found::Differs(self.drift(Kind::Missing, Vec::new(), Some(row)), self.all());
        }
        let differing: Vec<Field> =
            self.told.iter().filter(|(f, v)| self.differs(*f, v, &row.state)).map(|(f, _)| f).collect();
        let is_newer_sign_in = self.signed_in > row.state.last_signed_in;
        let signed_in = is_newer_sign_in.then(|| self.sign_in()).flatten();
        let kind =
            match (differing.iter().any(|field| is_announced(*field)), differing.is_empty(), &signed_in) {
                (true, ..) => Kind::Changed,
                (false, false, _) => Kind::Filled,
                (_, true, Some(_)) => Kind::SignedIn,
                (_, true, None) => return Found::Same,
            };
        let mut told = Profile::new();
        for field in &differing {
            told.set(*field, self.told.value(*field).cloned().unwrap_or(Value::Null));
        }
        let fields = (!told.is_empty()).then(|| self.observe(What::Fields(told)));
        Found::Differs(self.drift(kind, differing, Some(row)), fields.into_iter().chain(signed_in).collect())
    }

    fn all(&self) -> Vec<Observation> {
        let fields = self.observe(What::Fields(self.told.clone()));
        std::iter::once(fields).chain(self.sign_in()).collect()
    }

    /// Whether the document shows something else, and nothing newer is known.
    fn differs(&self, field: Field, value: &Value, state: &UserState) -> bool {
        let version = |field| state.fields.get(&field).map(|register| &register.version);
        let (is_shown, newest) = match field {
            Field::OrganizationCodes => {
                (look_alike(Some(&codes(state)), value), version(field).max(version(Field::Organizations)))
            }
            field => (look_alike(state.value(field), value), version(field)),
        };
        !is_shown && newest.is_none_or(|known| known < self.version())
    }

    fn drift(&self, kind: Kind, fields: Vec<Field>, row: Option<&Row>) -> Drift {
        drift(self.user.clone(), kind, fields, row)
    }
}

pub(super) fn drift(user: UserId, kind: Kind, fields: Vec<Field>, row: Option<&Row>) -> Drift {
    let told = row
        .map(|row| &row.state)
        .into_iter()
        .flat_map(|state| state.fields.values().map(|register| &register.version).chain(&state.deleted));
    let known_at = told.filter(|version| !version.is_provisional()).map(|version| version.at).max();
    Drift { user, kind, fields, known_at, known_from: row.and_then(|row| row.standing.source) }
}

fn look_alike(shown: Option<&Value>, told: &Value) -> bool {
    let something = |value: &&Value| !is_nothing(value);
    shown.filter(something) == Some(told).filter(something)
}

/// What looks the same in a document as if it had never been told.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Flag(false) => true,
        Value::Codes(list) => list.is_empty(),
        Value::Identities(list) => list.is_empty(),
        _ => false,
    }
}

/// Whether an event tells of a change of this field.
fn is_announced(field: Field) -> bool {
    field.group() == Group::Event || field == Field::OrganizationCodes
}
