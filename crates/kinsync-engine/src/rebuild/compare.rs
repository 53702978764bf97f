//! Compares the stored state of a user with the derived one.

use std::collections::{BTreeSet, HashMap, HashSet};

use kinsync_core::{Field, Micros, Register, UserId, UserState, Version};
use serde::Serialize;

use super::{
    Mode,
    derive::{Derived, Entries},
};
use crate::{
    decode,
    store::{LogEntry, Outcome, Row},
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
    /// Id of the entry since which it differs; `None` if no entry contains the field.
    pub since: Option<String>,
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
            Outcome::Rejected(rule) => self.refused = Some(rule.reason.clone()),
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
    let edited = row.document.iter().flat_map(|document| document.edited().iter());
    fields.extend(edited.map(|key| DifferentField { field: key.name().to_owned(), since: None }));
    let unusable = derived.unusable.clone();
    Some(Difference { user: row.id.clone(), finding, fields, is_rebuilt: false, refused: None, unusable })
}

/// Versions of the values in the derived state and of those that they replaced, each with the id of an entry. A version in an
/// entry that was not joined explains no stored value.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(HashMap<Version, String>);

impl Origins {
    /// Adds the versions in these entries. Decodes each once more: only users that differ pay for this, and very large ones.
    pub(super) fn add(&mut self, entries: &[LogEntry], latest: Micros) {
        for entry in entries {
            let Ok(Some(state)) = decode::state_of(entry, latest) else { continue };
            let versions: HashSet<Version> = state.versions().cloned().collect();
            self.0.extend(versions.into_iter().map(|version| (version, entry.id.clone())));
        }
    }

    /// Removes all versions but these.
    pub(super) fn retain(&mut self, versions: &HashSet<&Version>) {
        self.0.retain(|version, _| versions.contains(version));
    }
}

/// Returns whether a stored value has a version that no entry contains, or whether a sign-in is newer than those of all entries.
fn is_unexplained(stored: &UserState, origins: &Origins, derived: &UserState) -> bool {
    stored.versions().any(|version| !origins.0.contains_key(version))
        || stored.last_signed_in > derived.last_signed_in
}

fn different_fields(stored: &UserState, derived: &UserState, origins: &Origins) -> Vec<DifferentField> {
    let since = |version: Option<&Version>| version.and_then(|version| origins.0.get(version)).cloned();
    let all: BTreeSet<Field> = stored.fields.keys().chain(derived.fields.keys()).copied().collect();
    let differs = |field: &Field| stored.fields.get(field) != derived.fields.get(field);
    let of_field = |field: Field| DifferentField {
        field: field.key().to_owned(),
        since: since(derived.fields.get(&field).map(|Register { version, .. }| version)),
    };
    let mut fields: Vec<DifferentField> = all.into_iter().filter(differs).map(of_field).collect();
    let mut other = |is_different: bool, field: &str, version: Option<&Version>| {
        if is_different {
            fields.push(DifferentField { field: field.to_owned(), since: since(version) });
        }
    };
    other(stored.deleted != derived.deleted, "deletedAt", derived.deleted.as_ref());
    other(stored.confirmed != derived.confirmed, "confirmed", derived.confirmed.as_ref());
    let first = derived.first.event.as_ref().or(derived.first.read.as_ref());
    other(stored.first != derived.first, "createdAt", first);
    other(stored.last_signed_in != derived.last_signed_in, "lastSignedInAt", None);
    let is_listed = stored.fields.get(&Field::Organizations) == derived.fields.get(&Field::Organizations);
    other(is_listed && stored.directory != derived.directory, "organizations", None);
    fields
}
