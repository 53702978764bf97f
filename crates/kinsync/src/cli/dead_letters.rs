//! `kinsync dead-letters list|show|retry|drop`

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Subcommand;
use serde::Serialize;

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};
use crate::api::dead_letters::{DeadLetter, DeadLetterChanged, DeadLetterPage, DeadLettersQuery};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters and their reasons, oldest first
    List(List),
    /// Show one dead letter with its payload
    Show(Show),
    /// Put dead letters back into the queue
    #[command(after_help = "Examples:\n  kinsync dead-letters retry 17\n  kinsync dead-letters retry --all")]
    Retry(Retry),
    /// Remove one dead letter
    #[command(after_help = "Example:\n  kinsync dead-letters drop 17 --yes")]
    Drop(Drop),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Continue after this id
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// List at most this many, up to 1000
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
    /// The id in the list
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

#[derive(Debug, clap::Args)]
pub(super) struct Retry {
    /// The ids in the list
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// Retry every dead letter that exists now
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
    /// The id in the list
    id: String,
    /// Confirm that the delivery is lost with it
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

/// The result of `retry`, for programs.
#[derive(Serialize)]
struct Retried {
    /// The ids that are in the queue again.
    queued: Vec<String>,
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
    let query = DeadLettersQuery { after: args.after, limit: Some(args.limit) };
    let page: DeadLetterPage = Client::new(args.flags)?.list(&["dead-letters"], &query).await?;
    if args.json {
        output::json(&page);
        return Ok(ExitCode::SUCCESS);
    }
    let rows = page.dead_letters.iter().map(|letter| {
        let (id, dead_at) = (letter.id.clone(), letter.dead_at.to_string());
        [id, letter.event_id.clone(), dead_at, letter.reason.clone()]
    });
    output::page(["ID", "EVENT", "SET ASIDE", "REASON"], rows.collect(), page.next.as_ref());
    Ok(ExitCode::SUCCESS)
}

async fn show(args: Show) -> Result<ExitCode, Exit> {
    let letter: DeadLetter = Client::new(args.flags)?.get(&["dead-letters", &args.id]).await?;
    output::one(&letter, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn retry(args: Retry) -> Result<ExitCode, Exit> {
    let client = Client::new(args.flags)?;
    let ids = if args.all { all(&client).await? } else { args.ids };
    for id in &ids {
        let _: DeadLetterChanged = client.post(&["dead-letters", id, "retry"]).await?;
        if !args.json {
            output::say(&format!("{id} is in the queue again"));
        }
    }
    if args.json {
        output::json(&Retried { queued: ids });
    } else if ids.is_empty() {
        output::say("there are no dead letters");
    }
    Ok(ExitCode::SUCCESS)
}

/// The dead letters that exist now. They are listed before the first retry: one that fails again becomes a new dead letter,
/// and would be retried without end.
async fn all(client: &Client) -> Result<Vec<String>, Exit> {
    let mut ids = Vec::new();
    let mut query = DeadLettersQuery { after: None, limit: Some(1000) };
    loop {
        let page: DeadLetterPage = client.list(&["dead-letters"], &query).await?;
        ids.extend(page.dead_letters.iter().map(|letter| letter.id.clone()));
        query.after = page.next;
        if query.after.is_none() {
            return Ok(ids);
        }
    }
}

async fn drop_one(args: Drop) -> Result<ExitCode, Exit> {
    if !args.yes {
        return Err(Exit::Failed(anyhow!(
            "dead letter {id} cannot be restored once it is removed: read it with `kinsync dead-letters show {id}`, then \
             pass --yes",
            id = args.id
        )));
    }
    let changed: DeadLetterChanged = Client::new(args.flags)?.delete(&["dead-letters", &args.id]).await?;
    if args.json {
        output::json(&changed);
    } else {
        output::say(&format!("{} is removed", changed.id));
    }
    Ok(ExitCode::SUCCESS)
}
