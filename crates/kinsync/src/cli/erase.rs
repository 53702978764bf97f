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
        for line in lines(&erased, &query) {
            output::say_wrapped(&line, 4);
        }
    }
    match &erased.refused {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => Err(anyhow!(
            "the document still shows personal data: {reason}; change the rule, and a server completes the erasure"
        )
        .into()),
    }
}

/// What was erased, what stays and what happens later.
fn lines(erased: &Erased, query: &EraseQuery) -> Vec<String> {
    let (title, kept, later) = match (erased.dry_run, erased.was_erased) {
        (true, _) => ("would be erased:", "would be kept:", "would repeat"),
        (false, true) => ("erased again:", "kept:", "repeats"),
        (false, false) => ("erased:", "kept:", "repeats"),
    };
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let log = counted(erased.entries + erased.other_entries, "entry", "entries");
    let mut lines = vec![
        format!("{} {title}", erased.user),
        format!("  values of the document and of the state: {}", list(&erased.fields)),
        format!("  contents of {log} of the event log"),
        format!("  {}", counted(erased.queued, "queued delivery", "queued deliveries")),
        format!("  {}", counted(erased.dead_letters, "dead letter", "dead letters")),
        format!("  {} of the audit log", counted(erased.audit_records, "record", "records")),
    ];
    if query.application_fields {
        lines.push(format!("  fields of your application: {}", list(&erased.application_fields)));
    }
    lines.extend([
        kept.to_owned(),
        "  the id and the deletion, so that no late event restores the user".to_owned(),
        "  id, type, times and a hash of each entry of the event log".to_owned(),
        "  actions of operators in the audit log, with the id alone".to_owned(),
    ]);
    if !query.application_fields {
        lines.push("  fields of your application, if any: --application-fields erases them".to_owned());
    }
    if erased.refused.is_none() {
        lines.push(format!(
        "later: after ten minutes and after two hours a server {later} this, except for fields of your application, because \
         another process may store what it read before"
    ));
    }
    lines.push("not reached: backups, the oplog and other files, see docs/guides/erasure.md".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_is_kept_and_what_happens_later() {
        let check = |dry_run, application_fields, expected: &[&str], absent: &str| {
            let erased = Erased {
                user: "kp_1".into(),
                dry_run,
                was_erased: false,
                fields: vec!["email".into()],
                entries: 1,
                other_entries: 0,
                queued: 1,
                dead_letters: 0,
                audit_records: 2,
                application_fields: Vec::new(),
                refused: None,
            };
            let text = lines(&erased, &EraseQuery { dry_run, application_fields }).join("\n");
            for expected in expected {
                assert!(text.contains(expected), "{expected} is not in\n{text}");
            }
            assert!(!text.contains(absent), "{text}");
        };
        let done = [
            "kp_1 erased:\n",
            "contents of 1 entry",
            "\nkept:\n",
            "--application-fields",
            "a server repeats this",
        ];
        check(false, false, &done, "would");
        let dry =
            ["kp_1 would be erased:\n", "fields of your application: none", "a server would repeat this"];
        check(true, true, &dry, "--application-fields");
    }
}
