//! Compares one user at Kinde with the stored row. Pure.
//!
//! Only differences become observations: an equal field keeps its version, and an equal user costs no write. Sign-in counters
//! are never compared.

use std::{sync::OnceLock, time::Duration};

use kinde::{management, response::RequestTiming};
use kinsync_core::{
    Field, Group, Micros, Observation, Organization, Profile, Source, UserId, UserState, Value, Version, What,
};

use super::record::{Drift, DriftKind};
use crate::{
    fields,
    scan_watermark::{codes, is_compared},
    snapshot,
    store::{DocumentKey, Row},
};

/// A user as read from Kinde.
#[derive(Clone, Debug)]
pub(super) struct RemoteUser {
    pub(super) user: UserId,
    pub(super) profile: Profile,
    pub(super) signed_in: Option<Micros>,
    /// Time of the request by Kinde's clock.
    pub(super) at: Micros,
    /// Time after which the response contains no change, by Kinde's clock.
    not_after: Micros,
    /// Computed on first use: it hashes the profile, and most users are unchanged.
    version: OnceLock<Version>,
}

/// Result of a comparison.
#[derive(Debug)]
pub(super) enum Comparison {
    /// No difference.
    Equal,
    /// The observations repair the difference.
    Differs(Drift, Vec<Observation>),
    /// Deleted in the store and listed at Kinde; a second read has to confirm it.
    NeedsSecondRead,
    /// Deleted by an event of Kinde and listed at Kinde. The deletion stays.
    ListedAfterDeletion(Drift),
}

impl Comparison {
    /// Returns whether an event should have announced the difference.
    pub(super) fn is_missed(&self) -> bool {
        matches!(self, Self::Differs(drift, _) if drift.kind.is_missed())
    }

    /// Returns whether the row, repaired if it differs, is to be marked as compared and is not marked yet.
    pub(super) fn is_to_be_marked(&self, row: Option<&Row>) -> bool {
        match self {
            Self::Differs(..) => true,
            Self::Equal => row.is_some_and(|row| row.state.is_live() && !is_compared(&row.metadata)),
            Self::NeedsSecondRead | Self::ListedAfterDeletion(_) => false,
        }
    }
}

impl RemoteUser {
    /// Decodes a user of the Management API. Returns `None` for an invalid id.
    pub(super) fn new(user: management::User, sent: &RequestTiming) -> Option<Self> {
        let id = UserId::parse(&user.id).ok()?;
        let signed_in = user.last_signed_in.map(|at| Micros(at.as_microsecond()));
        let profile = fields::of_user(user);
        let (at, not_after) = (snapshot::sent_at(sent), snapshot::not_after(sent));
        Some(Self { user: id, profile, signed_in, at, not_after, version: OnceLock::new() })
    }

    /// Returns a user as if read from Kinde.
    #[cfg(test)]
    pub(super) fn of(user: UserId, profile: Profile, at: Micros, not_after: Micros) -> Self {
        Self { user, profile, signed_in: None, at, not_after, version: OnceLock::new() }
    }

    /// Returns the codes of the organizations of the user, as far as the page has them.
    pub(super) fn organizations(&self) -> &[String] {
        match self.profile.value(Field::OrganizationCodes) {
            Some(Value::Codes(codes)) => codes,
            _ => &[],
        }
    }

    fn version(&self) -> &Version {
        self.version.get_or_init(|| snapshot::version(self.at, &self.profile))
    }

    pub(super) fn observe(&self, what: What) -> Observation {
        let (user, version) = (self.user.clone(), self.version().clone());
        Observation { user, version, source: Source::Reconcile, what }
    }

    /// Returns the observations that confirm the user after two reads.
    pub(super) fn exists(&self) -> Vec<Observation> {
        let exists = self.observe(What::Exists(self.profile.clone()));
        std::iter::once(exists).chain(self.sign_in()).collect()
    }

    fn sign_in(&self) -> Option<Observation> {
        self.signed_in.map(|at| self.observe(What::SignedIn(at)))
    }

