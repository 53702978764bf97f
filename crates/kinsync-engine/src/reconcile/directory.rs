//! Compares the organizations, roles and permissions with Kinde's lists.
//!
//! Kinde sends no event to a user when a role gets another key or another permission. A scan therefore lists all three kinds
//! and the permissions of each role. What a list lacks is read again before it counts as deleted, an empty list deletes
//! nothing, and unusually many deletions of one kind are held as a whole until an operator approves them. A list that a second one
//! confirms is a proof for older events ([`crate::directory`]).

use std::collections::{BTreeSet, HashMap, HashSet};

use kinde::{
    management::{self, Organization, Role},
    response::RequestTiming,
};
use kinsync_core::{Entry, Fact, Micros, Value, Version};

use super::{
    Error, Inner,
    budget::{RemovalBudget, hash_of_removal},
    deletions::Approved,
    memberships::{also, not_compared},
    record::{DriftKind, Run},
    scan::Scanned,
};
use crate::{
    derived,
    directory::{self, Change, Kind, Listed, Stored},
    snapshot,
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
    pub(super) at: Micros,
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
        let listing = Listing { kind: Kind::Organization, version, changes };
        self.compare_listing(listing, run, &mut lists, scanned, approved).await?;
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
        let permissions = self.list_permissions(run, lists, scanned, approved).await?;
        let mut given =
            if permissions { self.list_given(&roles.value, lists).await? } else { HashMap::new() };
        let held = self.keep_permissions(term, &mut given, lists, (version.at, approved)).await?;
        Self::hold_losses(run, &held, scanned);
        let change = |role: &Role| directory::of_role(role, given.remove(&role.id), &version);
        let changes = roles.value.iter().map(change).collect();
        let listing = Listing { kind: Kind::Role, version, changes };
        self.compare_listing(listing, run, lists, scanned, approved).await
    }

    /// Compares the permissions. Returns `false` without the scope.
    async fn list_permissions(
        &self,
        run: &Run,
        lists: &mut Lists,
        scanned: &mut Scanned,
        approved: &Approved,
    ) -> Result<bool, Error> {
        let permissions = match self.kinde.permissions().all().await {
            Ok(permissions) => permissions,
            Err(error) => {
                also(&mut lists.not_compared, &not_compared(&error));
                return Ok(false);
            }
        };
        let version = Version::snapshot(snapshot::sent_at(&permissions.timing), "");
        let changes = permissions.value.iter().map(|one| directory::of_permission(one, &version)).collect();
        let listing = Listing { kind: Kind::Permission, version, changes };
        self.compare_listing(listing, run, lists, scanned, approved).await?;
        Ok(true)
    }

    /// Stores what differs from a complete list.
    async fn compare_listing(
        &self,
        listing: Listing,
        run: &Run,
        lists: &mut Lists,
        scanned: &mut Scanned,
        approved: &Approved,
    ) -> Result<(), Error> {
        let Listing { kind, version, changes } = listing;
        let directory::All { stored: known, unreadable } =
            self.retry_store(|| directory::list(&*self.store)).await?;
        for one in &unreadable {
            also(&mut lists.not_compared, &one.0);
        }
        let listed: HashSet<String> = changes.iter().map(|change| change.id.clone()).collect();
        let is_unlisted = |(id, stored): &(&String, &Stored)| {
            stored.kind == kind && stored.entry.is_live() && !listed.contains(*id)
        };
        let unlisted: Vec<String> = known.iter().filter(is_unlisted).map(|(id, _)| id.clone()).collect();
        // An empty list deletes nothing.
        let is_plausible = !changes.is_empty() || unlisted.is_empty();
        let absent = if is_plausible { self.read_absent(kind, unlisted).await? } else { None };
        let mut is_complete = absent.is_some();
        let mut absent = absent.unwrap_or_default();
        let live = known.values().filter(|stored| stored.kind == kind && stored.entry.is_live()).count();
        if !self.may_delete(&absent, (kind, live, version.at), run, scanned, approved).await? {
            absent.retain(|change| approved.contains_removal(hash_of_deletion(change)));
            is_complete = false;
        }
        let differs =
            |change: &Change| known.get(&change.id).is_none_or(|stored| stored.entry.differs(&change.entry));
        let differing = changes.into_iter().filter(differs);
        let differing: Vec<Change> = differing.chain(absent).collect();
        lists.changed += differing.len() as u64;
        let Some(term) = run.writes() else { return Ok(()) };
        let now = self.clock.now();
        self.retry_store(|| directory::observe_read(&*self.store, differing.clone(), now)).await?;
        if is_complete && self.is_proof(kind, &listed, scanned).await {
            let record = || Listed::record(&*self.store, term, kind, &version);
            let is_recorded = self.retry_store(record).await?;
            return if is_recorded { Ok(()) } else { Err(Error::LeaseLost) };
        }
        Ok(())
    }

    /// Returns whether these are all objects of a kind, so that an older event about another one shows nothing. A list may lack objects
    /// that nothing stored names, so no read of one can confirm it: a second list has to lack them too, and so have the pages of users.
    async fn is_proof(&self, kind: Kind, listed: &HashSet<String>, scanned: &Scanned) -> bool {
        // Usual without roles or permissions: nothing to report.
        if listed.is_empty() {
            return false;
        }
        let Err(reason) = self.confirm_list(kind, listed, scanned).await else { return true };
        tracing::info!(reason, "the list of {} does not show that others were deleted", all_of(kind));
        false
    }

    /// Fails with the reason why a list may lack objects.
    async fn confirm_list(
        &self,
        kind: Kind,
        listed: &HashSet<String>,
        scanned: &Scanned,
    ) -> Result<(), String> {
        if let Some(reason) = scanned.not_in(listed).filter(|_| kind == Kind::Organization) {
            return Err(reason);
        }
        // A failure concerns only the proof: the comparison has its list.
        let again = self.relisted(kind).await.map_err(|error| not_compared(&error))?.1;
        again.difference(listed).next().map_or(Ok(()), |id| Err(format!("a second list has {id:?} too")))
    }

    /// Draws the deletions of `live` objects of a kind on their budget. Returns `false`, and reports them as held, if those without an
    /// approval exceed it: a second read by the credentials of another tenant confirms a deletion too.
    async fn may_delete(
        &self,
        absent: &[Change],
        (kind, live, now): (Kind, usize, Micros),
        run: &Run,
        scanned: &mut Scanned,
        approved: &Approved,
    ) -> Result<bool, Error> {
        let hashes = absent.iter().map(hash_of_deletion);
        let hashes: BTreeSet<u64> = hashes.filter(|hash| !approved.contains_removal(*hash)).collect();
        let budget = RemovalBudget { of: all_of(kind), count: live as u64, thresholds: self.config.deletes };
        let draw = || budget.draw(&*self.store, run.writes(), &hashes, now);
        if hashes.is_empty() || self.retry_store(draw).await?.ok_or(Error::LeaseLost)? {
            return Ok(true);
        }
        tracing::error!(
            run = run.id,
            ?kind,
            missing = hashes.len(),
            "unusually many of {} are missing at Kinde, so their removal is held: check the run, then run `kinsync reconcile \
             --approve {}` (with `--soon` while `kinsync serve` runs)",
            all_of(kind),
            run.id
        );
        scanned.tally.add_count(DriftKind::RemovalHeld, hashes.len());
        scanned.held.extend(hashes);
        Ok(false)
    }

    /// Reads objects that a list lacks. Returns those that do not exist; `None` if the list was incomplete.
    async fn read_absent(&self, kind: Kind, unlisted: Vec<String>) -> Result<Option<Vec<Change>>, Error> {
        let mut absent = Vec::new();
        if unlisted.is_empty() {
            return Ok(Some(absent));
        }
        // Kinde has no read of one permission.
        let relisted = if kind == Kind::Permission { Some(self.relisted(kind).await?) } else { None };
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
                Kind::Permission => {
                    let (timing, ids) = relisted.as_ref().expect("permissions were listed");
                    (ids.contains(&id), *timing)
                }
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

    /// Lists the codes or ids of a kind once more.
    async fn relisted(&self, kind: Kind) -> Result<(RequestTiming, HashSet<String>), management::Error> {
        Ok(match kind {
            Kind::Organization => {
                let all = self.kinde.organizations().all().await?;
                (all.timing, all.value.into_iter().map(|one| one.code).collect())
            }
            Kind::Role => {
                let all = self.kinde.roles().all().await?;
                (all.timing, all.value.into_iter().map(|one| one.id).collect())
            }
            Kind::Permission => {
                let all = self.kinde.permissions().all().await?;
                (all.timing, all.value.into_iter().map(|one| one.id).collect())
            }
        })
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

/// Name of all objects of a kind in the record of the budget. It contains a space, which no code of an organization does.
fn all_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Organization => "all organizations",
        Kind::Role => "all roles",
        Kind::Permission => "all permissions",
    }
}

fn hash_of_deletion(change: &Change) -> u64 {
    hash_of_removal(&change.id, all_of(change.kind))
}

fn role_ids(roles: &[Role], at: Micros) -> RoleIds {
    let ids = roles.iter().filter_map(|role| Some((role.key.value()?.clone(), role.id.clone())));
    RoleIds { ids: ids.collect(), at }
}

fn of_organization(organization: &Organization, version: &Version) -> Change {
    let created_on = organization.created_on.map(|at| Micros(at.as_microsecond()));
    let facts = [
        directory::fact(Fact::Name, &organization.name),
        directory::fact(Fact::Handle, &organization.handle),
        directory::fact(Fact::ExternalId, &organization.external_id),
        created_on.map(|at| (Fact::CreatedOn, Value::Time(at))),
    ];
    let entry = Entry::observed(facts.into_iter().flatten(), version);
    Change { kind: Kind::Organization, id: organization.code.clone(), entry }
}
