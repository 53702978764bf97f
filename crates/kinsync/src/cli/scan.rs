//! A scan or a check in this process, and how it is printed: shared by `kinsync backfill` and `kinsync reconcile`.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use indicatif::ProgressBar;
use kinsync_core::UserId;
use kinsync_engine::{
    Clock,
    internal::{
        reconcile::{
            Error, Reconciler,
            record::{self, DriftKind, Tally},
        },
        store::Store,
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{audit, exit::Exit, output, webhook};
use crate::{
    api::runs::{Run, RunMode, RunSummary},
    app::{management::reconciler, start::open_store},
    config::{Config, Problems},
    plural::counted,
};

/// How long to wait for the scan of another process: longer than a lease lasts.
const DEADLINE: Duration = Duration::from_secs(45);

/// An open store and a client of Kinde.
pub(super) struct Scanner {
    reconciler: Reconciler,
    store: Arc<dyn Store>,
}

impl Scanner {
    /// Opens the store and prepares its indexes, unless the run is dry.
    pub(super) async fn open(config: &Config, mode: &record::RunMode) -> Result<Self, Exit> {
        let opened = open_store(config).await.map_err(anyhow::Error::from);
        let opened = match config.store.mongodb_uri {
            Some(_) => opened,
            None => opened.context(
                "cannot open the users file. Only one process can open it: while `kinsync serve` runs, use `kinsync \
                 reconcile --soon`, also with `--user ID` or `--approve RUN`",
            ),
        }?;
        let store = opened.store();
        let reconciler =
            reconciler(config, Arc::clone(&store), Clock::system()).map_err(anyhow::Error::from)?;
        let reconciler = reconciler.ok_or_else(|| Problems(webhook::missing(config)))?;
        if *mode != record::RunMode::DryRun {
            opened.prepare().await.map_err(anyhow::Error::from)?;
        }
        if let Some(approved) = approved(mode) {
            audit::record(&*store, "kinsync reconcile", approved).await?;
        }
        Ok(Self { reconciler, store })
    }

    /// Runs the scan, with a progress bar on a terminal; Ctrl-C stops it after the current page.
    pub(super) async fn run(&self, mode: record::RunMode, expect: Option<u64>) -> Result<record::Run, Exit> {
        let bar = self.bar(expect).await?;
        let progress = |tally: &Tally| {
            bar.set_position(tally.users);
            bar.set_message(progress_text(tally));
        };
        let stop = CancellationToken::new();
        let run = self.when_free(&bar, &stop, async || {
            Box::pin(self.reconciler.run(mode.clone(), &progress, &stop)).await
        });
        let stopped = async {
            _ = tokio::signal::ctrl_c().await;
            stop.cancel();
            std::future::pending::<()>().await;
        };
        let run = tokio::select! { run = run => run, () = stopped => unreachable!("it never ends") };
        bar.finish_and_clear();
        run.map_err(failed)
    }

    /// Reads one user from Kinde again and repairs differences, unless the check is dry.
    pub(super) async fn check(&self, user: &UserId, mode: &record::RunMode) -> Result<Tally, Exit> {
        let users = std::slice::from_ref(user);
        if *mode == record::RunMode::DryRun {
            return self.reconciler.look(users).await.map_err(failed);
        }
        let (bar, never) = (output::counter("users"), CancellationToken::new());
        let checked = self.when_free(&bar, &never, async || self.reconciler.check(users).await).await;
        bar.finish_and_clear();
        checked.map_err(failed)
    }

    /// Waits until the scan of another process ends, or the lease of a killed one.
    async fn when_free<T>(
        &self,
        bar: &ProgressBar,
        stop: &CancellationToken,
        work: impl AsyncFn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match work().await {
                Err(Error::Busy { holder }) if Instant::now() < deadline => {
                    bar.set_message(format!("users; waiting, {holder} is scanning"));
                    bar.tick();
                    let free = tokio::time::timeout_at(deadline, self.reconciler.wait_until_free());
                    if let Ok(free) = stop.run_until_cancelled(free).await.ok_or(Error::Stopped)? {
                        free?;
                    }
                }
                done => return done,
            }
        }
    }

    /// Kinde does not report the number of users: that of the last scan is the estimate.
    async fn bar(&self, expect: Option<u64>) -> Result<ProgressBar, Exit> {
        let runs = record::runs(&*self.store).await.map_err(anyhow::Error::from)?;
        let last = runs.iter().find(|run| run.is_complete()).map(|run| run.tally.users);
        Ok(match expect.or(last) {
            Some(end) => output::counter_to("users", end),
            None => output::counter("users"),
        })
    }
}

/// Returns what an operator approves with a scan.
fn approved(mode: &record::RunMode) -> Option<serde_json::Value> {
    match mode {
        record::RunMode::Approve(run) => Some(serde_json::json!({ "approve": run })),
        record::RunMode::ApproveEmptyTenant => Some(serde_json::json!({ "approveEmptyTenant": true })),
        _ => None,
    }
}

fn failed(error: Error) -> Exit {
    match error {
        Error::Busy { .. } => Exit::Unavailable(error.to_string()),
        error => Exit::Failed(error.into()),
    }
}

/// The message beside the bar.
fn progress_text(tally: &Tally) -> String {
    let of = |kind| tally.of(kind);
    format!(
        "users: {} created, {} changed, {} unchanged",
        of(DriftKind::Missing),
        of(DriftKind::Changed) + of(DriftKind::FilledIn) + of(DriftKind::SignedIn),
        tally.unchanged
    )
}

/// Prints a run. `approve` is the command that approves a run by its id.
pub(super) fn show(run: &Run, as_json: bool, approve: &str) {
    if as_json {
        return output::json(run);
    }
    let summary = &run.summary;
    let is_dry = summary.mode == RunMode::DryRun;
    show_examples(run, is_dry);
    output::say(&counts(summary, is_dry));
    if summary.since.is_some() {
        show_sources(summary);
    }
    if summary.drift.get(&DriftKind::Refused).is_some_and(|refused| *refused > 0) {
        output::say(
            "An index or a validator of the database refuses users: `kinsync users explain ID` names the rule. They are \
             stored as soon as the rule allows it.",
        );
    }
    let is_held = |kind| summary.drift.get(&kind).is_some_and(|held| *held > 0);
    let is_held = is_held(DriftKind::DeletionHeld) || is_held(DriftKind::RemovalHeld);
    if run.awaits_approval {
        output::say(&format!(
            "Unusually many users are missing at Kinde, or in an organization, so their deletion or removal needs approval. If it \
             is right, run: {approve} {}",
            summary.id
        ));
    } else if let Some(by) = &summary.approved_by {
        output::say(&format!("Run {by} carried out what was held."));
    } else if is_held && !is_dry {
        output::say(
            "What was held cannot be approved any more. If it is still so, a newer run holds it: see `kinsync runs list`.",
        );
    }
}

fn show_examples(run: &Run, is_dry: bool) {
    if run.examples.is_empty() {
        return;
    }
    let rows = run.examples.iter().map(|drift| {
        let fields: Vec<&str> = drift.fields.iter().map(|field| field.key()).collect();
        [
            drift.user.clone(),
            phrase(drift.kind, is_dry).to_owned(),
            fields.join(", "),
            output::cell(drift.known_at.as_ref()),
            output::cell(drift.previous_source.as_ref()),
        ]
    });
    output::table(["USER", "", "FIELDS", "LAST KNOWN", "SOURCE"], rows);
    let all: u64 = run.summary.drift.values().sum();
    let more = all.saturating_sub(run.examples.len() as u64);
    output::say(&if more > 0 { format!("and {more} more\n") } else { String::new() });
}

/// `71 users at Kinde: 70 unchanged, 1 created`
fn counts(run: &RunSummary, is_dry: bool) -> String {
    let mut parts =
        vec![format!("{} at Kinde: {} unchanged", counted(run.users, "user", "users"), run.unchanged)];
    for (kind, count) in &run.drift {
        if *count > 0 {
            parts.push(format!("{count} {}", phrase(*kind, is_dry)));
        }
    }
    parts.join(", ")
}

fn show_sources(run: &RunSummary) {
    let list = |counts: Vec<String>, title: &str| {
        if !counts.is_empty() {
            output::say(&format!("{title}: {}", counts.join(", ")));
        }
    };
    let changes = run.changes_by_source.iter().map(|(source, count)| format!("{count} {source}"));
    list(changes.collect(), "Changed since the previous scan, by source");
    let missed = run.previous_source.iter().map(|(source, count)| format!("{count} {source}"));
    list(missed.collect(), "Missed by webhook, by the source of the previous change");
    if let Some(roles) = &run.roles {
        output::say(&format!(
            "Roles of {} of {} compared",
            counted(roles.members, "member", "members"),
            counted(roles.organizations, "organization", "organizations")
        ));
        if roles.unknown_permissions > 0 {
            output::say(&format!(
                "Permissions of {} are unknown yet; each scan reads those of KINSYNC_PERMISSION_READS members",
                counted(roles.unknown_permissions, "member", "members")
            ));
        }
        roles.not_compared.iter().for_each(|reason| output::say(reason));
    }
    if let Some(properties) = &run.properties {
        let users = counted(properties.users, "user", "users");
        output::say(&format!("Properties of {users} compared, {} with a difference", properties.changed));
        properties.not_compared.iter().for_each(|reason| output::say(reason));
    }
}

/// What was done about a difference, or what would be.
pub(super) fn phrase(kind: DriftKind, is_dry: bool) -> &'static str {
    if is_dry { would(kind) } else { done(kind) }
}

