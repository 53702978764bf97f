//! `kinsync link`

use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use kinsync_engine::{
    Clock,
    internal::{
        link::{self, Candidate, LinkReport, Verdict},
        store::{
            Store as _, UserFilter,
            mongo::{KeptKey, LinkByEmail, MongoStore, REMEDIES},
        },
    },
};
use secrecy::ExposeSecret;
use serde::Serialize;

use super::{audit, exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    app::start::mongo_config,
    config::{Config, Sources},
    plural::counted,
};

const AFTER_HELP: &str = "\
Links each document that your application created to the Kinde user with the same email address, so that both become one document with \
your fields in it. Kinde must have verified the address, and it must be in one document only: an address that is not verified links \
nothing. Addresses are compared as they are written, unless KINSYNC_LINK_BY_EMAIL is `verified-ignore-case`; documents with an address \
that differs in case or surrounding spaces only are listed with the user. `kinsync serve` links a document by itself as soon as Kinde \
reports the verified address, when the user signs in.

Run `kinsync backfill` first: it loads the users.

Examples:
  kinsync link --dry-run                            list, change nothing
  kinsync link --dry-run --only conflicts --json    list the conflicts
  kinsync link

Exit codes: 0 done, with conflicts or without; 1 failed; 78 wrong settings";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// List what would be linked and what conflicts, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The documents to list
    #[arg(long, value_enum, default_value = "all")]
    only: Only,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Only {
    All,
    Linked,
    Conflicts,
}

impl Only {
    fn shows(self, verdict: Verdict) -> bool {
        match self {
            Self::All => true,
            Self::Linked => verdict == Verdict::Linked,
            Self::Conflicts => verdict != Verdict::Linked,
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    block_on(link(args))
}

async fn link(args: Args) -> Result<ExitCode, Exit> {
    let config = Config::of_command(&Sources::of_process(args.flags.0))?;
    let Some(uri) = &config.store.mongodb_uri else {
        return Err(anyhow::anyhow!(
            "the embedded store holds no documents of an application: set MONGODB_URI"
        )
        .into());
    };
    if config.store.link_by_email == LinkByEmail::Never && !args.dry_run {
        let text = "linking is off: set KINSYNC_LINK_BY_EMAIL=verified, or use --dry-run";
        return Err(anyhow::anyhow!(text).into());
    }
    let run = if args.dry_run { link::Run::Dry } else { link::Run::Link };
    let store = MongoStore::connect(mongo_config(&config.store, uri.expose_secret()));
    let store = store.await.map_err(anyhow::Error::from)?;
    if !args.dry_run {
        store.prepare().await.map_err(anyhow::Error::from)?;
    }
    let first = UserFilter { with_deleted: true, limit: 1, ..UserFilter::default() };
    if store.users(&first).await.map_err(anyhow::Error::from)?.is_empty() {
        let text = "no users are loaded yet, so no document can be linked: run `kinsync backfill` first";
        return Err(anyhow::anyhow!(text).into());
    }
    if !args.dry_run {
        audit::record(&store, "kinsync link", serde_json::json!({})).await?;
    }
    let bar = output::counter("documents read");
    let progress = |found: &LinkReport| bar.set_position(found.rows);
    let found = link::link(&store, Clock::system().now(), run, &progress).await;
    bar.finish_and_clear();
    let found = found
        .context("each document is linked completely or not at all; run the command again to continue")?;
    let report = Report::new(&found, args.only, args.dry_run);
    if args.json {
        output::json(&report);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

/// The result, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    dry_run: bool,
    /// Documents of the application that have an email address.
    documents: u64,
    /// Of these, the documents with an address that no user has, in any case or with any spaces.
    without_user: u64,
    linked: usize,
    conflicts: usize,
    /// The documents that `--only` selects.
    candidates: Vec<Listed<'a>>,
    /// Values of the application that stay in linked documents, by key of kinsync.
    kept: &'a [KeptKey],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    document: &'a str,
    user: &'a str,
    outcome: &'static str,
    next_step: &'static str,
    /// Keys of kinsync under which the document keeps its value.
    kept: Vec<&'static str>,
}

impl<'a> Report<'a> {
    fn new(found: &'a LinkReport, only: Only, dry_run: bool) -> Self {
        let listed = |one: &'a Candidate| Listed {
            document: &one.row,
            user: one.user.as_str(),
            outcome: outcome(one.verdict, dry_run),
            next_step: one.verdict.next_step(),
            kept: one.kept.iter().map(|key| key.name()).collect(),
        };
        let linked = found.candidates.iter().filter(|one| one.verdict == Verdict::Linked).count();
        Self {
            dry_run,
            documents: found.rows,
            without_user: found.unlinked,
            linked,
            conflicts: found.candidates.len() - linked,
            kept: &found.kept,
            candidates: found.candidates.iter().filter(|one| only.shows(one.verdict)).map(listed).collect(),
        }
    }
}

fn print(report: &Report<'_>) {
    if !report.candidates.is_empty() {
        let rows = report.candidates.iter();
        let rows = rows.map(|one| [one.document, one.user, one.outcome, one.next_step].map(str::to_owned));
        output::table(["DOCUMENT", "USER", "OUTCOME", "NEXT STEP"], rows);
        output::say("");
    }
    if !report.kept.is_empty() {
        let rows = report.kept.iter();
        let rows = rows.map(|one| [one.path.clone(), one.documents.to_string(), one.examples.join(", ")]);
        output::table(["KEPT KEY", "DOCUMENTS", "FOR EXAMPLE"], rows);
        output::say(&format!("These values of your application stay. To change that: {REMEDIES}.\n"));
    }
    let verb = if report.dry_run { "would be linked" } else { "linked" };
    output::say(&format!(
        "{} of your application with an email address: {} {verb}, {} cannot be linked, {} without a matching user",
        counted(report.documents, "document", "documents"),
        report.linked,
        report.conflicts,
        report.without_user
    ));
}

fn outcome(verdict: Verdict, dry_run: bool) -> &'static str {
    match verdict {
        Verdict::Linked if dry_run => "would be linked",
        Verdict::Linked => "linked",
        Verdict::NotVerified => "address not verified",
        Verdict::SeveralRows => "several documents",
        Verdict::FieldsInBoth => "fields in both documents",
        Verdict::OtherForm => "address in another form",
        Verdict::Refused => "changed meanwhile",
    }
}
