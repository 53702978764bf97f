//! `kinsync audit list`

use std::process::ExitCode;

use clap::Subcommand;

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};
use crate::api::audit::{AuditPage, AuditQuery};

const LIST_HELP: &str = "\
The name of the admin token stands for the operator. The same read, repeated within ten minutes, is one record with a \
count. Of each kind the newest 10,000 records are kept, for up to 400 days.

Example:
  kinsync audit list --json | jq '.records[] | select(.kind == \"action\")'";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List which operator read personal data or changed something, newest first
    #[command(after_help = LIST_HELP)]
    List(List),
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

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(args) => block_on(list(args)),
    }
}

async fn list(args: List) -> Result<ExitCode, Exit> {
    let query = AuditQuery { after: args.after, limit: Some(args.limit) };
    let page: AuditPage = Client::new(args.flags)?.list(&["audit"], &query).await?;
    if args.json {
        output::json(&page);
        return Ok(ExitCode::SUCCESS);
    }
    let rows = page.records.iter().map(|record| {
        let parameters = serde_json::to_string(&record.parameters).expect("a map has only text keys");
        let parameters = if record.parameters.is_empty() { String::new() } else { parameters };
        let (at, count) = (record.last_at.to_string(), record.count.to_string());
        [at, record.actor.clone(), record.peer.clone(), count, record.route.clone(), parameters]
    });
    let titles = ["AT", "ACTOR", "ADDRESS", "COUNT", "REQUEST", "PARAMETERS"];
    output::page(titles, rows.collect(), page.next.as_ref());
    Ok(ExitCode::SUCCESS)
}
