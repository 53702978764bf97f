//! `kinsync dead-letters list|show|retry|drop`

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::{
    client::Client,
    exit::Exit,
    flags::ClientFlags,
    list::{Column, List, Page, Show},
    output,
    runtime::block_on,
};
use crate::api::dead_letters::{
    DeadLetter, DeadLetterChanged, DeadLetterPage, DeadLetterSummary, DeadLettersQuery,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters and their reasons, oldest first
    List(List<DeadLettersQuery>),
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
        Command::List(list) => list.run::<DeadLetterPage>(),
        Command::Show(show) => show.run::<DeadLetter>(DeadLetterPage::PATH),
        Command::Retry(args) => block_on(retry(args)),
        Command::Drop(args) => block_on(drop_one(args)),
    }
}

impl Page for DeadLetterPage {
    type Query = DeadLettersQuery;
    type Item = DeadLetterSummary;

    const PATH: &'static str = "dead-letters";
    const COLUMNS: &'static [Column<DeadLetterSummary>] = &[
        ("ID", |letter| letter.id.clone()),
        ("EVENT", |letter| letter.event_id.clone()),
        ("SINCE", |letter| letter.dead_at.to_string()),
        ("REASON", |letter| letter.reason.clone()),
    ];

    fn items(&self) -> &[DeadLetterSummary] {
        &self.dead_letters
    }

    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }
}

async fn retry(args: Retry) -> Result<ExitCode, Exit> {
    let client = Client::new(args.flags)?;
    let ids = if args.all { all(&client).await? } else { args.ids };
    for id in &ids {
        let _: DeadLetterChanged = client.post(&[DeadLetterPage::PATH, id, "retry"]).await?;
        if !args.json {
            output::say(&format!("{id} is in the queue again, as a new entry"));
        }
    }
    if args.json {
        output::json(&Retried { queued: ids });
    } else if ids.is_empty() {
        output::say("there are no dead letters");
    } else {
        output::say("\nWhat fails again gets a new id: see `kinsync dead-letters list`.");
    }
    Ok(ExitCode::SUCCESS)
}

/// The dead letters that exist now. They are listed before the first retry: one that fails again becomes a new dead letter,
/// and would be retried without end.
async fn all(client: &Client) -> Result<Vec<String>, Exit> {
    let mut ids = Vec::new();
    let mut query = DeadLettersQuery { after: None, limit: Some(1000) };
    loop {
        let page: DeadLetterPage = client.list(&[DeadLetterPage::PATH], &query).await?;
        ids.extend(page.dead_letters.iter().map(|letter| letter.id.clone()));
        query.after = page.next;
        if query.after.is_none() {
            return Ok(ids);
        }
    }
}

async fn drop_one(args: Drop) -> Result<ExitCode, Exit> {
    if !args.yes {
        return Err(Exit::Usage(format!(
            "dead letter {id} cannot be restored once it is removed: read it with `kinsync dead-letters show {id}`, then \
             pass --yes",
            id = args.id
        )));
    }
    let changed: DeadLetterChanged =
        Client::new(args.flags)?.delete(&[DeadLetterPage::PATH, &args.id]).await?;
    if args.json {
        output::json(&changed);
    } else {
        output::say(&format!("{} is removed", changed.id));
    }
    Ok(ExitCode::SUCCESS)
}
