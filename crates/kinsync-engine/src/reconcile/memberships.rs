//! Compares the roles of members with Kinde's.
//!
//! The list of users has the organizations of each user and no roles. A scan therefore also lists the members of each
//! organization, with the keys of their roles and with their suspension there. The list of users decides who is a member; a
//! member who is missing in the list of an organization keeps the stored roles, so an incomplete list removes nothing.
//!
//! Lists contain no permissions. Where the roles of a member have changed, the stored permissions no longer count, and they
//! are read for this member alone.

use std::collections::HashMap;

use kinde::management::{self, OrganizationUser};
use kinsync_core::{
    Field, Memberships, Micros, Observation, Organization, Profile, Source, UserId, UserState, Value, What,
};
use serde::{Deserialize, Serialize};

use super::{
    Error, Inner, Progress,
    compare::drift,
    record::{Drift, DriftKind, Run, Tally},
    scan::Scanned,
    single_reads::is_about_one,
};
use crate::{apply::ComparedRows, scan_watermark::ScanNumber, snapshot, state_records::Term, store::Row};

/// Organizations above which roles are not compared: each costs at least one request per scan.
const MAX_ORGANIZATIONS: usize = 10_000;
/// Permissions that one scan reads for single members. The next scan reads the rest.
const MAX_PERMISSION_READS: usize = 1000;

/// What a scan compared of the roles of members.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MembershipTally {
    /// Organizations whose members were listed.
    pub organizations: u64,
    /// Members in these lists.
    pub members: u64,
    /// Members whose roles or permissions differed from known ones: an event of the user or of the role was missed, or has
    /// requested this scan.
    pub changed: u64,
    /// Members whose roles, suspension or time of joining were not known.
    pub filled_in: u64,
    /// Why roles were not compared, or not all, with the next step.
    pub not_compared: Option<String>,
}

/// A membership as read from Kinde.
struct Seen {
    user: UserId,
    membership: Organization,
    at: Micros,
}

/// A member whose permissions have to be read.
struct Unread {
    user: UserId,
    code: String,
    /// Time of the request of the list, which preceded the read.
    at: Micros,
}

impl Seen {
    /// Decodes a member of a list. Returns `None` without a valid id.
    fn listed(code: &str, member: OrganizationUser, at: Micros) -> Option<Self> {
        let user = UserId::parse(member.id.as_deref()?).ok()?;
        let mut roles = member.roles.into_value().unwrap_or_default();
        roles.sort();
        let membership = Organization {
            roles: Some(roles),
            is_suspended: member.is_suspended.into_value(),
            joined_on: member.joined_on.map(|at| Micros(at.as_microsecond())),
            ..Organization::new(code)
        };
        Some(Self { user, membership, at })
    }

    fn observe(&self, membership: Organization) -> Observation {
        let content = Value::Organizations(vec![membership.clone()]);
        let content = Profile::new().with(Field::Organizations, content);
        Observation {
            user: self.user.clone(),
            version: snapshot::version(self.at, &content),
            source: Source::Reconcile,
            what: What::Membership { code: self.membership.code.clone(), membership: Some(membership) },
        }
    }

    /// Returns how the stored membership differs, and the observation of the values that differ: an equal value keeps its
    /// version. `None` if the join changes nothing, because the values are equal or newer ones are stored, and for a user that
    /// is not stored or deleted: those are left to the scan of users.
    fn compare(&self, row: Option<&Row>) -> Option<(DriftKind, Observation)> {
        let row = row.filter(|row| row.revision > 0 && row.state.is_live())?;
        let code = &self.membership.code;
        let stored = memberships(&row.state);
        let known = stored.organization(code);
        let changed = self.differing(&known.clone().unwrap_or_default());
        let observation = self.observe(changed.clone());
        let joined = stored.join(Memberships::read(code, Some(&changed), &observation.version));
        let after = joined.organization(code);
        if after == known {
            return None;
        }
        let (known, after) = (known.unwrap_or_default(), after.unwrap_or_default());
        let is_missed = is_other(known.roles.as_ref(), after.roles.as_ref())
            || (changed.permissions.is_some()
                && is_other(known.permissions.as_ref(), after.permissions.as_ref()));
        Some((if is_missed { DriftKind::Changed } else { DriftKind::FilledIn }, observation))
    }

