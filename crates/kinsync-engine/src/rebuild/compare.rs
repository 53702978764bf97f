//! Compares the stored state of a user with the derived one.

use std::collections::{BTreeSet, HashSet};

use kinsync_core::{Directory, Field, Micros, UserId, UserState, Value, Version, rfc3339};
use serde::Serialize;

use super::{
    Mode,
    derive::{Derived, Entries, Origins},
};
use crate::{
    decode,
    store::{DocumentKey, Outcome, Row},
};

/// A user that differs from the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The user.
    pub user: UserId,
    /// How it differs.
    pub finding: Finding,
    /// The fields that differ.
    pub fields: Vec<DifferentField>,
    /// Whether the derived state was stored.
    pub is_rebuilt: bool,
    /// Why the store did not take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Ids of the entries that could not be used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unusable: Vec<String>,
}

/// How a user differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The log has entries of the user, and no row is stored.
    Missing,
    /// The stored state is not the one that the log leads to.
    Different,
    /// The application has changed or removed values of kinsync in the document.
    Edited,
    /// The stored state contains a value that no entry explains.
    Unexplained,
    /// An entry of the user is damaged, or this version cannot read it.
    Unusable,
}

/// A field that differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DifferentField {
    /// Key in a user document.
    pub field: String,
    /// Id of the entry since which it differs: that of the oldest value that the row lacks, else of the oldest that it should not have.
    pub since: Option<String>,
    /// Time and id of the oldest stored value that no entry explains, such as `2026-11-28T12:00:00Z event_1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<String>,
}

impl Difference {
    /// Returns whether this mode replaces the stored state.
    pub(super) fn is_replaced(&self, mode: Mode) -> bool {
        match self.finding {
            Finding::Unusable => false,
            Finding::Unexplained => mode == Mode::ReplaceUnexplained,
            Finding::Missing | Finding::Different | Finding::Edited => mode != Mode::Verify,
        }
    }

    pub(super) fn written(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Written => self.is_rebuilt = true,
            Outcome::Refused(rule) => self.refused = Some(rule.reason.clone()),
            Outcome::Failed(reason) => self.refused = Some(reason.clone()),
            Outcome::Stale | Outcome::EmailTaken => {}
        }
    }
}

/// Compares a row with the state that its entries lead to. `None`: they are equal.
pub(super) fn compared(
    row: &Row,
    entries: &Entries,
    derived: &Derived,
    latest: Micros,
) -> Option<Difference> {
    let is_equal = row.revision > 0 && row.state.eq_ignoring_last_seen(&derived.state) && !row.is_edited();
    if is_equal && derived.unusable.is_empty() {
        return None;
    }
    let origins = entries.origins(latest);
    let finding = if !derived.unusable.is_empty() {
        Finding::Unusable
    } else if row.revision == 0 {
        Finding::Missing
    } else if is_unexplained(&row.state, &origins, &derived.state) {
        Finding::Unexplained
    } else if row.state.eq_ignoring_last_seen(&derived.state) {
        Finding::Edited
    } else {
        Finding::Different
    };
    let mut fields = different_fields(&row.state, &derived.state, &origins);
    let edited = row.document.iter().flat_map(|document| document.edited().iter()).map(DocumentKey::name);
    let others: Vec<_> = edited.filter(|name| fields.iter().all(|one| one.field != *name)).collect();
    fields.extend(others.into_iter().map(|name| DifferentField::new(name, Default::default(), &origins)));
    let unusable = derived.unusable.clone();
    Some(Difference { user: row.id.clone(), finding, fields, is_rebuilt: false, refused: None, unusable })
}

/// Returns whether the row contains what no entry contains: a version, or a value that would win against that of the log.
fn is_unexplained(stored: &UserState, origins: &Origins, derived: &UserState) -> bool {
    // The directory is a copy of other records, and the time of the last request is in no entry.
    let compared =
        |one: &UserState| UserState { last_seen: None, directory: Directory::default(), ..one.clone() };
    let derived = compared(derived);
    stored.versions().any(|version| origins.entry(version).is_none())
        || derived.clone().join(compared(stored)) != derived
}

fn different_fields(stored: &UserState, derived: &UserState, origins: &Origins) -> Vec<DifferentField> {
    let all: BTreeSet<Field> = stored.fields.keys().chain(derived.fields.keys()).copied().collect();
    let differs = |field: &Field| stored.fields.get(field) != derived.fields.get(field);
    let of_field = |field: Field| {
        let versions = [stored, derived].map(|state| versions_of(state, field));
        DifferentField::new(field.key(), versions, origins)
    };
    let mut fields: Vec<DifferentField> = all.into_iter().filter(differs).map(of_field).collect();
    let mut other = |is_different: bool, key: &str, versions: [Vec<&Version>; 2]| {
        if is_different {
            fields.push(DifferentField::new(key, versions.map(HashSet::from_iter), origins));
        }
    };
    let both = |of: fn(&UserState) -> Vec<&Version>| [of(stored), of(derived)];
    other(stored.deleted != derived.deleted, "deletedAt", both(|one| one.deleted.iter().collect()));
    other(stored.confirmed != derived.confirmed, "confirmed", both(|one| one.confirmed.iter().collect()));
    let first = both(|one| one.first.event.iter().chain(&one.first.read).collect());
    other(stored.first != derived.first, "createdAt", first);
    other(stored.last_signed_in != derived.last_signed_in, "lastSignedInAt", Default::default());
    let is_listed = stored.fields.get(&Field::Organizations) == derived.fields.get(&Field::Organizations);
    other(is_listed && stored.directory != derived.directory, "organizations", Default::default());
    fields
}

/// Returns the versions of the values of a field: several of memberships and properties, which are registers of their own.
fn versions_of(state: &UserState, field: Field) -> HashSet<&Version> {
    match state.fields.get(&field).map(|register| (&register.value, &register.version)) {
        None => HashSet::new(),
        Some((Value::Memberships(memberships), _)) => memberships.versions().collect(),
        Some((Value::Properties(properties), _)) => properties.versions().collect(),
        Some((_, version)) => HashSet::from([version]),
    }
}

impl DifferentField {
    fn new(key: &str, [stored, derived]: [HashSet<&Version>; 2], origins: &Origins) -> Self {
        let unexplained = stored.iter().filter(|version| origins.entry(version).is_none()).min();
        let unexplained = unexplained.map(|version| {
            let at = rfc3339::format(version.at);
            format!("{at} {}", decode::event_id(version))
        });
        // The oldest value that the row lacks; without one, the oldest that the log does not lead to.
        let only = |one: &HashSet<&'_ Version>, other: &HashSet<&Version>| {
            let only = one.iter().filter(|version| !other.contains(**version));
            let oldest = only.filter_map(|version| Some((*version, origins.entry(version)?))).min();
            oldest.map(|(_, id)| id.clone())
        };
        let since = only(&derived, &stored).or_else(|| only(&stored, &derived));
        Self { field: key.to_owned(), since, unexplained }
    }
}
