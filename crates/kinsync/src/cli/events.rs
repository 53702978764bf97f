//! `kinsync events list|show`

use std::process::ExitCode;

use clap::Subcommand;

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List events, newest received first
    #[command(after_help = "Examples:\n  kinsync events list --user kp_0190932d7592c68bda50d62b2ffa8cbb\n  \
                            kinsync events list --type user.deleted --json")]
    List(List),
    /// Show one event with what it says
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only those of this user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Only those of this type, such as `user.updated`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Continue after this event
    #[arg(long, value_name = "ID")]
    after: Option<String>,
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
    let query = [
        ("user", args.user),
        ("type", args.event_type),
        ("after", args.after),
        ("limit", Some(args.limit.to_string())),
    ];
    let page = Client::new(args.flags)?.get(&["events"], &query).await?;
    let columns = [
        ("EVENT", "eventId"),
        ("TYPE", "type"),
        ("USER", "user"),
        ("HAPPENED", "at"),
        ("RECEIVED", "receivedAt"),
        ("SCHEME", "scheme"),
    ];
    output::page(&page, "events", &columns, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn show(args: Show) -> Result<ExitCode, Exit> {
    let event = Client::new(args.flags)?.get(&["events", &args.id], &[]).await?;
    output::one(&event, args.json);
    Ok(ExitCode::SUCCESS)
}