    /// Compares the user with the stored row.
    pub(super) fn compare(&self, row: Option<&Row>) -> Comparison {
        let Some(row) = row.filter(|row| row.revision > 0) else {
            let drift = self.drift(DriftKind::Missing, Vec::new(), None);
            return Comparison::Differs(drift, self.all());
        };
        if let Some(deleted) = row.state.deleted.as_ref().filter(|_| !row.state.is_live()) {
            if deleted.at >= self.at {
                return Comparison::Equal;
            }
            // kinsync itself found the user missing, or a newer observation exists.
            if deleted.rank == kinsync_core::Rank::Snapshot || row.state.needs_check() {
                return Comparison::NeedsSecondRead;
            }
            return Comparison::ListedAfterDeletion(self.drift(
                DriftKind::ListedAfterDeletion,
                Vec::new(),
                Some(row),
            ));
        }
        if row.state.is_provisional() {
            return Comparison::Differs(self.drift(DriftKind::Missing, Vec::new(), Some(row)), self.all());
        }
        let differing: Vec<Field> =
            self.profile.iter().filter(|(f, v)| self.differs(*f, v, &row.state)).map(|(f, _)| f).collect();
        let is_newer_sign_in = self.signed_in > row.state.last_signed_in;
        let signed_in = is_newer_sign_in.then(|| self.sign_in()).flatten();
        let kind = match (
            differing.iter().any(|field| self.is_missed(*field, &row.state)),
            differing.is_empty(),
            &signed_in,
        ) {
            (true, ..) => DriftKind::Changed,
            (false, false, _) => DriftKind::FilledIn,
            (_, true, Some(_)) => DriftKind::SignedIn,
            (_, true, None) => return self.compare_document(row),
        };
        let mut changed = Profile::new();
        for field in &differing {
            changed.set(*field, self.profile.value(*field).cloned().unwrap_or(Value::Null));
        }
        let fields = (!changed.is_empty()).then(|| self.observe(What::Fields(changed)));
        Comparison::Differs(
            self.drift(kind, differing, Some(row)),
            fields.into_iter().chain(signed_in).collect(),
        )
    }

    /// Compares the document of a row that equals the user with what it should show. An observation without fields makes
    /// [`crate::apply`] write it.
    fn compare_document(&self, row: &Row) -> Comparison {
        if !row.is_edited() {
            return Comparison::Equal;
        }
        let edited = row.document.iter().flat_map(|document| document.edited().iter());
        let fields = edited.filter_map(DocumentKey::field).collect();
        let restore = vec![self.observe(What::Fields(Profile::new()))];
        Comparison::Differs(self.drift(DriftKind::Edited, fields, Some(row)), restore)
    }

    /// Takes lost memberships out of a repair: a list may lack them by mistake, so they are confirmed before they are removed. Returns
    /// the rest, in which every other membership of the list is added alone, and the codes of the lost memberships.
    pub(super) fn without_removals(
        &self,
        row: Option<&Row>,
        repair: Vec<Observation>,
    ) -> (Vec<Observation>, Vec<String>) {
        let of_codes = |value: Option<Value>| match value {
            Some(Value::Codes(codes)) => codes,
            _ => Vec::new(),
        };
        let stored = of_codes(row.and_then(|row| codes(&row.state)));
        let listed = of_codes(self.profile.value(Field::OrganizationCodes).cloned());
        let lost: Vec<String> = stored.iter().filter(|code| !listed.contains(code)).cloned().collect();
        let contains_list = |one: &Observation| matches!(&one.what, What::Fields(profile) if profile.value(Field::OrganizationCodes).is_some());
        if lost.is_empty() || !repair.iter().any(contains_list) {
            return (repair, Vec::new());
        }
        let mut rest = Vec::new();
        for observation in repair {
            let What::Fields(profile) = &observation.what else {
                rest.push(observation);
                continue;
            };
            let mut others = Profile::new();
            for (field, value) in profile.iter().filter(|(field, _)| *field != Field::OrganizationCodes) {
                others.set(field, value.clone());
            }
            rest.push(self.observe(What::Fields(others)));
        }
        for code in listed.into_iter().filter(|code| !stored.contains(code)) {
            let membership = Some(Organization::new(code.clone()));
            rest.push(self.observe(What::Membership { code, membership }));
        }
        (rest, lost)
    }

