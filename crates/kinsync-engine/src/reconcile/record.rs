//! What a run found and did, kept for whoever asks.

use std::collections::BTreeMap;

use kinsync_core::{Field, Micros, Source, UserId};
use serde::{Deserialize, Serialize};

use crate::{
    random, state_records,
    store::{self, Row, Store},
};

/// Where runs are state_records, newest first.
const RUNS: &str = "reconcile.runs";
/// Runs that are kept.
const KEPT: usize = 50;
/// Of those that did not come to their end.
const KEPT_FAILED: usize = 10;
/// Examples that a run keeps.
pub(super) const EXAMPLES: usize = 50;

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunMode {
    /// Load everybody. Nobody is deleted, and a run that was cut is gone on with.
    Backfill,
    /// Find and repair, deletions included.
    Reconcile,
    /// Find and change nothing.
    DryRun,
    /// [`RunMode::Reconcile`], and carry out the deletions that this run held.
    Approve(String),
}

/// BatchOptions a stored user differed from Kinde's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// At Kinde, and not in the store, or known from a token alone.
    Missing,
    /// A field that events carry has another value.
    Changed,
    /// Only fields that no event carries were missing or old.
    FilledIn,
    /// Only the time of the last sign-in was old.
    SignedIn,
    /// Deleted at Kinde, and live in the store.
    Deleted,
    /// Deleted at Kinde, and held until an operator approves.
    DeletionHeld,
    /// Deleted in the store, and Kinde confirmed twice that there is such a user.
    Restored,
    /// Deleted by an event of Kinde's, and listed all the same: left as it is.
    ListedAfterDeletion,
    /// The store does not take the user.
    Rejected,
    /// Kinde gives no clear answer about this user: left as it is.
    Undetermined,
}

impl DriftKind {
    /// A word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::FilledIn => "filled_in",
            Self::SignedIn => "signed_in",
            Self::Deleted => "deleted",
            Self::DeletionHeld => "deletion_held",
            Self::Restored => "restored",
            Self::ListedAfterDeletion => "listed_after_deletion",
            Self::Rejected => "rejected",
            Self::Undetermined => "undetermined",
        }
    }

    /// Whether an event should have announced it since the last scan. Who is held was missed before, and is found by
    /// every scan.
    pub const fn is_missed(self) -> bool {
        matches!(self, Self::Missing | Self::Changed | Self::Deleted)
    }
}

/// One user who differed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// Who.
    pub user: UserId,
    /// BatchOptions.
    pub kind: DriftKind,
    /// In what.
    pub fields: Vec<Field>,
    /// The newest that was known, by Kinde's clock; `None` when nothing was.
    pub known_at: Option<Micros>,
    /// Which way that came.
    pub previous_source: Option<Source>,
}

/// Numbers of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tally {
    /// Pages that were read.
    pub pages: u64,
    /// Users on them.
    pub users: u64,
    /// Users of whom everything was as Kinde has it.
    pub unchanged: u64,
    /// Users who differed, by kind.
    pub drift: BTreeMap<DriftKind, u64>,
    /// Fields that differed, of users who were [`DriftKind::Changed`] or [`DriftKind::FilledIn`].
    pub fields: BTreeMap<Field, u64>,
    /// Users whose difference an event should have announced, by the way the newest came that was known of them;
    /// `nothing` of whom nothing was known.
    pub previous_source: BTreeMap<String, u64>,
    /// Users who changed since the scan before, by the way their newest change came.
    pub changes_by_source: BTreeMap<Source, u64>,
    /// Some of those who differed.
    pub examples: Vec<Drift>,
}

impl Tally {
    /// Users of this kind.
    pub fn of(&self, kind: DriftKind) -> u64 {
        self.drift.get(&kind).copied().unwrap_or_default()
    }

    /// Users whose difference an event should have announced.
    pub fn missed(&self) -> u64 {
        self.drift.iter().filter(|(kind, _)| kind.is_missed()).map(|(_, count)| count).sum()
    }

    /// Counts one user who differed.
    pub fn add(&mut self, drift: Drift) {
        *self.drift.entry(drift.kind).or_default() += 1;
        if drift.kind.is_missed() {
            let previous_source = drift.previous_source.map_or("nothing", Source::as_str);
            *self.previous_source.entry(previous_source.to_owned()).or_default() += 1;
            *self.changes_by_source.entry(Source::Reconcile).or_default() += 1;
        }
        if matches!(drift.kind, DriftKind::Changed | DriftKind::FilledIn) {
            for field in &drift.fields {
                *self.fields.entry(*field).or_default() += 1;
            }
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(drift);
        }
    }

    /// Counts a stored user of whom no event was missed, if it changed since the scan before.
    pub(super) fn count_stored(&mut self, row: &Row, before: Option<PreviousScan>) {
        let source = row.metadata.source.filter(|_| row.revision > 0);
        let (Some(source), Some(before)) = (source, before) else { return };
        let since = if source == Source::Reconcile { before.ended } else { before.began };
        if since < row.metadata.updated_at {
            *self.changes_by_source.entry(source).or_default() += 1;
        }
    }

    /// Counts more users of a kind of which there are examples enough.
    pub(super) fn add_count(&mut self, kind: DriftKind, users: usize) {
        *self.drift.entry(kind).or_default() += users as u64;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.pages += other.pages;
        self.users += other.users;
        self.unchanged += other.unchanged;
        add_counts(&mut self.fields, other.fields);
        add_counts(&mut self.drift, other.drift);
        add_counts(&mut self.previous_source, other.previous_source);
        add_counts(&mut self.changes_by_source, other.changes_by_source);
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }
}

