//! The entries of the log by the versions that they contain.

use std::collections::HashMap;

use kinsync_core::{Field, Register, UserState, Value, Version};

use crate::log_entry::{self, LogEntry};

/// A field, or of memberships and properties the part of an organization or one property.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target<'t> {
    pub(super) field: Field,
    pub(super) organization: Option<&'t str>,
    pub(super) property: Option<&'t str>,
}

impl Target<'_> {
    /// Returns whether what is observed of this one decides about the other one: a list decides about each organization that it lacks.
    fn decides(&self, other: &Target<'_>) -> bool {
        let is_same = self.organization.is_none() || self.organization == other.organization;
        is_same && (self.field, self.property) == (other.field, other.property)
    }
}

/// An entry that kinsync made.
struct Own<'a> {
    kind: &'a str,
    id: &'a str,
    /// What the entry contains with one version; `None`: everything.
    targets: Option<Vec<OwnedTarget>>,
}

type OwnedTarget = (Field, Option<String>, Option<String>);

impl Own<'_> {
    fn decides(&self, other: &Target<'_>) -> bool {
        let decides = |(field, organization, property): &OwnedTarget| {
            let (organization, property) = (organization.as_deref(), property.as_deref());
            Target { field: *field, organization, property }.decides(other)
        };
        self.targets.as_ref().is_none_or(|targets| targets.iter().any(decides))
    }
}

/// The entries by the versions that they contain: of a joined state those of all its parts. Entries of different kinds can contain one
/// version: the proof of a scan and the deletion of an organization that a list lacks, if both were read in one second.
pub(super) struct Sources<'a>(HashMap<Version, Vec<Own<'a>>>);

impl<'a> Sources<'a> {
    pub(super) fn of(events: &'a [LogEntry]) -> Self {
        let mut own: HashMap<Version, Vec<Own<'a>>> = HashMap::new();
        for LogEntry { id, kind, scheme, version, payload, .. } in events {
            if scheme != log_entry::STATE {
                if let Some(version) = version {
                    own.entry(version.clone()).or_default().push(Own { kind, id, targets: None });
                }
                continue;
            }
            let Ok(joined) = log_entry::state(payload) else { continue };
            for (version, targets) in targets(&joined) {
                own.entry(version).or_default().push(Own { kind, id, targets: Some(targets) });
            }
        }
        Self(own)
    }

    /// Returns whether an entry contains this version.
    pub(super) fn contain(&self, version: &Version) -> bool {
        self.0.contains_key(version)
    }

    /// Returns the types and the ids of the entries with this version that decide about a field, sorted.
    pub(super) fn of_version(
        &self,
        version: &Version,
        target: Option<&Target<'_>>,
    ) -> Vec<(&'a str, &'a str)> {
        let own = self.0.get(version).map(Vec::as_slice).unwrap_or_default();
        let deciding = own.iter().filter(|own| target.is_none_or(|target| own.decides(target)));
        let mut entries: Vec<(&str, &str)> = deciding.map(|own| (own.kind, own.id)).collect();
        entries.sort_unstable();
        entries
    }
}

/// Returns what a state contains, by version.
fn targets(state: &UserState) -> HashMap<Version, Vec<OwnedTarget>> {
    let mut targets: HashMap<Version, Vec<OwnedTarget>> =
        state.versions().map(|version| (version.clone(), Vec::new())).collect();
    for (field, Register { version, value }) in &state.fields {
        let mut add = |version: &Version, organization: Option<&str>, property: Option<&str>| {
            let target = (*field, organization.map(Into::into), property.map(Into::into));
            targets.entry(version.clone()).or_default().push(target);
        };
        match value {
            Value::Memberships(known) => known.parts().for_each(|part| add(part.version, part.code, None)),
            Value::Properties(known) => {
                known.parts().for_each(|(key, _, version)| add(version, None, Some(key)));
            }
            _ => add(version, None, None),
        }
    }
    targets
}
