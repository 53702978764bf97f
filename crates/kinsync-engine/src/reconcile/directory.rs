//! Compares the organizations, roles and permissions with Kinde's lists.
//!
//! Kinde sends no event to a user when a role gets another key or another permission. A scan therefore lists all three kinds
//! and the permissions of each role. What a list lacks is read again before it counts as deleted, and an empty list deletes
//! nothing.

use std::collections::{HashMap, HashSet};

use kinde::management::{self, Organization, Permission, Role};
use kinsync_core::{Entry, Fact, Value, Version};

use super::{
    Error, Inner,
    deletions::Approved,
    memberships::{also, not_compared},
    record::Run,
    scan::Scanned,
};
use crate::{
    derived,
    directory::{self, Change, Kind, Listed, Stored},
    snapshot,
    state_records::Term,
};

/// Results of the lists of a scan.
#[derive(Default)]
pub(super) struct Lists {
    /// Codes of all organizations.
    pub(super) organizations: Vec<String>,
    /// Ids of roles by key; `None` without the scope: members then have keys in place of ids.
    pub(super) roles: Option<RoleIds>,
    /// Permissions in the lists of roles. An event may not have named them.
    pub(super) named: Vec<Change>,
    /// Objects that differed from what was stored.
    pub(super) changed: u64,
    /// Why something was not compared: see [`also`].
    pub(super) not_compared: Option<String>,
}

/// Ids of roles by key, with the time of the list.
#[derive(Clone)]
pub(super) struct RoleIds {
    pub(super) ids: HashMap<String, String>,
    pub(super) at: kinsync_core::Micros,
}

/// A complete list of one kind.
struct Listing {
    kind: Kind,
    version: Version,
    changes: Vec<Change>,
}

impl Inner {
    /// Compares the documents of organizations and roles, and counts the members. A failure is none of the run: documents are
    /// compared again every day.
    pub(super) async fn show_directory(&self) {
        let shown = self.retry_store(|| derived::show_directory(&*self.store, self.clock.now())).await;
        if let Err(error) = shown {
            let error = crate::breaker::error_chain(&error);
            tracing::warn!(error, "documents of organizations or roles may be outdated");
        }
    }

    /// Lists organizations, roles and permissions, and repairs what differs unless the run is dry. Fails if the organizations
    /// cannot be listed; the result names what else cannot.
    pub(super) async fn compare_directory(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: &Approved,
    ) -> Result<Lists, Error> {
        let term = run.writes();
        let mut lists = Lists::default();
        let organizations = self.kinde.organizations().all().await?;
        let version = Version::snapshot(snapshot::sent_at(&organizations.timing), "");
        lists.organizations = organizations.value.iter().map(|one| one.code.clone()).collect();
        let changes = organizations.value.iter().map(|one| of_organization(one, &version)).collect();
        self.compare_listing(Listing { kind: Kind::Organization, version, changes }, term, &mut lists)
            .await?;
        match self.compare_roles(run, &mut lists, scanned, approved).await {
            Err(Error::Kinde(error)) => also(&mut lists.not_compared, &not_compared(&error)),
            outcome => outcome?,
        }
        if term.is_some() {
            // Before the members are compared: what their rows contain of the directory counts there.
            if let Err(error) = self.retry_store(|| self.spread.finish()).await {
                // One organization must not stop the comparison of all others. A store that is down fails the next call.
                let cause = crate::breaker::error_chain(&error);
                let reason = format!(
                    "documents of some members do not show a changed organization or role yet: {cause}"
                );
                also(&mut lists.not_compared, &reason);
            }
        }
        Ok(lists)
    }

    async fn compare_roles(
        &self,
        run: &Run,
        lists: &mut Lists,
        scanned: &mut Scanned,
        approved: &Approved,
    ) -> Result<(), Error> {
        let term = run.writes();
        let roles = self.kinde.roles().all().await?;
        let version = Version::snapshot(snapshot::sent_at(&roles.timing), "");
        lists.roles = Some(role_ids(&roles.value, version.at));
        let permissions = self.list_permissions(term, lists).await?;
        let mut given =
            if permissions { self.list_given(&roles.value, lists).await? } else { HashMap::new() };
        let held = self.keep_permissions(term, &mut given, lists, (version.at, approved)).await?;
        Self::hold_losses(run, &held, scanned);
        let change = |role: &Role| directory::of_role(role, given.remove(&role.id), &version);
        let changes = roles.value.iter().map(change).collect();
        self.compare_listing(Listing { kind: Kind::Role, version, changes }, term, lists).await
    }

    /// Compares the permissions. Returns `false` without the scope.
    async fn list_permissions(&self, term: Option<Term>, lists: &mut Lists) -> Result<bool, Error> {
        let permissions = match self.kinde.permissions().all().await {
            Ok(permissions) => permissions,
            Err(error) => {
                also(&mut lists.not_compared, &not_compared(&error));
                return Ok(false);
            }
        };
        let version = Version::snapshot(snapshot::sent_at(&permissions.timing), "");
        let changes = permissions.value.iter().map(|one| directory::of_permission(one, &version)).collect();
        self.compare_listing(Listing { kind: Kind::Permission, version, changes }, term, lists).await?;
        Ok(true)
    }

