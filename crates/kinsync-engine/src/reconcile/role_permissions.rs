//! The permissions of roles, as Kinde lists them.
//!
//! A list that lacks permissions by mistake takes them from all members of the role. So a second list has to confirm each loss, and
//! unusually many, of one role or of all together, are held as a whole until an operator approves them. What is held or not confirmed
//! leaves the stored list of the role as it is.

use std::collections::{BTreeSet, HashMap};

use kinde::management::Role;
use kinsync_core::{Directory, Entry, Micros, Version};

use super::{
    Error, Inner,
    budget::{RemovalBudget, hash_of_removal},
    deletions::Approved,
    directory::Lists,
    memberships::{also, not_compared},
    record::{DriftKind, Run},
    scan::Scanned,
    single_reads::is_about_one,
};
use crate::{directory, state_records::Term};

/// Name of all permissions of roles in the record of the budget.
const ALL: &str = "permissions of roles";

/// Ids of the permissions by role. Without an entry, the permissions of the role are not compared.
pub(super) type Given = HashMap<String, Vec<String>>;

/// A role with permissions that its list lacks.
pub(super) struct Loss {
    role: String,
    lost: Vec<String>,
    /// Number of the stored ones.
    had: usize,
}

impl Loss {
    fn hashes(&self) -> impl Iterator<Item = u64> + '_ {
        self.lost.iter().map(|permission| hash_of_removal(permission, &self.role))
    }
}

impl Inner {
    /// Lists the permissions of each role.
    pub(super) async fn list_given(&self, roles: &[Role], lists: &mut Lists) -> Result<Given, Error> {
        let mut given = Given::with_capacity(roles.len());
        for Role { id, .. } in roles {
            if let Some(ids) = self.given_by(id, lists).await? {
                given.insert(id.clone(), ids);
            }
        }
        Ok(given)
    }

    /// Lists the ids of the permissions of a role; `None` without the scope or if the role has just been deleted.
    async fn given_by(&self, role: &str, lists: &mut Lists) -> Result<Option<Vec<String>>, Error> {
        let listed = match self.kinde.role_permissions(role) {
            Ok(pages) => pages.all().await,
            Err(error) => Err(error),
        };
        match listed {
            Ok(given) => {
                let version = Version::provisional();
                lists.named.extend(given.value.iter().map(|one| directory::of_permission(one, &version)));
                Ok(Some(given.value.into_iter().map(|one| one.id).collect()))
            }
            Err(error) if is_about_one(&error) && !error.is_transient() => Ok(None),
            Err(error) => {
                also(&mut lists.not_compared, &not_compared(&error));
                Ok(None)
            }
        }
    }

    /// Leaves out roles with losses that a second list does not confirm, or that exceed the budget. Returns the latter. `now` is the time
    /// of the lists.
    pub(super) async fn keep_permissions(
        &self,
        term: Option<Term>,
        given: &mut Given,
        lists: &mut Lists,
        (now, approved): (Micros, &Approved),
    ) -> Result<Vec<Loss>, Error> {
        let ids: BTreeSet<String> = given.keys().cloned().collect();
        let all = self.retry_store(|| directory::list(&*self.store)).await?.stored;
        let stored: Directory = all.into_iter().map(|(id, stored)| (id, stored.entry)).collect();
        let mut losses = Vec::new();
        for role in ids {
            let had = stored_permissions(&stored, &role);
            let lacks = |given: &Given| -> Vec<String> {
                let listed = given.get(&role).map(Vec::as_slice).unwrap_or_default();
                had.iter().filter(|id| !listed.contains(id)).cloned().collect()
            };
            let lost = lacks(given);
            if lost.is_empty() {
                continue;
            }
            given.remove(&role);
            let Some(second) = self.given_by(&role, lists).await? else { continue };
            given.insert(role.clone(), second);
            if lacks(given) == lost {
                losses.push(Loss { role, lost, had: had.len() });
                continue;
            }
            given.remove(&role);
            let reason =
                format!("the permissions of the role {role} are not compared: two lists of them differ");
            also(&mut lists.not_compared, &reason);
        }
        let total = stored.iter().map(|(id, _)| stored_permissions(&stored, id).len()).sum();
        let held = self.exceeding(term, losses, total, (now, approved)).await?;
        given.retain(|role, _| held.iter().all(|held| held.role != *role));
        Ok(held)
    }

    /// Holds losses until an operator approves them.
    pub(super) fn hold_losses(run: &Run, held: &[Loss], scanned: &mut Scanned) {
        for held in held {
            tracing::error!(
                run = run.id,
                role = held.role,
                permissions = held.lost.len(),
                "unusually many permissions of roles are missing at Kinde, so their removal is held: check the run, then run \
                 `kinsync reconcile --approve {}` (with `--soon` while `kinsync serve` runs)",
                run.id
            );
            scanned.tally.add_count(DriftKind::RemovalHeld, held.lost.len());
            scanned.held.extend(held.hashes());
        }
    }

    /// Draws losses on the budget. Returns those that exceed it: all of them, or roles that have lost too much alone.
    async fn exceeding(
        &self,
        term: Option<Term>,
        mut losses: Vec<Loss>,
        total: usize,
        (now, approved): (Micros, &Approved),
    ) -> Result<Vec<Loss>, Error> {
        losses.retain(|loss| !loss.hashes().all(|hash| approved.contains_removal(hash)));
        let budget =
            |of, count: usize| RemovalBudget { of, count: count as u64, thresholds: self.config.deletes };
        let (held, rest): (Vec<Loss>, Vec<Loss>) =
            losses.into_iter().partition(|loss| loss.lost.len() as u64 > budget(ALL, loss.had).most());
        let hashes: BTreeSet<u64> = rest.iter().flat_map(Loss::hashes).collect();
        let all = budget(ALL, total);
        let draw = || all.draw(&*self.store, term, &hashes, now);
        let is_drawn = hashes.is_empty() || self.retry_store(draw).await?.ok_or(Error::LeaseLost)?;
        Ok(if is_drawn { held } else { held.into_iter().chain(rest).collect() })
    }
}

/// Returns the permissions of a role that exist, as stored.
fn stored_permissions(stored: &Directory, role: &str) -> Vec<String> {
    let ids = stored.entry(role).filter(|role| role.is_live()).and_then(Entry::permissions);
    let exists = |id: &&String| stored.entry(id).is_none_or(Entry::is_live);
    ids.unwrap_or_default().iter().filter(exists).cloned().collect()
}
