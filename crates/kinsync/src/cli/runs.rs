//! `kinsync runs list|show`

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on, scan};

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
    /// The name in the list
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
                let run = Client::new(args.flags)?.get(&["runs", &args.id], &[]).await?;
                scan::show(&run, args.json);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn list(args: List) -> Result<(), Exit> {
    let mut answer = Client::new(args.flags)?.get(&["runs"], &[]).await?;
    if !args.json {
        for run in answer["runs"].as_array_mut().into_iter().flatten() {
            for key in ["outcome", "wish"] {
                run[key] = word(&run[key]);
            }
            run["held"] = run["drift"]["held"].clone();
        }
    }
    let columns = [
        ("RUN", "id"),
        ("", "wish"),
        ("", "outcome"),
        ("USERS", "users"),
        ("MISSED BY WEBHOOKS", "missedByWebhooks"),
        ("HELD", "held"),
        ("ENDED", "endedAt"),
    ];
    output::page(&answer, "runs", &columns, args.json);
    Ok(())
}

/// `failed` of `{"failed": {"reason": …}}`.
fn word(value: &Value) -> Value {
    match value.as_object().and_then(|object| object.keys().next()) {
        Some(key) => key.as_str().into(),
        None => value.clone(),
    }
}
