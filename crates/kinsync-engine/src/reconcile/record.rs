//! Stored results of runs.

mod tallies;

use std::collections::BTreeMap;

use kinsync_core::{Field, Micros, Source, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::tallies::{MembershipTally, PropertyTally};
use crate::{
    random,
    state_records::{self, Key, Term},
    store::{self, Row, Store},
};

/// Record of the runs, newest first.
pub(super) const KEY: Key = Key::new("reconcile.runs", "the list of runs is empty until the next scan");
/// Format of one run in the list. Increases with each change that an older kinsync would misread.
const FORMAT: u64 = 1;
/// Maximum stored runs in a format that this version cannot decode.
const MAX_UNDECODABLE: usize = 50;
/// Maximum stored complete runs.
const MAX_RUNS: usize = 50;
/// Maximum stored incomplete runs.
const MAX_FAILED_RUNS: usize = 10;
/// Maximum stored examples per run.
pub(super) const EXAMPLES: usize = 50;

/// Mode of a run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunMode {
    /// Loads all users. Deletes no user, and resumes after an interruption.
    Backfill,
    /// Finds and repairs differences, including deletions.
    Reconcile,
    /// Finds differences and writes nothing.
    DryRun,
    /// [`RunMode::Reconcile`], and carries out the deletions that the run with this id held.
    Approve(String),
    /// Deletes all users, because an operator approved that Kinde lists none. Fails if Kinde lists a user.
    ApproveEmptyTenant,
}

/// Kind of difference between a stored user and Kinde's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// Exists at Kinde, and is not stored or known from a token alone.
    Missing,
    /// A field that events carry had another value.
    Changed,
    /// Only fields that no event carries were missing or outdated.
    FilledIn,
    /// Only the time of the last sign-in was outdated.
    SignedIn,
    /// Deleted at Kinde and live in the store.
    Deleted,
    /// Deleted at Kinde; the deletion waits for an operator's approval.
    DeletionHeld,
    /// Has lost a membership or a role according to a list, and so have unusually many members of the organization; the removal
    /// waits for an operator's approval. Counts held permissions of roles too.
    RemovalHeld,
    /// Deleted in the store; two reads of Kinde confirmed that the user exists.
    Restored,
    /// Deleted by an event of Kinde and still listed. Left unchanged.
    ListedAfterDeletion,
    /// The store refused the user.
    #[serde(alias = "rejected")]
    Refused,
    /// Kinde's response about the user is inconclusive. Left unchanged.
    Undetermined,
    /// Differs or is not listed, and the store has an observation as new as Kinde's response, or a newer one. Left
    /// unchanged: the next scan decides.
    TooRecent,
    /// Equal to Kinde's, and the application changed or removed values of kinsync in the document. They are restored.
    Edited,
}

impl DriftKind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::Missing,
        Self::Changed,
        Self::FilledIn,
        Self::SignedIn,
        Self::Deleted,
        Self::DeletionHeld,
        Self::RemovalHeld,
        Self::Restored,
        Self::ListedAfterDeletion,
        Self::Refused,
        Self::Undetermined,
        Self::TooRecent,
        Self::Edited,
    ];

    /// Returns the name used in JSON and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::FilledIn => "filled_in",
            Self::SignedIn => "signed_in",
            Self::Deleted => "deleted",
            Self::DeletionHeld => "deletion_held",
            Self::RemovalHeld => "removal_held",
            Self::Restored => "restored",
            Self::ListedAfterDeletion => "listed_after_deletion",
            Self::Refused => "refused",
            Self::Undetermined => "undetermined",
            Self::TooRecent => "too_recent",
            Self::Edited => "edited",
        }
    }

    /// Returns whether an event since the last scan should have announced the difference. False for held deletions,
    /// which every scan finds again.
    pub const fn is_missed(self) -> bool {
        matches!(self, Self::Missing | Self::Changed | Self::Deleted)
    }
}

/// One user with a difference.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// The user.
    pub user: UserId,
    /// Kind of difference.
    pub kind: DriftKind,
    /// Fields that differ.
    pub fields: Vec<Field>,
    /// Time of the newest observation before the repair, by Kinde's clock; `None` without observations.
    pub known_at: Option<Micros>,
    /// Source of that observation.
    pub previous_source: Option<Source>,
}

/// Counts of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tally {
    /// Pages read.
    pub pages: u64,
    /// Users on the pages.
    pub users: u64,
    /// Users without a difference.
    pub unchanged: u64,
    /// Users with a difference, by kind.
    pub drift: BTreeMap<DriftKind, u64>,
    /// Differing fields of users with [`DriftKind::Changed`] or [`DriftKind::FilledIn`].
    pub fields: BTreeMap<Field, u64>,
    /// Users with a missed difference, by the source of their newest observation before the repair; `nothing` without
    /// observations.
    pub previous_source: BTreeMap<String, u64>,
    /// Users that changed since the previous scan, by the source of their newest change.
    pub changes_by_source: BTreeMap<Source, u64>,
    /// Examples of users with a difference.
    pub examples: Vec<Drift>,
}

