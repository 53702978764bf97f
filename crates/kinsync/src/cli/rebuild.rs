//! `kinsync rebuild`

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context as _, anyhow};
use clap::builder::PossibleValuesParser;
use indicatif::ProgressBar;
use kinsync_core::UserId;
use kinsync_engine::{
    Clock,
    internal::{
        log_snapshots, projections,
        rebuild::{Difference, DifferentField, Event, Finding, Mode, Rebuild, Report},
        store::{DamagedEntry, Store, embedded::EmbeddedStore},
    },
};
use serde::Serialize;
use serde_json::json;

use super::{
    audit,
    exit::{self, Exit},
    flags::ServerFlags,
    output,
    runtime::block_on_all,
    state,
};
use crate::{
    app::start::open_store,
    config::{Config, Sources},
    plural::counted,
};

const AFTER_HELP: &str = "\
The event log contains every observation that changed a user: events, reads of Kinde and tokens. A rebuild derives each user from the log \
again and replaces the stored state where it differs, one user at a time: applications read complete documents at any time, fields of your \
application are not changed, and servers may run at the same time. Only the embedded store allows one process: stop its server first, \
except for `--verify`. An interrupted rebuild continues at the last page if it is run again with the same flags within six hours.

A user with a damaged log entry, or with a stored value that no entry explains, is reported and left as it is.

With --json each line is an object with one member: `continues` (an interrupted rebuild, with the last user `after` which it continues), \
`difference` (a user that differs), `damaged` (a log entry that was changed after it was written), and at the end `report` (the counts), or \
`projection` (the counts of --projection).

Examples:
  kinsync rebuild --verify           compare, change nothing
  kinsync rebuild --verify --json    one JSON object per line
  kinsync rebuild --user kp_0190932d7592c68bda50d62b2ffa8cbb
  kinsync rebuild
  kinsync rebuild --projection growth

Exit codes: 0 users and log agree; 1 failed, run it again to continue; 2 wrong usage; 4 users differ from the log; 78 wrong settings";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Compare the stored users with the log, and change nothing
    #[arg(long)]
    verify: bool,
    /// Compare or rebuild only this user
    #[arg(long, value_name = "ID", value_parser = UserId::parse)]
    user: Option<UserId>,
    /// Also replace stored values that no log entry explains; these values are lost
    #[arg(long, conflicts_with = "verify")]
    replace_unexplained: bool,
    /// Compute the daily figures of this projection again, for all days, and rebuild no user
    #[arg(
        long,
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(projections::NAMES),
        conflicts_with_all = ["verify", "user", "replace_unexplained"]
    )]
    projection: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