fn done(kind: DriftKind) -> &'static str {
    match kind {
        DriftKind::Missing => "created",
        DriftKind::Changed => "changed",
        DriftKind::FilledIn => "completed with fields that no event carries",
        DriftKind::SignedIn => "with a newer sign-in",
        DriftKind::Deleted => "deleted",
        DriftKind::DeletionHeld => "with a held deletion",
        DriftKind::RemovalHeld => "with a held removal of a membership, role or permission",
        DriftKind::Restored => "restored",
        DriftKind::ListedAfterDeletion => "left deleted, although listed",
        DriftKind::Refused => "refused by the store",
        DriftKind::Undetermined => "left, because Kinde gave no clear answer",
        DriftKind::TooRecent => "left to the next scan, because a change is as new as the scan",
        DriftKind::Edited => "restored, because the application had changed values of kinsync",
    }
}

/// What a scan would do about a user of this kind.
pub(super) fn would(kind: DriftKind) -> &'static str {
    match kind {
        DriftKind::Missing => "would be created",
        DriftKind::Changed => "would be changed",
        DriftKind::FilledIn => "would be completed with fields that no event carries",
        DriftKind::SignedIn => "would get a newer sign-in",
        DriftKind::Deleted => "would be deleted",
        DriftKind::DeletionHeld => "would be deleted after approval",
        DriftKind::RemovalHeld => "would lose a membership, role or permission after approval",
        DriftKind::Restored => "would be restored",
        DriftKind::ListedAfterDeletion => "would be left deleted, although listed",
        DriftKind::Refused => "would be refused by the store",
        DriftKind::Undetermined => "would be left, because Kinde gave no clear answer",
        DriftKind::TooRecent => "would be left to the next scan, because a change is as new as the scan",
        DriftKind::Edited => "would be restored, because the application has changed values of kinsync",
    }
}
