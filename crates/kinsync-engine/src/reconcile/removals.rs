//! Removes memberships that the list of users no longer contains.
//!
//! A list that lacks entries by mistake looks like one of an organization that lost members. So reads of some of these members have to
//! confirm the removals of an organization, and unusually many are held as a whole until an operator approves them
//! ([`super::budget::RemovalBudget`]). Everything else of the lists takes effect at once.

use std::collections::BTreeSet;

use kinsync_core::{Field, Micros, Observation, Source, UserId, Version, What};

use super::{
    Error, Inner,
    budget::{RemovalBudget, hash_of_removal},
    compare::{RemoteUser, drift},
    deletions::Approved,
    record::{DriftKind, EXAMPLES, Run},
    scan::Scanned,
    single_reads::is_about_one,
};
use crate::state_records::Term;

/// Members that are read before removals of an organization are carried out or held.
pub(super) const SAMPLE: usize = 20;
/// Removals that are written together.
const CHUNK: usize = 1000;

/// What a list lacks of the members of an organization.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    /// The membership.
    Membership,
    /// A role.
    Role,
}

impl Lost {
    /// The name of the removals in the record of the budget, and in their hashes.
    fn from(self, code: &str) -> String {
        match self {
            Self::Membership => code.to_owned(),
            // No code contains a space.
            Self::Role => format!("roles of {code}"),
        }
    }

    pub(super) fn is_approved(self, user: &UserId, code: &str, approved: &Approved) -> bool {
        approved.contains_removal(hash_of_removal(user.as_str(), &self.from(code)))
    }
}

/// Confirmed removals in one organization.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmed<'a> {
    pub(super) lost: Lost,
    pub(super) code: &'a str,
    pub(super) users: &'a [UserId],
    /// Number of users that had it.
    pub(super) had: u64,
}

/// What reads of some members say about a loss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sample {
    /// At least one has lost it, and none has it.
    Lost,
    /// One of them still has it.
    Contradicts,
    /// No read was usable.
    Unusable,
}

impl Sample {
    /// Returns why the loss is not confirmed; `None` if it is.
    pub(super) fn problem(self) -> Option<&'static str> {
        match self {
            Self::Lost => None,
            Self::Contradicts => Some("single reads find what the list lacks"),
            Self::Unusable => Some("no single read of a user is usable"),
        }
    }
}

/// Which of the removals of an organization are carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// All of them.
    All,
    /// Those that an operator approved. The others are held.
    Approved,
}

impl Inner {
    /// Removes or holds the memberships that the list of users lacks.
    pub(super) async fn remove_members(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: &Approved,
    ) -> Result<(), Error> {
        for (code, mut lost) in std::mem::take(&mut scanned.removals.lost) {
            if let Some(problem) = self.sample_members(&code, &lost).await?.problem() {
                tracing::warn!(
                    organization = code,
                    problem,
                    "Kinde's list of users lacks members of an organization, and they stay"
                );
                scanned.tally.add_count(DriftKind::Undetermined, lost.len());
                continue;
            }
            let users: Vec<UserId> = lost.iter().map(|(user, _)| user.clone()).collect();
            let had = scanned.removals.members_of(&code);
            let removal = Confirmed { lost: Lost::Membership, code: &code, users: &users, had };
            if self.decide(run, removal, scanned, approved).await? == Decision::Approved {
                lost.retain(|(user, _)| Lost::Membership.is_approved(user, &code, approved));
            }
            for lost in lost.chunks(CHUNK) {
                self.write_removals(&code, lost, run.writes(), scanned).await?;
            }
        }
        Ok(())
    }

    /// Reads some of the users. A failed read, or one without organizations, confirms nothing.
    async fn sample_members(&self, code: &str, lost: &[(UserId, Micros)]) -> Result<Sample, Error> {
        let every = lost.len().div_ceil(SAMPLE).max(1);
        let mut sample = Sample::Unusable;
        for (user, _) in lost.iter().step_by(every) {
            let read = match self.kinde.user(user.as_str()).await {
                Ok(read) => read,
                Err(error) if is_about_one(&error) && !error.is_transient() => continue,
                Err(error) => return Err(error.into()),
            };
            let found = read.value.and_then(|user| RemoteUser::new(user, &read.timing));
            match found.and_then(|found| found.is_member_of(code)) {
                Some(true) => return Ok(Sample::Contradicts),
                Some(false) => sample = Sample::Lost,
                None => {}
            }
        }
        Ok(sample)
    }

    /// Draws removals in an organization on its budget. Holds those that exceed it, unless they are approved.
    pub(super) async fn decide(
        &self,
        run: &Run,
        removal: Confirmed<'_>,
        scanned: &mut Scanned,
        approved: &Approved,
    ) -> Result<Decision, Error> {
        let Confirmed { lost, code, users, had } = removal;
        let others: Vec<&UserId> =
            users.iter().filter(|user| !lost.is_approved(user, code, approved)).collect();
        let from = lost.from(code);
        let hashes: BTreeSet<u64> = others.iter().map(|user| hash_of_removal(user.as_str(), &from)).collect();
        let budget = RemovalBudget { of: &from, count: had, thresholds: self.config.deletes };
        let now = scanned.sent.map_or(Micros(i64::MIN), |(_, last)| last);
        let draw = || budget.draw(&*self.store, run.writes(), &hashes, now);
        if self.retry_store(draw).await?.ok_or(Error::LeaseLost)? {
            return Ok(Decision::All);
        }
        tracing::error!(
            run = run.id,
            organization = code,
            members = others.len(),
            ?lost,
            "unusually many members of an organization have lost their membership or a role at Kinde, so the removal is held: \
             check the run, then run `kinsync reconcile --approve {}` (with `--soon` while `kinsync serve` runs)",
            run.id
        );
        for user in others.iter().take(EXAMPLES) {
            scanned.tally.add(drift(
                (*user).clone(),
                DriftKind::RemovalHeld,
                vec![Field::Organizations],
                None,
            ));
        }
        scanned.tally.add_count(DriftKind::RemovalHeld, others.len().saturating_sub(EXAMPLES));
        scanned.held.extend(hashes);
        Ok(Decision::Approved)
    }

    async fn write_removals(
        &self,
        code: &str,
        lost: &[(UserId, Micros)],
        term: Option<Term>,
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        let users: Vec<UserId> = lost.iter().map(|(user, _)| user.clone()).collect();
        let rows = self.retry_store(|| self.store.load(&users)).await?;
        let drifts = users.iter().zip(&rows).map(|(user, row)| {
            drift(user.clone(), DriftKind::Changed, vec![Field::OrganizationCodes], row.as_ref())
        });
        let removal = |(user, at): &(UserId, Micros)| Observation {
            user: user.clone(),
            version: Version::snapshot(*at, "not listed"),
            source: Source::Reconcile,
            what: What::Membership { code: code.to_owned(), membership: None },
        };
        self.repair(lost.iter().map(removal).collect(), drifts.collect(), term.is_none(), &mut scanned.tally)
            .await
    }
}
