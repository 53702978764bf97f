//! `kinsync runs list|show`

use std::process::ExitCode;

use clap::Subcommand;
use kinsync_engine::internal::reconcile::record::DriftKind;

use super::{
    client::Client,
    exit::Exit,
    list::{Column, List, NoFilters, Page, Show},
    output::cell,
    runtime::block_on,
    scan,
};
use crate::api::runs::{Run, RunList, RunSummary};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the last scans, newest first
    List(List<NoFilters>),
    /// Show the result of one scan
    Show(Show),
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(list) => list.run::<RunList>(),
        Command::Show(args) => block_on(show(args)),
    }
}

async fn show(args: Show) -> Result<ExitCode, Exit> {
    let run: Run = Client::new(args.flags)?.get(&[RunList::PATH, &args.id]).await?;
    // The embedded store is open in the server that answered.
    scan::show(&run, args.json, "kinsync reconcile --soon --approve");
    Ok(ExitCode::SUCCESS)
}

impl Page for RunList {
    type Query = NoFilters;
    type Item = RunSummary;

    const PATH: &'static str = "runs";
    const COLUMNS: &'static [Column<RunSummary>] = &[
        ("RUN", |run| run.id.clone()),
        ("MODE", |run| run.mode.as_str().to_owned()),
        ("OUTCOME", |run| run.outcome.as_str().to_owned()),
        ("USERS", |run| run.users.to_string()),
        ("MISSED BY WEBHOOK", |run| run.missed_by_webhook.to_string()),
        ("HELD", |run| {
            let held = |kind| run.drift.get(&kind).copied().unwrap_or_default();
            (held(DriftKind::DeletionHeld) + held(DriftKind::RemovalHeld)).to_string()
        }),
        ("ENDED", |run| cell(run.ended_at.as_ref())),
    ];

    fn items(&self) -> &[RunSummary] {
        &self.runs
    }

    fn undecodable(&self) -> &[String] {
        &self.undecodable
    }
}
