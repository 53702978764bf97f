//! `kinsync events list|show`

use std::process::ExitCode;

use clap::Subcommand;

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};
use crate::api::events::{Event, EventPage, EventsQuery};

const LIST_HELP: &str = "\
Examples:
  kinsync events list --user kp_0190932d7592c68bda50d62b2ffa8cbb
  kinsync events list --type user.deleted --json";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List events, newest received first
    #[command(after_help = LIST_HELP)]
    List(List),
    /// Show one event with its payload
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// List only events of this user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// List only events of this type, such as `user.updated`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Continue after this event
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
    /// The id of the event
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
    }
}

async fn list(args: List) -> Result<ExitCode, Exit> {
    let List { user, event_type, after, limit, json, flags } = args;
    let query = EventsQuery { user, event_type, after, limit: Some(limit) };
    let page: EventPage = Client::new(flags)?.list(&["events"], &query).await?;
    if json {
        output::json(&page);
        return Ok(ExitCode::SUCCESS);
    }
    let rows = page.events.iter().map(|event| {
        [
            event.event_id.clone(),
            event.event_type.clone(),
            output::cell(event.user.as_ref()),
            output::cell(event.at.as_ref()),
            event.received_at.to_string(),
            event.scheme.clone(),
        ]
    });
    let titles = ["EVENT", "TYPE", "USER", "KINDE'S TIME", "RECEIVED", "SCHEME"];
    output::page(titles, rows.collect(), page.next.as_ref());
    output::undecodable(&page.undecodable);
    Ok(ExitCode::SUCCESS)
}

async fn show(args: Show) -> Result<ExitCode, Exit> {
    let event: Event = Client::new(args.flags)?.get(&["events", &args.id]).await?;
    output::one(&event, args.json);
    Ok(ExitCode::SUCCESS)
}
