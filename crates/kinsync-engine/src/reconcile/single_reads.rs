//! Reads of single users from Kinde, which confirm that a user exists or does not.
//!
//! Two reads with a pause confirm each deletion and each restoration. A "not found" counts only while Kinde finds canary
//! users, which it has just listed. An unreadable response leaves its user unchanged and does not stop the others.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use kinde::{management, response::Response};
use kinsync_core::{Micros, Observation, Source, UserId, Version, What};
use tokio::time::Instant;

use super::{
    Error, Inner,
    budget::{self, Budget},
    compare::{Comparison, RemoteUser, drift},
    record::{Drift, DriftKind, Tally},
};
use crate::{snapshot, state_records::Term, store::Row};

/// Users per group of reads, with a canary check before and after.
pub(super) const CHUNK: usize = 50;
/// Concurrent single reads.
const IN_FLIGHT: usize = 4;
/// Canary users of a round of checks.
const CANARIES: usize = 8;

/// Result of a single read of a user.
enum DeletionCheck {
    /// Kinde has no such user. Contains the request time.
    Absent(Micros),
    Present(RemoteUser),
    /// The response about this user is unreadable.
    Inconclusive,
}

impl DeletionCheck {
    fn of(answer: Response<Option<management::User>>) -> Self {
        let sent = answer.timing;
        let seen = answer.value.and_then(|user| RemoteUser::new(user, &sent));
        seen.map_or(Self::Absent(snapshot::sent_at(&sent)), Self::Present)
    }
}

/// Returns whether the failure may concern this one user only, not Kinde or the credentials.
pub(super) fn is_about_one(error: &management::Error) -> bool {
    use management::Error::{
        InvalidIdentifier, InvalidResponse, NotJson, ResponseTooLarge, UnexpectedStatus, WrongUser,
    };
    matches!(
        error,
        UnexpectedStatus { .. }
            | InvalidResponse(_)
            | NotJson { .. }
            | WrongUser
            | ResponseTooLarge { .. }
            | InvalidIdentifier
    )
}

/// A stored user. A second read has to confirm the first one.
pub(super) struct Unconfirmed {
    pub(super) row: Row,
    /// What the second read has to confirm.
    change: Change,
    /// Earliest time of the second read.
    not_before: Instant,
}

#[derive(Clone, Copy)]
enum Change {
    /// The user is deleted at Kinde. Contains the request time of the first read.
    Deletion(Micros),
    /// The user exists at Kinde and is deleted in the store.
    Restoration,
}

/// A deletion that two reads confirmed.
pub(super) struct Deletion {
    pub(super) row: Row,
    /// Request time of the first read, by Kinde's clock.
    pub(super) at: Micros,
}

/// What reads found about some users.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) unconfirmed: Vec<Unconfirmed>,
    pub(super) deletions: Vec<Deletion>,
    /// Observations that repair `differing`.
    pub(super) repairs: Vec<Observation>,
    pub(super) differing: Vec<Drift>,
    /// Number of live users that exist at Kinde.
    pub(super) present: usize,
    /// Users with an observation as new as the read.
    pub(super) too_recent: Vec<UserId>,
}

impl Findings {
    fn add_too_recent(&mut self, user: UserId, row: &Row, tally: &mut Tally) {
        tally.add(drift(user.clone(), DriftKind::TooRecent, Vec::new(), Some(row)));
        self.too_recent.push(user);
    }

    /// Compares a user that is not deleted in the store.
    fn add_present(&mut self, seen: &RemoteUser, row: Option<&Row>, tally: &mut Tally) {
        self.present += 1;
        match seen.compare(row) {
            Comparison::Differs(drift, repair) => {
                self.differing.push(drift);
                self.repairs.extend(repair);
            }
            _ if row.is_some_and(|row| seen.lead(row).is_some()) => {
                tally.add(drift(seen.user.clone(), DriftKind::TooRecent, Vec::new(), row));
                self.too_recent.push(seen.user.clone());
            }
            _ => tally.unchanged += 1,
        }
    }
}

/// Returns the time of the newest observed field; `None` without one.
pub(super) fn newest(row: &Row) -> Option<Micros> {
    row.state.fields.values().map(|register| register.version.at).max()
}

