//! What the documents of the derived collections show. Pure.
//!
//! What no source has observed is absent, as in a user document.

use std::collections::BTreeMap;

use bson::{Bson, Document, doc};
use kinsync_core::{Fact, Micros, Organization};

use super::super::view::date;
use crate::{directory::Stored, store::Row};

/// A document to show: its identity and the values under its keys.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Wanted {
    /// Identity within the collection.
    pub(super) id: String,
    /// Organization, role or user that the document belongs to.
    pub(super) owner: String,
    /// Values by the name of their key.
    pub(super) values: Vec<(&'static str, Bson)>,
}

/// Number of members, and when it was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Members {
    pub(super) count: u64,
    pub(super) as_of: Micros,
}

pub(super) fn organization(code: &str, stored: &Stored, members: Members) -> Wanted {
    let entry = &stored.entry;
    let text = |key, fact| Some((key, Bson::from(entry.text(fact)?)));
    let values = [
        Some(("code", code.into())),
        text("name", Fact::Name),
        text("handle", Fact::Handle),
        text("externalId", Fact::ExternalId),
        entry.time(Fact::CreatedOn).map(|at| ("createdAt", date(at).into())),
        Some(("memberCount", i64::try_from(members.count).unwrap_or(i64::MAX).into())),
        Some(("membersAsOf", date(members.as_of).into())),
    ];
    let values = values.into_iter().flatten().chain(deletion(stored)).collect();
    Wanted { id: code.to_owned(), owner: code.to_owned(), values }
}

/// `all` has the permissions that the role gives.
pub(super) fn role(id: &str, stored: &Stored, all: &BTreeMap<String, Stored>) -> Wanted {
    let entry = &stored.entry;
    let text = |key, fact| Some((key, Bson::from(entry.text(fact)?)));
    let permissions = entry.permissions().map(|ids| {
        let live = ids.iter().filter(|id| all.get(*id).is_none_or(|known| known.entry.is_live()));
        ("permissions", Bson::Array(live.map(|id| permission(id, all.get(id)).into()).collect()))
    });
    let values = [
        Some(("id", id.into())),
        text("key", Fact::Key),
        text("name", Fact::Name),
        text("description", Fact::Description),
        permissions,
    ];
    let values = values.into_iter().flatten().chain(deletion(stored)).collect();
    Wanted { id: id.to_owned(), owner: id.to_owned(), values }
}

fn permission(id: &str, stored: Option<&Stored>) -> Document {
    let mut shown = doc! { "id": id };
    for (key, fact) in [("key", Fact::Key), ("name", Fact::Name)] {
        if let Some(text) = stored.and_then(|stored| stored.entry.text(fact)) {
            shown.insert(key, text);
        }
    }
    shown
}

fn deletion(stored: &Stored) -> impl Iterator<Item = (&'static str, Bson)> {
    let absence = stored.entry.absence();
    let deleted_at = absence.map(|version| ("deletedAt", date(version.at).into()));
    [("isDeleted", absence.is_some().into())].into_iter().chain(deleted_at)
}

/// Identity of a membership. No id contains a line break.
fn membership_id(user: &str, code: &str) -> String {
    format!("{user}\n{code}")
}

/// Returns the memberships of a user, and the ended ones among the known documents; `None` while no source has listed all
/// memberships.
pub(super) fn memberships<'a>(row: &Row, known: impl Iterator<Item = &'a str>) -> Option<Vec<Wanted>> {
    let user = row.id.as_str();
    let current = if row.state.is_live() { row.state.organizations()? } else { Vec::new() };
    let mut wanted: Vec<Wanted> = current.iter().map(|organization| membership(user, organization)).collect();
    for id in known {
        let Some((_, code)) = id.split_once('\n') else { continue };
        if !wanted.iter().any(|shown| shown.id == id) {
            let values = vec![("kindeId", user.into()), ("code", code.into()), ("isDeleted", true.into())];
            wanted.push(Wanted { id: id.to_owned(), owner: user.to_owned(), values });
        }
    }
    Some(wanted)
}

fn membership(user: &str, organization: &Organization) -> Wanted {
    let texts = |list: &Option<Vec<String>>| {
        list.as_ref().map(|list| Bson::Array(list.iter().map(Bson::from).collect()))
    };
    let values = [
        Some(("kindeId", user.into())),
        Some(("code", Bson::from(&organization.code))),
        organization.name.as_ref().map(|name| ("name", name.into())),
        texts(&organization.roles).map(|roles| ("roles", roles)),
        texts(&organization.permissions).map(|permissions| ("permissions", permissions)),
        organization.is_suspended.map(|flag| ("isSuspended", flag.into())),
        organization.joined_on.map(|at| ("joinedOn", date(at).into())),
        Some(("isDeleted", false.into())),
    ];
    Wanted {
        id: membership_id(user, &organization.code),
        owner: user.to_owned(),
        values: values.into_iter().flatten().collect(),
    }
}