    /// Returns whether Kinde lists this membership of the user; `None` if it lists no memberships at all.
    pub(super) fn is_member_of(&self, code: &str) -> Option<bool> {
        let listed = self.profile.value(Field::OrganizationCodes)?;
        Some(matches!(listed, Value::Codes(codes) if codes.iter().any(|listed| listed == code)))
    }

    fn all(&self) -> Vec<Observation> {
        let fields = self.observe(What::Fields(self.profile.clone()));
        std::iter::once(fields).chain(self.sign_in()).collect()
    }

    /// Returns whether the document shows another value and has no newer observation of the field.
    fn differs(&self, field: Field, value: &Value, state: &UserState) -> bool {
        !is_shown(field, value, state)
            && newest_version(field, state).is_none_or(|known| known < self.version())
    }

    /// Returns by how much the stored value of a differing field is newer than the request, if it is from the time of the
    /// response: it is not known whether the response contains that change. `None` if all differences can be ordered.
    pub(super) fn lead(&self, row: &Row) -> Option<Duration> {
        if row.revision == 0 || !row.state.is_live() {
            return None;
        }
        let lead = |(field, value): (Field, &Value)| {
            if is_shown(field, value, &row.state) {
                return None;
            }
            let known = newest_version(field, &row.state)?;
            let is_too_recent = known >= self.version() && known.at <= self.not_after;
            is_too_recent.then(|| known.at.0.saturating_sub(self.at.0))
        };
        let lead = self.profile.iter().filter_map(lead).max()?;
        Some(Duration::from_micros(lead.try_into().unwrap_or_default()))
    }

    /// Returns whether an event should have announced the difference. An empty value that was unknown is no change.
    fn is_missed(&self, field: Field, state: &UserState) -> bool {
        let is_unknown = match field {
            Field::OrganizationCodes => codes(state).is_none(),
            field => state.value(field).is_none(),
        };
        is_announced(field) && !(is_unknown && self.profile.value(field).is_some_and(is_empty_value))
    }

    fn drift(&self, kind: DriftKind, fields: Vec<Field>, row: Option<&Row>) -> Drift {
        drift(self.user.clone(), kind, fields, row)
    }
}

pub(super) fn drift(user: UserId, kind: DriftKind, fields: Vec<Field>, row: Option<&Row>) -> Drift {
    let versions = row
        .map(|row| &row.state)
        .into_iter()
        .flat_map(|state| state.fields.values().map(|register| &register.version).chain(&state.deleted));
    let known_at = versions.filter(|version| !version.is_provisional()).map(|version| version.at).max();
    Drift { user, kind, fields, known_at, previous_source: row.and_then(|row| row.metadata.source) }
}

/// Returns whether the document shows this value of the field.
fn is_shown(field: Field, value: &Value, state: &UserState) -> bool {
    match field {
        Field::OrganizationCodes => shows_same(field, codes(state).as_ref(), value),
        field => shows_same(field, state.value(field), value),
    }
}

/// Returns the version of the newest observation of the field.
fn newest_version(field: Field, state: &UserState) -> Option<&Version> {
    let version = |field| state.fields.get(&field).map(|register| &register.version);
    match field {
        Field::OrganizationCodes => version(Field::Organizations),
        field => version(field),
    }
}

/// Returns whether a document that shows a value, or nothing for an unknown field, shows Kinde's value.
fn shows_same(field: Field, shown: Option<&Value>, remote: &Value) -> bool {
    match (shown, remote) {
        // A document shows a null list as an empty one, and omits any other null.
        (Some(Value::Codes(list)), Value::Null) => list.is_empty(),
        (None, Value::Null) => !matches!(field, Field::OrganizationCodes | Field::Identities),
        (shown, remote) => shown == Some(remote),
    }
}

/// Returns whether a new user has this value.
fn is_empty_value(value: &Value) -> bool {
    match value {
        Value::Null | Value::Flag(false) => true,
        Value::Codes(list) => list.is_empty(),
        Value::Identities(list) => list.is_empty(),
        _ => false,
    }
}

/// Returns whether Kinde sends an event after a change of this field.
fn is_announced(field: Field) -> bool {
    field.group() == Group::Event || field == Field::OrganizationCodes
}
