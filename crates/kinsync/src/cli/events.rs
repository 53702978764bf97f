//! `kinsync events list|show|replay`

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    client::Client,
    exit::Exit,
    flags::ClientFlags,
    list::{Column, List, Page, Show},
    output::{self, cell},
    runtime::block_on,
};
use crate::{
    api::{
        Time,
        events::{Event, EventPage, EventSummary, EventsQuery, ReplayRequest, Replayed},
    },
    plural::counted,
};

const LIST_HELP: &str = "\
Examples:
  kinsync events list --user kp_0190932d7592c68bda50d62b2ffa8cbb
  kinsync events list --type user.deleted --json
  kinsync events list --source operator --since 2026-11-01T00:00:00Z";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List events, the most recently received first
    #[command(after_help = LIST_HELP)]
    List(List<EventsQuery>),
    /// Show one event with its payload
    Show(Show),
    /// Apply entries of the log again, or list what that would change
    #[command(after_help = REPLAY_HELP, override_usage = "kinsync events replay [OPTIONS] [EVENT]")]
    Replay(Replay),
}

const REPLAY_HELP: &str = "\
Needs EVENT or at least one filter: --user, --type, --since, --until. An entry has to match all filters. The entries are decoded and \
joined as on their arrival, so a stored user that contains them already stays as it is. Replay events after a newer kinsync decodes what an \
earlier one could not, or after a dead letter was removed too early.

Examples:
  kinsync events replay event_019a --dry-run
  kinsync events replay --user kp_0190932d7592c68bda50d62b2ffa8cbb
  kinsync events replay --type user.updated --since 2026-11-01T00:00:00Z";

#[derive(Debug, clap::Args)]
#[group(id = "criterion", required = true, multiple = true, args = ["event", "user", "event_type", "since", "until"])]
pub(super) struct Replay {
    /// Only this entry
    #[arg(conflicts_with_all = ["user", "event_type", "since", "until"])]
    event: Option<String>,
    /// Only entries of this user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Only entries of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only entries received at this time or later, such as 2026-11-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Time>,
    /// Only entries received before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Time>,
    /// List what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(list) => list.run::<EventPage>(),
        Command::Show(show) => show.run::<Event>(EventPage::PATH),
        Command::Replay(args) => block_on(replay(args)),
    }
}

async fn replay(args: Replay) -> Result<ExitCode, Exit> {
    let Replay { event: event_id, user, event_type, since, until, dry_run, json, flags } = args;
    let client = Client::new(flags)?;
    let mut request = ReplayRequest { event_id, user, event_type, since, until, after: None, dry_run };
    let mut all = Replayed { entries: 0, changed: Vec::new(), skipped: Vec::new(), next: None };
    let bar = output::counter("entries");
    loop {
        let page: Replayed = client.post_json(&[EventPage::PATH, "replay"], &request).await?;
        all.entries += page.entries;
        all.changed.extend(page.changed);
        all.skipped.extend(page.skipped);
        bar.set_position(all.entries);
        match page.next {
            Some(next) => request.after = Some(next),
            None => break,
        }
    }
    bar.finish_and_clear();
    if json {
        output::json(&all);
    } else {
        print(&all, dry_run);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(replayed: &Replayed, dry_run: bool) {
    if replayed.entries == 0 {
        return output::say("no entry of the log matches, so nothing was replayed");
    }
    if replayed.changed.is_empty() {
        output::say(if dry_run { "no user would change" } else { "no user changed" });
    } else {
        let changed = replayed.changed.iter().map(|one| [one.user.clone(), one.fields.join(", ")]);
        output::table(["USER", if dry_run { "WOULD CHANGE" } else { "CHANGED" }], changed);
    }
    if !replayed.skipped.is_empty() {
        output::say("");
        let skipped = replayed.skipped.iter().map(|one| [one.id.clone(), one.reason.clone()]);
        output::table(["SKIPPED", "REASON"], skipped);
    }
    let entries = counted(replayed.entries, "entry", "entries");
    output::say(&format!("\n{entries} read, {} skipped", replayed.skipped.len()));
}

impl Page for EventPage {
    type Query = EventsQuery;
    type Item = EventSummary;

    const PATH: &'static str = "events";
    const COLUMNS: &'static [Column<EventSummary>] = &[
        ("EVENT", |event| event.event_id.clone()),
        ("TYPE", |event| event.event_type.clone()),
        ("SOURCE", |event| event.source.as_str().to_owned()),
        ("USER", |event| cell(event.user.as_ref())),
        ("KINDE'S TIME", |event| cell(event.at.as_ref())),
        ("RECEIVED", |event| event.received_at.to_string()),
        ("SCHEME", |event| event.scheme.clone()),
    ];

    fn items(&self) -> &[EventSummary] {
        &self.events
    }

    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn undecodable(&self) -> &[String] {
        &self.undecodable
    }
}
