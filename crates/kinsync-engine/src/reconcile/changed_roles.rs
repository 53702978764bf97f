//! Roles with an event: re-reads them, the permissions that they give, and the members with permissions that this makes uncertain.
//!
//! An event about a role contains no permissions, and Kinde sends no event to its members. The number of reads is limited: of very many
//! members, the scans read the others.

use std::collections::{BTreeSet, HashMap, HashSet};

use kinde::management::Role;
use kinsync_core::{Entry, UserId, Version};

use super::{
    Error, Inner,
    deletions::Approved,
    directory::Lists,
    memberships::{Unread, lacks_scope, memberships},
    record::Tally,
    single_reads::is_about_one,
};
use crate::{
    directory::{self, Change},
    snapshot,
    state_records::Term,
    store::Row,
};

/// Members of which the stored permissions are examined.
const MOST_MEMBERS: usize = 10_000;
/// Members per load.
const PAGE: usize = 1000;

impl Inner {
    /// Re-reads these roles. Returns whether a scan is needed: one has lost more permissions than the budget allows, and the scan holds
    /// that for an operator; or Kinde does not find one that is stored. One response deletes no role: the list of all roles decides.
    pub(super) async fn check_roles(&self, ids: &[String], term: Term) -> Result<bool, Error> {
        let stored =
            self.retry_store(|| directory::load(&*self.store, ids.iter().cloned().collect())).await?;
        let (mut roles, mut is_missing) = (HashMap::new(), false);
        for id in ids {
            let read = match self.kinde.role(id).await {
                Ok(read) => read,
                Err(error) if lacks_scope(&error) => return Ok(false),
                Err(error) if is_about_one(&error) && !error.is_transient() => continue,
                Err(error) => return Err(error.into()),
            };
            let version = Version::snapshot(snapshot::sent_at(&read.timing), "");
            match read.value {
                Some(role) => drop(roles.insert(id.clone(), (role, version))),
                None => is_missing |= stored.entry(id).is_some_and(Entry::is_live),
            }
        }
        let (mut changes, is_exceeded) = self.list_changed(&roles, term).await?;
        let stored =
            self.retry_store(|| directory::load(&*self.store, ids.iter().cloned().collect())).await?;
        let differs =
            |change: &Change| stored.entry(&change.id).is_none_or(|known| known.differs(&change.entry));
        changes.retain(differs);
        self.retry_store(|| directory::observe_read(&*self.store, changes.clone(), self.clock.now())).await?;
        self.spread.walk_all().await?;
        self.read_uncertain(ids, term).await?;
        Ok(is_exceeded || is_missing)
    }

    /// Lists what these roles give. Returns what they are with that, and whether one has lost too much.
    async fn list_changed(
        &self,
        roles: &HashMap<String, (Role, Version)>,
        term: Term,
    ) -> Result<(Vec<Change>, bool), Error> {
        let Some(now) = roles.values().map(|(_, version)| version.at).max() else {
            return Ok((Vec::new(), false));
        };
        let mut lists = Lists::default();
        let listed: Vec<Role> = roles.values().map(|(role, _)| role.clone()).collect();
        let mut given = self.list_given(&listed, &mut lists).await?;
        let approved = Approved::Users(HashSet::new());
        let held = self.keep_permissions(Some(term), &mut given, &mut lists, (now, &approved)).await?;
        let named = &lists.named;
        self.retry_store(|| directory::observe_read(&*self.store, named.clone(), self.clock.now())).await?;
        let change = |(role, version): &(Role, Version)| {
            directory::of_role(role, given.get(&role.id).cloned(), version)
        };
        Ok((roles.values().map(change).collect(), !held.is_empty()))
    }

    /// Reads the permissions of members of these roles that a change made uncertain, as many as a scan reads at most.
    async fn read_uncertain(&self, roles: &[String], term: Term) -> Result<(), Error> {
        let (mut after, mut unread, mut members): (Option<UserId>, Vec<Unread>, usize) = Default::default();
        while unread.len() < self.config.member_reads && members < MOST_MEMBERS {
            let users = self.retry_store(|| self.store.referring(roles, after.as_ref(), PAGE)).await?;
            let rows = self.retry_store(|| self.store.load(&users)).await?;
            unread.extend(rows.iter().flatten().flat_map(|row| uncertain(row, roles)));
            members += users.len();
            if users.len() < PAGE {
                break;
            }
            after = users.into_iter().next_back();
        }
        unread.truncate(self.config.member_reads);
        let read = self.permissions_of(unread, Some(term)).await?;
        self.repair(read, Vec::new(), false, &mut Tally::default()).await
    }
}

/// Returns the memberships of a user with one of these roles and permissions that need a read.
fn uncertain(row: &Row, roles: &[String]) -> Vec<Unread> {
    let (stored, roles): (_, BTreeSet<&String>) = (memberships(&row.state), roles.iter().collect());
    let needs_read = |code: &String| {
        let assigned = stored.organization(code).and_then(|one| one.roles).unwrap_or_default();
        assigned.iter().any(|role| roles.contains(role))
            && stored.needs_read_of_permissions(code, &row.state.directory)
    };
    let codes = stored.codes().filter(needs_read);
    let at = kinsync_core::Micros(i64::MIN);
    codes.map(|code| Unread { user: row.id.clone(), code, at, listed: None }).collect()
}
