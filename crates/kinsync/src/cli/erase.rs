//! `kinsync users erase`

use std::process::ExitCode;

use anyhow::anyhow;

use super::{client::Client, exit::Exit, flags::ClientFlags, output};
use crate::{
    api::{
        erasure::{EraseQuery, Erased},
        users::UserPage,
    },
    cli::list::Page as _,
    plural::counted,
};

pub(super) const AFTER_HELP: &str = "\
For requests of users to erase their data (GDPR article 17). Delete the user in Kinde first: Kinde remains the source, and a user that is \
not deleted is refused. Removed are the fields of the document and of the state, the contents of all log entries of the user (type, time \
and a hash remain), dead letters, queued deliveries, records of reads in the audit log, and the user in the caches of all servers. The \
deletion remains, so that no late event restores the user. Fields of your application stay unless `--application-fields` is set. An \
interrupted erasure is continued by a server. docs/guides/erasure.md describes backups, the oplog and other files that keep former \
contents.

Examples:
  kinsync users erase kp_0190932d7592c68bda50d62b2ffa8cbb --dry-run
  kinsync users erase kp_0190932d7592c68bda50d62b2ffa8cbb --yes";

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub(super) struct Args {
    /// The id of the user
    id: String,
    /// Confirm the erasure, which cannot be undone
    #[arg(long, required_unless_present = "dry_run", conflicts_with = "dry_run")]
    yes: bool,
    /// Print what would be erased, and erase nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove the fields of your application from the document too
    #[arg(long)]
    application_fields: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

pub(super) async fn erase(args: Args) -> Result<ExitCode, Exit> {
    let client = Client::new(args.flags)?;
    let query = EraseQuery { dry_run: args.dry_run, application_fields: args.application_fields };
    let path = [UserPage::PATH, args.id.as_str(), "erase"];
    let erased: Erased = client.post_query(&path, &query).await?;
    if args.json {
        output::json(&erased);
    } else {
        output::say(&lines(&erased).join("\n"));
    }
    match &erased.refused {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => Err(anyhow!(
            "the document still shows personal data: {reason}; change the rule, and a server completes the erasure"
        )
        .into()),
    }
}

fn lines(erased: &Erased) -> Vec<String> {
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let log = erased.entries + erased.other_entries;
    let title = match (erased.dry_run, erased.was_erased) {
        (true, _) => "would be erased:",
        (false, true) => "erased again:",
        (false, false) => "erased:",
    };
    vec![
        format!("{} {title}", erased.user),
        format!("  fields: {}", list(&erased.fields)),
        format!("  {} of the event log", counted(log, "entry", "entries")),
        format!("  {}", counted(erased.queued, "queued delivery", "queued deliveries")),
        format!("  {}", counted(erased.dead_letters, "dead letter", "dead letters")),
        format!("  {} of the audit log", counted(erased.audit_records, "record", "records")),
        match erased.application_fields.as_slice() {
            [] => "  no field of the application".to_owned(),
            names => format!("  fields of the application: {}", list(names)),
        },
    ]
}