fn add_counts<K: Ord>(sums: &mut BTreeMap<K, u64>, more: BTreeMap<K, u64>) {
    for (key, count) in more {
        *sums.entry(key).or_default() += count;
    }
}

/// When the scan before began and ended, by our clock. What it repaired it has counted itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviousScan {
    /// When it began.
    pub began: Micros,
    /// When it ended.
    pub ended: Micros,
}

impl PreviousScan {
    pub(super) fn of(runs: &[Run]) -> Option<Self> {
        let run = runs.iter().find(|run| run.is_complete())?;
        Some(Self { began: run.started_at, ended: run.ended_at.unwrap_or(run.started_at) })
    }
}

/// BatchOptions a run ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has not ended.
    Running,
    /// Everybody was compared.
    Complete,
    /// Everybody was compared, by this run and the one that it went on with: so it could not tell who is gone.
    Resumed,
    /// Its process ended first.
    Cut,
    /// It could not go on.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

/// One run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its name.
    pub id: String,
    /// What was wished.
    pub mode: RunMode,
    /// By our clock.
    pub started_at: Micros,
    /// By our clock.
    pub ended_at: Option<Micros>,
    /// BatchOptions it ended.
    pub outcome: Outcome,
    /// The complete scan before it.
    #[serde(default)]
    pub before: Option<PreviousScan>,
    /// What it found; what it repaired, unless it was dry.
    #[serde(flatten)]
    pub tally: Tally,
}

impl Run {
    /// Whether it ended after everybody was compared.
    pub fn is_complete(&self) -> bool {
        matches!(self.outcome, Outcome::Complete | Outcome::Resumed)
    }

    /// Whether it looked for who is gone too: a backfill does not.
    pub fn is_whole(&self) -> bool {
        self.is_complete() && self.mode != RunMode::Backfill
    }

    /// Whether what it missed says how the webhook is: what an approval carries out was found long before.
    pub(super) fn is_representative(&self) -> bool {
        self.is_whole() && self.mode == RunMode::Reconcile
    }

    pub(super) fn new(mode: RunMode, now: Micros) -> Self {
        let at = jiff::Timestamp::from_microsecond(now.0).unwrap_or_default();
        let id = format!("{}-{:04x}", at.strftime("%Y%m%d-%H%M%S"), random::number::<u16>());
        let (outcome, tally) = (Outcome::Running, Tally::default());
        Self { id, mode, started_at: now, ended_at: None, outcome, before: None, tally }
    }

    pub(super) fn ended(&mut self, outcome: Outcome, now: Micros) {
        self.outcome = outcome;
        self.ended_at = Some(now);
    }
}

/// The newest runs, newest first.
pub async fn runs(store: &dyn Store) -> Result<Vec<Run>, store::Error> {
    state_records::load(store, RUNS).await
}

/// Keeps this run as it is now. The caller holds the lease: another that still seems to run was cut.
pub(super) async fn save(store: &dyn Store, run: &Run) -> Result<(), store::Error> {
    state_records::change(store, RUNS, |runs: &mut Vec<Run>| {
        runs.retain(|known| known.id != run.id);
        for left in runs.iter_mut().filter(|known| known.outcome == Outcome::Running) {
            left.outcome = Outcome::Cut;
        }
        runs.insert(0, run.clone());
        forget(runs);
    })
    .await
}

/// Forgets the oldest. Those that failed drive out none that found something; and the last one that found something
/// missed, and the one before it, stay for as long as they are the last: a silence is judged by them.
fn forget(runs: &mut Vec<Run>) {
    let missed = runs.iter().position(|run| run.is_representative() && run.tally.missed() > 0);
    let before = missed.and_then(|at| (at + 1..runs.len()).find(|before| runs[*before].is_complete()));
    let (mut at, mut complete, mut others) = (0, 0, 0);
    runs.retain(|run| {
        let (count, most) =
            if run.is_complete() { (&mut complete, KEPT) } else { (&mut others, KEPT_FAILED) };
        *count += 1;
        let is_kept = *count <= most || [missed, before].contains(&Some(at));
        at += 1;
        is_kept
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(began: i64, outcome: Outcome, missed: u64) -> Run {
        let mut run = Run::new(RunMode::Reconcile, Micros(began));
        run.ended(outcome, Micros(began + 1));
        run.tally.drift = [(DriftKind::Changed, missed)].into();
        run
    }

    #[test]
    fn failures_drive_out_no_findings_and_the_last_that_was_missed_stays() {
        let failed = |began| run(began, Outcome::Failed { reason: String::new() }, 0);
        let mut runs = Vec::new();
        let mut add = |run: Run| {
            runs.insert(0, run);
            forget(&mut runs);
        };
        add(run(0, Outcome::Complete, 0));
        add(run(1, Outcome::Complete, 3));
        (2..200).for_each(|began| add(run(began, Outcome::Complete, 0)));
        (200..400).for_each(|began| add(failed(began)));
        let began: Vec<i64> = runs.iter().map(|run| run.started_at.0).collect();
        let expected: Vec<i64> = (390..400).rev().chain((150..200).rev()).chain([1, 0]).collect();
        assert_eq!(began, expected);
    }
}