impl Tally {
    /// Returns the number of deletions and removals that wait for an operator's approval.
    pub fn held(&self) -> u64 {
        self.of(DriftKind::DeletionHeld) + self.of(DriftKind::RemovalHeld)
    }

    /// Returns the number of users of this kind.
    pub fn of(&self, kind: DriftKind) -> u64 {
        self.drift.get(&kind).copied().unwrap_or_default()
    }

    /// Returns the number of users with a difference that an event should have announced.
    pub fn missed(&self) -> u64 {
        self.drift.iter().filter(|(kind, _)| kind.is_missed()).map(|(_, count)| count).sum()
    }

    /// Counts one user with a difference.
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

    /// Counts a stored user without a missed event if it changed since the previous scan.
    pub(super) fn count_stored(&mut self, row: &Row, before: Option<PreviousScan>) {
        let (Some(source), Some(before)) = (row.metadata.source, before) else { return };
        // The repairs of the previous scan are in its own counts.
        let since = if source == Source::Reconcile { before.end } else { before.start };
        if row.metadata.changed_after.is_some_and(|known| known >= since) {
            *self.changes_by_source.entry(source).or_default() += 1;
        }
    }

    /// Counts users of a kind without adding examples.
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

/// The previous complete scan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PreviousScan {
    /// Start, by kinsync's clock.
    pub began: Micros,
    /// Number of the start, by the counter of the store.
    pub start: i64,
    /// Number of the end.
    pub end: i64,
}

impl PreviousScan {
    pub(super) fn of(runs: &[Run]) -> Option<Self> {
        let run = runs.iter().find(|run| run.is_complete())?;
        Some(Self { began: run.started_at, start: run.start, end: run.end })
    }
}

/// Outcome of a run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The run has not ended.
    Running,
    /// All users were compared.
    Complete,
    /// All users were compared, by this run and the interrupted one before it. Such a run detects no deletions.
    Resumed,
    /// The process ended before the run.
    Cut,
    /// The run failed.
    Failed {
        /// Cause and next step.
        reason: String,
    },
}

/// A run of the reconciler.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Id, from the start time and a random suffix.
    pub id: String,
    /// Mode.
    pub mode: RunMode,
    /// Start, by kinsync's clock.
    pub started_at: Micros,
    /// End, by kinsync's clock.
    pub ended_at: Option<Micros>,
    /// Outcome.
    pub outcome: Outcome,
    /// Number of the lease under which it ran; 0 for a dry run.
    #[serde(default)]
    pub term: Term,
    /// Numbers of the start and of the end of the scan, by the counter of the store.
    #[serde(default)]
    pub start: i64,
    /// See `start`.
    #[serde(default)]
    pub end: i64,
    /// The previous complete scan.
    #[serde(default)]
    pub before: Option<PreviousScan>,
    /// What the run compared of the roles of members; `None` if it did not compare them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memberships: Option<MembershipTally>,
    /// What the run compared of the properties of users; `None` if that was not due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<PropertyTally>,
    /// Differences found, and repaired unless the run was dry.
    #[serde(flatten)]
    pub tally: Tally,
}

impl Run {
    /// Returns whether the run compared all users.
    pub fn is_complete(&self) -> bool {
        matches!(self.outcome, Outcome::Complete | Outcome::Resumed)
    }

    /// Returns whether the run compared all users and detected deletions. A backfill does not detect deletions.
    pub fn is_whole(&self) -> bool {
        self.is_complete() && self.mode != RunMode::Backfill
    }

    /// Returns whether the missed changes of the run describe the webhook. An approval carries out older findings.
    pub(super) fn is_representative(&self) -> bool {
        self.is_whole() && self.mode == RunMode::Reconcile
    }

    /// Returns the term of the lease under which the run writes; `None` for a dry run.
    pub(super) fn writes(&self) -> Option<Term> {
        (self.mode != RunMode::DryRun).then_some(self.term)
    }

    pub(super) fn new(mode: RunMode, now: Micros) -> Self {
        let at = jiff::Timestamp::from_microsecond(now.0).unwrap_or_default();
        let id = format!("{}-{:04x}", at.strftime("%Y%m%d-%H%M%S"), random::number::<u16>());
        let (outcome, tally) = (Outcome::Running, Tally::default());
        let term = Term::default();
        Self {
            id,
            mode,
            started_at: now,
            ended_at: None,
            outcome,
            term,
            start: 0,
            end: 0,
            before: None,
            memberships: None,
            properties: None,
            tally,
        }
    }

