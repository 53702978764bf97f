//! `kinsync runs list|show`

use std::process::ExitCode;

use clap::Subcommand;
use kinsync_engine::internal::reconcile::record::DriftKind;

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on, scan};
use crate::api::runs::{Run, RunList, RunSummary};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the last scans, newest first
    List(List),
    /// Show what one scan found
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The id in the list
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    block_on(async {
        match command {
            Command::List(args) => list(args).await?,
            Command::Show(args) => {
                let run: Run = Client::new(args.flags)?.get(&["runs", &args.id]).await?;
                scan::show(&run, args.json);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn list(args: List) -> Result<(), Exit> {
    let list: RunList = Client::new(args.flags)?.get(&["runs"]).await?;
    if args.json {
        output::json(&list);
        return Ok(());
    }
    let titles = ["RUN", "MODE", "OUTCOME", "USERS", "MISSED BY WEBHOOK", "HELD", "ENDED"];
    output::page(titles, list.runs.iter().map(row).collect(), None::<&String>);
    output::undecodable(&list.undecodable);
    Ok(())
}

fn row(run: &RunSummary) -> [String; 7] {
    let held = run.drift.get(&DriftKind::DeletionHeld).copied().unwrap_or_default();
    [
        run.id.clone(),
        run.mode.as_str().to_owned(),
        run.outcome.as_str().to_owned(),
        run.users.to_string(),
        run.missed_by_webhook.to_string(),
        held.to_string(),
        output::cell(run.ended_at.as_ref()),
    ]
}