    /// Returns the values that differ from known ones.
    fn differing(&self, known: &Organization) -> Organization {
        let seen = &self.membership;
        let are_other_roles = is_other(seen.roles.as_ref(), known.roles.as_ref());
        let are_other_permissions = is_other(seen.permissions.as_ref(), known.permissions.as_ref());
        Organization {
            code: seen.code.clone(),
            roles: seen.roles.clone().filter(|_| are_other_roles),
            // Known permissions do not count beside newer roles.
            permissions: seen.permissions.clone().filter(|_| are_other_roles || are_other_permissions),
            is_suspended: seen.is_suspended.filter(|seen| known.is_suspended != Some(*seen)),
            joined_on: seen.joined_on.filter(|seen| known.joined_on != Some(*seen)),
        }
    }
}

/// Returns whether a value is known and the other one differs.
fn is_other<T: PartialEq>(known: Option<&T>, other: Option<&T>) -> bool {
    known.is_some() && other != known
}

fn memberships(state: &UserState) -> Memberships {
    match state.value(Field::Organizations) {
        Some(Value::Memberships(memberships)) => memberships.clone(),
        _ => Memberships::default(),
    }
}

/// Returns why roles cannot be read with these credentials.
fn lacks_scope(error: &management::Error) -> Option<String> {
    use management::Error::{MissingScope, Unauthorized};
    matches!(error, MissingScope { .. } | Unauthorized { .. })
        .then(|| format!("roles are not compared: {}", crate::breaker::error_chain(error)))
}

impl Inner {
    /// Lists the members of every organization and repairs roles that differ. Missing scopes are no failure: the result
    /// names them.
    pub(super) async fn compare_members(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        progress: Progress<'_>,
    ) -> Result<MembershipTally, Error> {
        let mut found = MembershipTally::default();
        let mut unread = Vec::new();
        let listed = async {
            let organizations = self.kinde.organizations().all().await?.value;
            if organizations.len() > MAX_ORGANIZATIONS {
                let reason = format!("roles are not compared: more than {MAX_ORGANIZATIONS} organizations");
                found.not_compared = Some(reason);
                return Ok(());
            }
            for organization in organizations {
                let members =
                    self.compare_organization(&organization.code, run, scanned, &mut found, &mut unread);
                match members.await {
                    Err(Error::Kinde(error)) if is_about_one(&error) && !error.is_transient() => {
                        let error = crate::breaker::error_chain(&error);
                        let code = organization.code;
                        tracing::warn!(organization = code, error, "the members cannot be listed");
                        found.not_compared = Some(format!("the members of {code} cannot be listed: {error}"));
                    }
                    outcome => outcome?,
                }
                progress(&scanned.tally);
            }
            self.read_permissions(unread, run.writes(), &mut scanned.tally).await
        };
        match listed.await {
            Err(Error::Kinde(error)) => {
                found.not_compared = Some(lacks_scope(&error).ok_or(Error::Kinde(error))?);
            }
            outcome => outcome?,
        }
        if let Some(reason) = &found.not_compared {
            tracing::warn!(reason, "roles of organizations are not all compared");
        }
        Ok(found)
    }

    async fn compare_organization(
        &self,
        code: &str,
        run: &Run,
        scanned: &mut Scanned,
        found: &mut MembershipTally,
        unread: &mut Vec<Unread>,
    ) -> Result<(), Error> {
        let compared = run.writes().map(|_| ComparedRows {
            scan: ScanNumber(scanned.number),
            comparison: scanned.last_comparison,
            revisions: HashMap::new(),
        });
        let mut pages = self.kinde.organization_users(code)?;
        found.organizations += 1;
        while let Some(page) = pages.next().await? {
            let at = snapshot::sent_at(&page.timing);
            let members = page.items.into_iter().filter_map(|member| Seen::listed(code, member, at));
            let members: Vec<Seen> = members.collect();
            found.members += members.len() as u64;
            let (repairs, drifts) = self.differing(&members, found, unread).await?;
            self.repair_compared(repairs, drifts, compared.as_ref(), &mut scanned.tally).await?;
        }
        Ok(())
    }