    pub(super) fn ended(&mut self, outcome: Outcome, now: Micros) {
        self.outcome = outcome;
        self.ended_at = Some(now);
    }
}

/// The stored runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// Runs, newest first.
    pub runs: Vec<Run>,
    /// Ids of runs that this version cannot decode, because another version wrote them.
    pub undecodable: Vec<String>,
}

/// One element of the stored list.
enum Stored {
    Run(Box<Run>),
    /// Kept as it is.
    Undecodable(Value),
}

impl Stored {
    fn decode(value: Value) -> Self {
        let is_known = value.get("format").and_then(Value::as_u64) == Some(FORMAT);
        match Run::deserialize(&value) {
            Ok(run) if is_known => Self::Run(Box::new(run)),
            _ => Self::Undecodable(value),
        }
    }

    fn encode(self) -> Value {
        match self {
            Self::Undecodable(value) => value,
            Self::Run(run) => {
                let mut value = serde_json::to_value(&*run).expect("texts, numbers and names are JSON");
                value["format"] = FORMAT.into();
                value
            }
        }
    }

    fn run(&self) -> Option<&Run> {
        match self {
            Self::Run(run) => Some(run),
            Self::Undecodable(_) => None,
        }
    }
}

/// Loads the stored runs as the store has them. A run of a killed process is stored as running.
pub async fn history(store: &dyn Store) -> Result<History, store::Error> {
    let stored: Vec<Value> = state_records::load(store, &KEY).await?;
    let mut history = History::default();
    for one in stored {
        match Stored::decode(one) {
            Stored::Run(run) => history.runs.push(*run),
            Stored::Undecodable(value) => {
                let id = value.get("id").and_then(Value::as_str).unwrap_or("without an id");
                history.undecodable.push(id.to_owned());
            }
        }
    }
    Ok(history)
}

/// Loads the stored runs that this version can decode, newest first.
pub async fn runs(store: &dyn Store) -> Result<Vec<Run>, store::Error> {
    Ok(history(store).await?.runs)
}

impl History {
    /// Shows runs as cut if their lease has ended. `active` is the term of the lease that a process holds now.
    pub(super) fn with_lease(mut self, active: Option<Term>) -> Self {
        for run in &mut self.runs {
            if run.outcome == Outcome::Running && Some(run.term) != active {
                run.outcome = Outcome::Cut;
            }
        }
        self
    }
}

/// Stores a run under its lease. Other runs that seem to be running were interrupted. Returns `false`, and stores nothing,
/// if a process with a newer lease has stored a run.
pub(super) async fn save(store: &dyn Store, run: &Run) -> Result<bool, store::Error> {
    let saved = state_records::change_under(store, &KEY, run.term, |stored: &mut Vec<Value>| {
        let mut runs: Vec<Stored> = stored.drain(..).map(Stored::decode).collect();
        runs.retain(|known| known.run().is_none_or(|known| known.id != run.id));
        for one in &mut runs {
            if let Stored::Run(left) = one
                && left.outcome == Outcome::Running
            {
                left.outcome = Outcome::Cut;
            }
        }
        runs.insert(0, Stored::Run(Box::new(run.clone())));
        remove_oldest(&mut runs);
        *stored = runs.into_iter().map(Stored::encode).collect();
    });
    Ok(saved.await?.is_some())
}

/// Removes the oldest runs. Failed runs replace only failed runs. The last run with missed changes and the complete run
/// before it always stay, because [`super::webhook_health`] needs them.
fn remove_oldest(runs: &mut Vec<Stored>) {
    let position = |from: usize, is_so: &dyn Fn(&Run) -> bool| {
        runs.iter().skip(from).position(|one| one.run().is_some_and(is_so)).map(|at| at + from)
    };
    let missed = position(0, &|run| run.is_representative() && run.tally.missed() > 0);
    let before = missed.and_then(|at| position(at + 1, &Run::is_complete));
    let (mut at, mut complete, mut others, mut undecodable) = (0, 0, 0, 0);
    runs.retain(|one| {
        let (count, most) = match one.run() {
            Some(run) if run.is_complete() => (&mut complete, MAX_RUNS),
            Some(_) => (&mut others, MAX_FAILED_RUNS),
            None => (&mut undecodable, MAX_UNDECODABLE),
        };
        *count += 1;
        let is_kept = *count <= most || [missed, before].contains(&Some(at));
        at += 1;
        is_kept
    });
}

#[cfg(test)]
mod tests;
