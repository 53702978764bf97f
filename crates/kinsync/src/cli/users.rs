//! `kinsync users list|show|explain`

use std::process::ExitCode;

use clap::Subcommand;

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};
use crate::api::{
    Time,
    explain::{Explanation, NextScan, Observation},
    users::{User, UserPage, UsersQuery},
};

const LIST_HELP: &str = "\
Examples:
  kinsync users list --email ada@example.com
  kinsync users list --deleted --limit 1000 --json | jq '.users[].kindeId'";

const EXPLAIN_HELP: &str = "\
Events are complete, from the event log. Of reads of Kinde and of tokens only values that still hold are known. The next \
scan is determined by reading this user from Kinde, for at most a few seconds.

Example:
  kinsync users explain kp_0190932d7592c68bda50d62b2ffa8cbb";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List users in the order of their ids
    #[command(after_help = LIST_HELP)]
    List(List),
    /// Show one user as an application reads it
    Show(Show),
    /// Show every observation of a user, what came of it, and what the next scan would do
    #[command(after_help = EXPLAIN_HELP)]
    Explain(Show),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// List only the user with this email address, shown or in conflict
    #[arg(long)]
    email: Option<String>,
    /// List only the user with this id of your application at Kinde
    #[arg(long, value_name = "ID")]
    provided_id: Option<String>,
    /// Include deleted users
    #[arg(long)]
    deleted: bool,
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
    /// The Kinde id, such as `kp_0190932d7592c68bda50d62b2ffa8cbb`
    id: String,
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
        Command::Explain(args) => block_on(explain(args)),
    }
}

async fn list(args: List) -> Result<ExitCode, Exit> {
    let List { email, provided_id, deleted, after, limit, json, flags } = args;
    let query = UsersQuery { email, provided_id, deleted, after, limit: Some(limit) };
    let page: UserPage = Client::new(flags)?.list(&["users"], &query).await?;
    if json {
        output::json(&page);
        return Ok(ExitCode::SUCCESS);
    }
    let rows = page.users.iter().map(|user| {
        [
            user.kinde_id.to_string(),
            output::cell(user.email.as_ref()),
            output::cell(user.first_name.as_ref()),
            output::cell(user.last_name.as_ref()),
            Time::from(user.updated_at).to_string(),
            output::cell(user.deleted_at.map(Time::from).as_ref()),
        ]
    });
    let titles = ["ID", "EMAIL", "FIRST NAME", "LAST NAME", "UPDATED", "DELETED"];
    output::page(titles, rows.collect(), page.next.as_ref());
    output::undecodable(&page.undecodable);
    Ok(ExitCode::SUCCESS)
}

async fn show(args: Show) -> Result<ExitCode, Exit> {
    let user: User = Client::new(args.flags)?.get(&["users", &args.id]).await?;
    output::one(&user, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn explain(args: Show) -> Result<ExitCode, Exit> {
    let explanation: Explanation = Client::new(args.flags)?.get(&["users", &args.id, "explain"]).await?;
    if args.json {
        output::json(&explanation);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(rejected) = &explanation.rejected {
        let what = if rejected.is_missing { "the document" } else { "the newest state" };
        let (since, reason) = (&rejected.since, &rejected.reason);
        output::say(&format!("The database rejects {what} of this user since {since}: {reason}\n"));
    }
    for (key, reason) in &explanation.refused_keys {
        output::say(&format!("The document does not show {key}: {reason}"));
    }
    let rows: Vec<_> = explanation.observations.iter().flat_map(lines).collect();
    if rows.is_empty() {
        output::say("only an authenticated request of this user is known");
    } else {
        output::table(["KINDE'S TIME", "RECEIVED", "KIND", "VALUE", "OUTCOME"], rows);
    }
    output::say("\nOf reads of Kinde and of tokens only values that still hold are known.");
    if explanation.older_events_omitted {
        output::say("Older events are omitted: kinsync events list --user");
    }
    output::say(&format!("\nThe next scan: {}", next_scan(&explanation.next_scan)));
    Ok(ExitCode::SUCCESS)
}

/// One line for the observation, and one for each of its fields.
fn lines(observation: &Observation) -> Vec<[String; 5]> {
    let (at, received) = (observation.at.as_ref(), observation.received_at.as_ref());
    let mut lines = vec![[
        output::cell(at),
        output::cell(received),
        observation.kind.clone(),
        String::new(),
        observation.outcome.clone(),
    ]];
    for field in &observation.fields {
        let outcome = match (&field.superseded_by, field.is_current) {
            (Some(by), _) => format!("superseded by {by}"),
            (None, true) => "is in the store".to_owned(),
            (None, false) => "not in the store yet".to_owned(),
        };
        let value = serde_json::to_string(&field.value).expect("a value has only text keys");
        let value = format!("{} = {value}", field.field);
        lines.push([String::new(), String::new(), String::new(), value, outcome]);
    }
    lines
}

fn next_scan(next: &NextScan) -> String {
    match next {
        NextScan::Unknown { reason } => format!("unknown: {reason}"),
        NextScan::Unchanged => "nothing to do, the stored user equals Kinde's".to_owned(),
        NextScan::Drift { kind, fields } if fields.is_empty() => {
            format!("the user {}", super::scan::would(*kind))
        }
        NextScan::Drift { kind, fields } => {
            format!("the user {}: {}", super::scan::would(*kind), fields.join(", "))
        }
    }
}