    /// Stores what differs from a complete list.
    async fn compare_listing(
        &self,
        listing: Listing,
        term: Option<Term>,
        lists: &mut Lists,
    ) -> Result<(), Error> {
        let Listing { kind, version, changes } = listing;
        let directory::All { stored: known, unreadable } =
            self.retry_store(|| directory::list(&*self.store)).await?;
        for one in &unreadable {
            also(&mut lists.not_compared, &one.0);
        }
        let listed: HashSet<&str> = changes.iter().map(|change| change.id.as_str()).collect();
        let is_unlisted = |(id, stored): &(&String, &Stored)| {
            stored.kind == kind && stored.entry.is_live() && !listed.contains(id.as_str())
        };
        let unlisted: Vec<String> = known.iter().filter(is_unlisted).map(|(id, _)| id.clone()).collect();
        // An empty list deletes nothing.
        let is_plausible = !changes.is_empty() || unlisted.is_empty();
        let absent = if is_plausible { self.read_absent(kind, unlisted).await? } else { None };
        let is_complete = absent.is_some();
        let differs =
            |change: &Change| known.get(&change.id).is_none_or(|stored| stored.entry.differs(&change.entry));
        let differing = changes.into_iter().filter(differs);
        let differing: Vec<Change> = differing.chain(absent.into_iter().flatten()).collect();
        lists.changed += differing.len() as u64;
        let Some(term) = term else { return Ok(()) };
        let now = self.clock.now();
        self.retry_store(|| directory::observe_read(&*self.store, differing.clone(), now)).await?;
        if is_complete {
            let record = || Listed::record(&*self.store, term, kind, &version);
            let is_recorded = self.retry_store(record).await?;
            return if is_recorded { Ok(()) } else { Err(Error::LeaseLost) };
        }
        Ok(())
    }

    /// Reads objects that a list lacks. Returns those that do not exist; `None` if the list was incomplete.
    async fn read_absent(&self, kind: Kind, unlisted: Vec<String>) -> Result<Option<Vec<Change>>, Error> {
        let mut absent = Vec::new();
        if unlisted.is_empty() {
            return Ok(Some(absent));
        }
        let relisted = self.relisted_permissions(kind).await?;
        for id in unlisted {
            let (exists, timing) = match kind {
                Kind::Organization => {
                    let read = self.kinde.organization(&id).await?;
                    (read.value.is_some(), read.timing)
                }
                Kind::Role => {
                    let read = self.kinde.role(&id).await?;
                    (read.value.is_some(), read.timing)
                }
                Kind::Permission => (relisted.1.contains(&id), relisted.0.expect("permissions were listed")),
            };
            if exists {
                tracing::warn!(id, ?kind, "Kinde's list lacks an object that a second read finds");
                return Ok(None);
            }
            let entry = Entry::deleted(&Version::snapshot(snapshot::sent_at(&timing), ""));
            absent.push(Change { kind, id, entry });
        }
        Ok(Some(absent))
    }

    /// Lists the permissions once more, because Kinde has no read of one.
    async fn relisted_permissions(
        &self,
        kind: Kind,
    ) -> Result<(Option<kinde::response::RequestTiming>, HashSet<String>), Error> {
        if kind != Kind::Permission {
            return Ok((None, HashSet::new()));
        }
        let permissions: kinde::response::Response<Vec<Permission>> = self.kinde.permissions().all().await?;
        Ok((Some(permissions.timing), permissions.value.into_iter().map(|one| one.id).collect()))
    }

    /// Lists the roles once more. A key that does not have the same id in both lists is left out: it moved meanwhile.
    pub(super) async fn relist_roles(&self, before: &RoleIds) -> Result<RoleIds, management::Error> {
        let after = self.kinde.roles().all().await?;
        let after = role_ids(&after.value, before.at);
        let is_same = |(key, id): &(&String, &String)| after.ids.get(*key) == Some(*id);
        let ids = before.ids.iter().filter(is_same);
        Ok(RoleIds { ids: ids.map(|(key, id)| (key.clone(), id.clone())).collect(), at: before.at })
    }
}

fn role_ids(roles: &[Role], at: kinsync_core::Micros) -> RoleIds {
    let ids = roles.iter().filter_map(|role| Some((role.key.value()?.clone(), role.id.clone())));
    RoleIds { ids: ids.collect(), at }
}

fn of_organization(organization: &Organization, version: &Version) -> Change {
    let created_on = organization.created_on.map(|at| kinsync_core::Micros(at.as_microsecond()));
    let facts = [
        directory::fact(Fact::Name, &organization.name),
        directory::fact(Fact::Handle, &organization.handle),
        directory::fact(Fact::ExternalId, &organization.external_id),
        created_on.map(|at| (Fact::CreatedOn, Value::Time(at))),
    ];
    let entry = Entry::observed(facts.into_iter().flatten(), version);
    Change { kind: Kind::Organization, id: organization.code.clone(), entry }
}