impl Inner {
    /// Reads users once and compares them with their rows. Returns the differences, which [`Self::repair`] counts; what has
    /// to be confirmed by a second read is not among them. A user that is neither stored nor known at Kinde is ignored.
    pub(super) async fn examine(
        &self,
        users: Vec<(UserId, Option<Row>)>,
        canaries: &[String],
        tally: &mut Tally,
    ) -> Result<Findings, Error> {
        let mut found = Findings::default();
        let (ids, rows): (Vec<_>, Vec<_>) = users.into_iter().unzip();
        let read = self.read_users(ids, canaries).await?;
        for ((id, check), row) in read.into_iter().zip(rows) {
            let is_live = row.as_ref().is_none_or(|row| row.state.is_live());
            match (check, row) {
                (DeletionCheck::Inconclusive, row) => {
                    tally.add(drift(id, DriftKind::Undetermined, Vec::new(), row.as_ref()));
                }
                (DeletionCheck::Present(seen), row) if is_live => {
                    found.add_present(&seen, row.as_ref(), tally);
                }
                (DeletionCheck::Absent(at), Some(row)) if is_live && newest(&row) >= Some(at) => {
                    found.add_too_recent(id, &row, tally);
                }
                (DeletionCheck::Absent(at), Some(row)) if is_live => {
                    found.unconfirmed.push(self.unconfirmed(row, Change::Deletion(at), at));
                }
                (DeletionCheck::Present(seen), Some(row)) => match seen.compare(Some(&row)) {
                    Comparison::NeedsSecondRead => {
                        found.unconfirmed.push(self.unconfirmed(row, Change::Restoration, seen.at));
                    }
                    // An event deleted the user, and nothing is newer: Kinde may still list a user with a retained profile.
                    Comparison::ListedAfterDeletion(drift) => tally.add(drift),
                    Comparison::Differs(..) | Comparison::Equal => {}
                },
                (DeletionCheck::Absent(_) | DeletionCheck::Present(_), _) => {}
            }
        }
        Ok(found)
    }

    /// Kinde's replicas may lag, so a recent change of the user delays the second read.
    fn unconfirmed(&self, row: Row, change: Change, at: Micros) -> Unconfirmed {
        let age = at.0.saturating_sub(newest(&row).map_or(i64::MIN, |newest| newest.0));
        let age = Duration::from_micros(age.try_into().unwrap_or_default());
        let pause = self.config.replica_lag.saturating_sub(age).max(self.config.between_reads);
        Unconfirmed { row, change, not_before: Instant::now() + pause }
    }

    /// Reads users a second time. Returns confirmed deletions, and repairs that include confirmed restorations.
    pub(super) async fn confirm(
        &self,
        users: Vec<Unconfirmed>,
        canaries: &[String],
        tally: &mut Tally,
    ) -> Result<Findings, Error> {
        let mut found = Findings::default();
        let Some(not_before) = users.iter().map(|user| user.not_before).max() else { return Ok(found) };
        tokio::time::sleep_until(not_before).await;
        let ids: Vec<UserId> = users.iter().map(|user| user.row.id.clone()).collect();
        let read = self.read_users(ids.clone(), canaries).await?;
        // A newer event may have arrived since the first read.
        let rows = self.retry_store(|| self.store.load(&ids)).await?.into_iter().flatten();
        let mut rows: HashMap<UserId, Row> = rows.map(|row| (row.id.clone(), row)).collect();
        for (user, (id, check)) in users.into_iter().zip(read) {
            let Some(row) = rows.remove(&id) else { continue };
            match (user.change, check) {
                (_, DeletionCheck::Inconclusive) => {
                    tally.add(drift(id, DriftKind::Undetermined, Vec::new(), Some(&row)));
                }
                (Change::Deletion(at), DeletionCheck::Absent(_)) if row.state.is_live() => {
                    if newest(&row) >= Some(at) {
                        found.add_too_recent(id, &row, tally);
                    } else {
                        // Of two reads with the same result, the first one determines the time of the deletion.
                        found.deletions.push(Deletion { row, at });
                    }
                }
                (Change::Deletion(_), DeletionCheck::Present(seen)) if row.state.is_live() => {
                    found.add_present(&seen, Some(&row), tally);
                }
                (Change::Restoration, DeletionCheck::Present(seen)) if !row.state.is_live() => {
                    found.differing.push(drift(id, DriftKind::Restored, Vec::new(), Some(&row)));
                    found.repairs.extend(seen.exists());
                }
                (Change::Deletion(_) | Change::Restoration, _) => {}
            }
        }
        Ok(found)
    }

