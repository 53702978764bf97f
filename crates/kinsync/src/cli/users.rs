//! `kinsync users list|show`

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    client::{Client, block_on},
    exit::Exit,
    flags::ClientFlags,
    output,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List users in the order of their ids
    #[command(after_help = "Examples:\n  kinsync users list --email ada@example.com\n  kinsync users list \
                            --deleted --limit 1000 --json | jq '.users[].kindeId'")]
    List(List),
    /// Show one user as an application reads it
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only the user who has this address, or claims it
    #[arg(long)]
    email: Option<String>,
    /// Deleted users too
    #[arg(long)]
    deleted: bool,
    /// Continue after this id
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
    }
}

async fn list(args: List) -> Result<ExitCode, Exit> {
    let query = [
        ("email", args.email),
        ("deleted", args.deleted.then(|| "true".to_owned())),
        ("after", args.after),
        ("limit", Some(args.limit.to_string())),
    ];
    let page = Client::new(args.flags)?.get(&["users"], &query).await?;
    let columns = [
        ("ID", "kindeId"),
        ("EMAIL", "email"),
        ("FIRST NAME", "firstName"),
        ("LAST NAME", "lastName"),
        ("UPDATED", "updatedAt"),
        ("DELETED", "deletedAt"),
    ];
    output::page(&page, "users", &columns, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn show(args: Show) -> Result<ExitCode, Exit> {
    let user = Client::new(args.flags)?.get(&["users", &args.id], &[]).await?;
    output::one(&user, args.json);
    Ok(ExitCode::SUCCESS)
}