    /// Returns the observations that repair these memberships, and the missed differences.
    async fn differing(
        &self,
        members: &[Seen],
        found: &mut MembershipTally,
        unread: &mut Vec<Unread>,
    ) -> Result<(Vec<Observation>, Vec<Drift>), Error> {
        let ids: Vec<UserId> = members.iter().map(|seen| seen.user.clone()).collect();
        let rows = self.retry_store(|| self.store.load(&ids)).await?;
        let (mut repairs, mut drifts) = (Vec::new(), Vec::new());
        for (seen, row) in members.iter().zip(&rows) {
            let Some((kind, repair)) = seen.compare(row.as_ref()) else { continue };
            repairs.push(repair);
            if kind == DriftKind::FilledIn {
                found.filled_in += 1;
                continue;
            }
            found.changed += 1;
            drifts.push(drift(seen.user.clone(), kind, vec![Field::Organizations], row.as_ref()));
            let code = &seen.membership.code;
            let known = row.as_ref().and_then(|row| memberships(&row.state).organization(code));
            if known.is_some_and(|known| known.permissions.is_some()) && unread.len() < MAX_PERMISSION_READS {
                unread.push(Unread { user: seen.user.clone(), code: code.clone(), at: seen.at });
            }
        }
        Ok((repairs, drifts))
    }

    /// Reads the permissions of members whose roles have changed. Without the scope they stay unknown.
    async fn read_permissions(
        &self,
        unread: Vec<Unread>,
        term: Option<Term>,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let mut read = Vec::new();
        for Unread { user, code, at } in unread {
            match self.member(&user, &code).await {
                // `Date` has seconds: the time of a later read may seem earlier.
                Ok(Some(seen)) => {
                    let seen = Seen { at: seen.at.max(at), ..seen };
                    read.push(seen.observe(seen.membership.clone()));
                }
                Ok(None) => {}
                Err(error) if lacks_scope(&error).is_some() => break,
                Err(error) => return Err(Error::Kinde(error)),
            }
        }
        self.repair(read, Vec::new(), term.is_none(), tally).await
    }

    /// Compares the roles and permissions of these users in all their organizations. Without the scopes nothing is compared.
    pub(super) async fn check_members(
        &self,
        users: &[UserId],
        term: Option<Term>,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let rows = self.retry_store(|| self.store.load(users)).await?;
        for row in rows.into_iter().flatten().filter(|row| row.state.is_live()) {
            let mut repairs = Vec::new();
            let mut kinds = Vec::new();
            for organization in row.state.organizations().unwrap_or_default() {
                let seen = match self.member(&row.id, &organization.code).await {
                    Ok(Some(seen)) => seen,
                    Ok(None) => continue,
                    Err(error) if lacks_scope(&error).is_some() => return Ok(()),
                    Err(error) => return Err(Error::Kinde(error)),
                };
                if let Some((kind, repair)) = seen.compare(Some(&row)) {
                    repairs.push(repair);
                    kinds.push(kind);
                }
            }
            let missed = kinds.contains(&DriftKind::Changed);
            let drifts = missed
                .then(|| drift(row.id.clone(), DriftKind::Changed, vec![Field::Organizations], Some(&row)));
            self.repair(repairs, drifts.into_iter().collect(), term.is_none(), tally).await?;
        }
        Ok(())
    }

    /// Reads the roles and permissions of one member; `None` if Kinde's response about this member is unusable, for example
    /// because the membership has ended. Permissions stay unknown without their scope.
    async fn member(&self, user: &UserId, code: &str) -> Result<Option<Seen>, management::Error> {
        let roles = match self.kinde.user_roles(code, user.as_str())?.all().await {
            Ok(roles) => roles,
            Err(error) if is_about_one(&error) && !error.is_transient() => return Ok(None),
            Err(error) => return Err(error),
        };
        let permissions = match self.kinde.user_permissions(code, user.as_str())?.all().await {
            Ok(permissions) => Some(permissions.value),
            Err(error) if lacks_scope(&error).is_some() => None,
            Err(error) if is_about_one(&error) && !error.is_transient() => return Ok(None),
            Err(error) => return Err(error),
        };
        let key = |key: kinde::Patch<String>, id: String| key.into_value().unwrap_or(id);
        let sorted = |mut keys: Vec<String>| {
            keys.sort();
            keys
        };
        let permissions = permissions.map(|list| {
            sorted(list.into_iter().map(|one| key(one.permission.key, one.permission.id)).collect())
        });
        let membership = Organization {
            roles: Some(sorted(roles.value.into_iter().map(|role| key(role.key, role.id)).collect())),
            permissions,
            ..Organization::new(code)
        };
        let at = snapshot::sent_at(&roles.timing);
        Ok(Some(Seen { user: user.clone(), membership, at }))
    }
}