    /// Draws these deletions on the budget and carries them out. Without a budget they are approved. Writes nothing
    /// without a term. Returns `false`, and deletes none of them, if the budget is exceeded.
    pub(super) async fn carry_out(
        &self,
        term: Option<Term>,
        budget: Option<&Budget>,
        deletions: &[Deletion],
        tally: &mut Tally,
    ) -> Result<bool, Error> {
        let Some(now) = deletions.iter().map(|deletion| deletion.at).max() else { return Ok(true) };
        if let Some(term) = term
            && !self.draw(term, budget, deletions, now).await?
        {
            return Ok(false);
        }
        let observations = deletions.iter().map(deletion).collect();
        let deleted = deletions
            .iter()
            .map(|Deletion { row, .. }| drift(row.id.clone(), DriftKind::Deleted, Vec::new(), Some(row)));
        self.repair(observations, deleted.collect(), term.is_none(), tally).await?;
        Ok(true)
    }

    /// Draws deletions on the budget. A process that lost its lease must not carry out approved deletions either.
    async fn draw(
        &self,
        term: Term,
        budget: Option<&Budget>,
        deletions: &[Deletion],
        now: Micros,
    ) -> Result<bool, Error> {
        let drawn = match budget {
            Some(budget) => {
                let users = || deletions.iter().map(|deletion| &deletion.row.id);
                self.retry_store(|| budget.draw(&*self.store, term, users(), now)).await?
            }
            None => self.retry_store(|| budget::seal(&*self.store, term)).await?.then_some(true),
        };
        drawn.ok_or(Error::LeaseLost)
    }

    /// Reads each user once, in order, with a canary check before and after.
    async fn read_users(
        &self,
        users: Vec<UserId>,
        canaries: &[String],
    ) -> Result<Vec<(UserId, DeletionCheck)>, Error> {
        self.check_canaries(canaries).await?;
        let read = |id: UserId| async move {
            let check = match self.kinde.user(id.as_str()).await {
                Ok(answer) => DeletionCheck::of(answer),
                Err(error) if is_about_one(&error) => {
                    // During an outage of Kinde every further read would run into its timeout too.
                    if error.is_transient() {
                        self.check_canaries(canaries).await?;
                    }
                    let error = crate::breaker::error_chain(&error);
                    tracing::warn!(user = id.as_str(), error, "Kinde's response about a user is unreadable");
                    DeletionCheck::Inconclusive
                }
                Err(error) => return Err(Error::Kinde(error)),
            };
            Ok::<_, Error>((id, check))
        };
        let checked = stream::iter(users).map(read).buffered(IN_FLIGHT).try_collect().await?;
        self.check_canaries(canaries).await?;
        Ok(checked)
    }

    /// Fails unless Kinde finds at least one canary user. Without canary users an operator approved an empty tenant: fails
    /// unless Kinde still lists no user.
    pub(super) async fn check_canaries(&self, canaries: &[String]) -> Result<(), Error> {
        if canaries.is_empty() {
            let listed = self.listed_users().await?;
            return if listed.is_empty() { Ok(()) } else { Err(Error::TenantNotEmpty) };
        }
        let mut failure = None;
        for canary in canaries {
            match self.kinde.user(canary).await {
                Ok(answer) if answer.value.is_some() => return Ok(()),
                Ok(_) => {}
                Err(error) if is_about_one(&error) && !error.is_transient() => failure = Some(error),
                Err(error) => return Err(Error::Kinde(error)),
            }
        }
        Err(failure.map_or(Error::CanariesUnknown, Error::Kinde))
    }

    /// Returns ids of some users that Kinde lists now.
    pub(super) async fn canaries(&self) -> Result<Vec<String>, Error> {
        let listed = self.listed_users().await?;
        if listed.is_empty() { Err(Error::EmptyTenant) } else { Ok(listed) }
    }

    async fn listed_users(&self) -> Result<Vec<String>, Error> {
        let page = self.kinde.users().next().await.map_err(Error::Kinde)?;
        Ok(page.into_iter().flat_map(|page| page.items).take(CANARIES).map(|user| user.id).collect())
    }
}

fn deletion(confirmed: &Deletion) -> Observation {
    Observation {
        user: confirmed.row.id.clone(),
        version: Version::snapshot(confirmed.at, "gone"),
        source: Source::Reconcile,
        what: What::Deleted,
    }
}
