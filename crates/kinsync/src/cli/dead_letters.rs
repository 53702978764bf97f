//! `kinsync dead-letters list|show|retry|drop`

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters, oldest first, with the reason
    List(List),
    /// Show one dead letter with what it says
    Show(Show),
    /// Put dead letters back into the queue
    #[command(after_help = "Examples:\n  kinsync dead-letters retry 17\n  kinsync dead-letters retry --all")]
    Retry(Retry),
    /// Remove a dead letter for good
    #[command(after_help = "Example:\n  kinsync dead-letters drop 17 --yes")]
    Drop(Drop),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Continue after this one
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// At most this many, up to 1000
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The number in the list
    id: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

#[derive(Debug, clap::Args)]
pub(super) struct Retry {
    /// The numbers in the list
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<u64>,
    /// All that are there now
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

#[derive(Debug, clap::Args)]
pub(super) struct Drop {
    /// The number in the list
    id: u64,
    /// Yes, for good
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(args) => block_on(list(args)),
        Command::Show(args) => block_on(show(args)),
        Command::Retry(args) => block_on(retry(args)),
        Command::Drop(args) => block_on(drop_one(args)),
    }
}

async fn list(args: List) -> Result<ExitCode, Exit> {
    let query = [("after", args.after.map(|id| id.to_string())), ("limit", Some(args.limit.to_string()))];
    let page = Client::new(args.flags)?.get(&["dead-letters"], &query).await?;
    let columns = [("ID", "id"), ("EVENT", "eventId"), ("SET ASIDE", "deadAt"), ("REASON", "reason")];
    output::page(&page, "deadLetters", &columns, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn show(args: Show) -> Result<ExitCode, Exit> {
    let letter = Client::new(args.flags)?.get(&["dead-letters", &args.id.to_string()], &[]).await?;
    output::one(&letter, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn retry(args: Retry) -> Result<ExitCode, Exit> {
    let client = Client::new(args.flags)?;
    let ids = if args.all { all(&client).await? } else { args.ids };
    for id in &ids {
        client.post(&["dead-letters", &id.to_string(), "retry"]).await?;
        if !args.json {
            output::say(&format!("{id} is in the queue again"));
        }
    }
    if args.json {
        output::json(&json!({ "queued": ids }));
    } else if ids.is_empty() {
        output::say("there are no dead letters");
    }
    Ok(ExitCode::SUCCESS)
}

/// The dead letters that are there now. Listed before any is tried again: one that fails again comes back, and must
/// not be tried for ever.
async fn all(client: &Client) -> Result<Vec<u64>, Exit> {
    let mut ids = Vec::new();
    let mut after = None;
    loop {
        let query = [("after", after), ("limit", Some("1000".to_owned()))];
        let page = client.get(&["dead-letters"], &query).await?;
        let letters = page["deadLetters"].as_array().into_iter().flatten();
        ids.extend(letters.filter_map(|letter| letter["id"].as_u64()));
        after = page["next"].as_u64().map(|id| id.to_string());
        if after.is_none() {
            return Ok(ids);
        }
    }
}

async fn drop_one(args: Drop) -> Result<ExitCode, Exit> {
    if !args.yes {
        return Err(Exit::Failed(anyhow!(
            "dead letter {id} would be gone for good: look at it with `kinsync dead-letters show {id}`, then pass --yes",
            id = args.id
        )));
    }
    let answer: Value = Client::new(args.flags)?.delete(&["dead-letters", &args.id.to_string()]).await?;
    if args.json {
        output::json(&answer);
    } else {
        output::say(&format!("{} is dropped", args.id));
    }
    Ok(ExitCode::SUCCESS)
}