impl Args {
    fn mode(&self) -> Mode {
        match (self.verify, self.replace_unexplained) {
            (true, _) => Mode::Verify,
            (false, true) => Mode::ReplaceUnexplained,
            (false, false) => Mode::Replace,
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    block_on_all(rebuild(args))
}

async fn rebuild(args: Args) -> Result<ExitCode, Exit> {
    let config = Config::of_command(&Sources::of_process(args.flags.0.clone()))?;
    if let Some(name) = &args.projection {
        return rebuild_projection(&config, name, args.json).await;
    }
    let clock = Clock::system();
    let store = open(&config, args.mode()).await?;
    if args.verify {
        is_complete(&*store).await?;
    } else {
        complete(&*store, &clock, &args).await?;
    }
    let bar = if args.user.is_some() {
        output::counter("users")
    } else {
        let counts = store.counts().await.map_err(anyhow::Error::from)?;
        output::counter_to("users", counts.live_users + counts.deleted_users)
    };
    let printer = Printer { bar, as_json: args.json };
    let mut listen = |event: Event<'_>| printer.print(&event);
    let rebuild = Rebuild::new(&*store, args.mode(), clock.now(), &mut listen);
    let report = match &args.user {
        Some(user) => rebuild.run_one(user).await,
        None => rebuild.run().await,
    };
    printer.bar.finish_and_clear();
    let report = report.context("the rebuild was interrupted; run the command again to continue")?;
    if args.json {
        output::line(&Line::Report(&report));
    } else {
        output::say(&summary(&report, args.verify));
    }
    if let Some(user) = args.user.filter(|_| report.users == 0) {
        return Err(anyhow!("no document and no entry of the log has the id {user}").into());
    }
    Ok(if report.is_different() { exit::users_differ() } else { ExitCode::SUCCESS })
}

async fn rebuild_projection(config: &Config, name: &str, as_json: bool) -> Result<ExitCode, Exit> {
    let store = open(config, Mode::Replace).await?;
    audit::record(&*store, "kinsync rebuild", json!({ "projection": name })).await?;
    let bar = output::counter("days");
    let mut progress = |_| bar.inc(1);
    let rebuilt = projections::rebuild(&*store, name, Clock::system().now(), &mut progress).await;
    bar.finish_and_clear();
    let report = rebuilt.map_err(anyhow::Error::from)?;
    let report = report.context("the rebuild was interrupted; run the command again")?;
    if as_json {
        output::line(&Line::Projection(&report));
        return Ok(ExitCode::SUCCESS);
    }
    let (days, entries) =
        (counted(report.computed, "day", "days"), counted(report.entries, "entry", "entries"));
    output::say(&format!("{days} computed from {entries} of the log"));
    if let Some(day) = report.kept_until {
        output::say(&format!("days up to {day} are kept as they were where the log has lost entries"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens the store. A comparison reads the embedded store beside a running server.
async fn open(config: &Config, mode: Mode) -> Result<Arc<dyn Store>, Exit> {
    state::store_exists(config)?;
    if mode == Mode::Verify && config.store.mongodb_uri.is_none() {
        let folder = config.data_dir.clone();
        let open = tokio::task::spawn_blocking(move || EmbeddedStore::open_read_only(&folder));
        let store = open.await.map_err(anyhow::Error::from)?.map_err(anyhow::Error::from)?;
        return Ok(Arc::new(store));
    }
    let opened = open_store(config).await.map_err(anyhow::Error::from)?;
    if mode != Mode::Verify {
        opened.prepare().await.map_err(anyhow::Error::from)?;
    }
    Ok(opened.store())
}

async fn is_complete(store: &dyn Store) -> Result<(), Exit> {
    let is_complete = log_snapshots::is_complete(store).await.map_err(anyhow::Error::from)?;
    let incomplete = || {
        anyhow!(
            "the log does not explain every user yet: an earlier version of kinsync stored some. `kinsync serve` completes the log \
             in the background, and `kinsync rebuild` at its start"
        )
    };
    if is_complete { Ok(()) } else { Err(incomplete().into()) }
}

/// Completes the log of an earlier version, and records the rebuild in the audit log and in the event log.
async fn complete(store: &dyn Store, clock: &Clock, args: &Args) -> Result<(), Exit> {
    let spinner = output::spinner("completing the log");
    let logged = log_snapshots::complete(store, clock).await;
    spinner.finish_and_clear();
    logged.context("completing the log was interrupted; run the command again to continue")?;
    let parameters = json!({ "id": args.user, "replaceUnexplained": args.replace_unexplained });
    audit::record(store, "kinsync rebuild", parameters).await
}

/// A line of `--json`: an object with one member.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Line<'a> {
    Continues { after: &'a str, report: &'a Report },
    Difference(&'a Difference),
    Damaged(&'a DamagedEntry),
    Report(&'a Report),
    Projection(&'a projections::Report),
}

/// Prints what a rebuild reports.
struct Printer {
    bar: ProgressBar,
    as_json: bool,
}

impl Printer {
    fn print(&self, event: &Event<'_>) {
        match event {
            Event::Continues(user, report) => {
                let text = || format!("continues after {user}; before: {}", summary(report, false));
                self.line(&Line::Continues { after: user, report }, text);
            }
            Event::Progress(report) => self.bar.set_position(report.users),
            Event::Different(one) => {
                self.line(&Line::Difference(one), || difference(one));
            }
            Event::Damaged(one) => {
                let user = output::cell(one.user.as_ref());
                let text =
                    format!("the log entry {} of the user {user} was changed after it was written", one.id);
                self.line(&Line::Damaged(one), || text);
            }
        }
    }

    fn line(&self, document: &Line<'_>, text: impl FnOnce() -> String) {
        self.bar.suspend(|| {
            if self.as_json { output::line(document) } else { output::say(&output::plain(&text())) }
        });
    }
}

/// `kp_1: the stored state differs: firstName (since event_1), phone; rebuilt`
fn difference(one: &Difference) -> String {
    let finding = match one.finding {
        Finding::Missing => "the document is missing",
        Finding::Different => "the stored state differs",
        Finding::Edited => "the application changed values of kinsync",
        Finding::Unexplained => {
            "the stored state contains values that no log entry explains (`--replace-unexplained` replaces them)"
        }
        Finding::Unusable => "entries of the log cannot be used",
    };
    let field = |DifferentField { field, since, unexplained }: &DifferentField| match (unexplained, since) {
        (Some(unexplained), _) => format!("{field} (unexplained: {unexplained})"),
        (None, Some(since)) => format!("{field} (since {since})"),
        (None, None) => field.clone(),
    };
    let fields: Vec<String> = one.fields.iter().map(field).chain(one.unusable.iter().cloned()).collect();
    let done = match (&one.refused, one.is_rebuilt) {
        (Some(reason), _) => format!("; the store refuses it: {reason}"),
        (None, true) => "; rebuilt".to_owned(),
        (None, false) => String::new(),
    };
    format!("{}: {finding}: {}{done}", one.user, fields.join(", "))
}

fn summary(report: &Report, is_dry: bool) -> String {
    let rebuilt = if is_dry { String::new() } else { format!(", {} rebuilt", report.rebuilt) };
    let damaged = match report.damaged {
        0 => String::new(),
        damaged => format!("; {}", counted(damaged, "damaged entry", "damaged entries")),
    };
    format!(
        "{} and {} of the log compared: {} different{rebuilt}{damaged}",
        counted(report.users, "user", "users"),
        counted(report.entries, "entry", "entries"),
        report.different
    )
}
