//! `kinsync adopt`

use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use kinsync_engine::{
    adopt::{self, Adoption, Verdict},
    clock::Clock,
    store::{
        Store as _, UserFilter,
        mongo::{Adopt, MongoStore},
    },
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    app::start::mongo_config,
    config::{Config, Sources},
};

const AFTER_HELP: &str = "\
A row without `kindeId` becomes the user's who has its address at Kinde, with all that you keep in it. Kinde must say
that the address is verified, and the row must be the only one with it; nobody gets a row by an address that
anybody could type. `kinsync serve` does the same by itself, as soon as Kinde says so (when the user signs in).
Addresses are compared as they are written. `kinsync backfill` comes first: it loads the users.

Examples:
  kinsync adopt --dry-run                            list, change nothing
  kinsync adopt --dry-run --only conflicts --json    what stands in the way, for a program
  kinsync adopt

Exit codes: 0 done, also when rows conflict; 1 failed; 78 wrong settings";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// List what would be adopted and what conflicts; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Which rows to list
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
    Adopted,
    Conflicts,
}

impl Only {
    fn shows(self, verdict: Verdict) -> bool {
        match self {
            Self::All => true,
            Self::Adopted => verdict == Verdict::Adopted,
            Self::Conflicts => verdict != Verdict::Adopted,
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    block_on(adopt(args))
}

async fn adopt(args: Args) -> Result<ExitCode, Exit> {
    let config = Config::load(&Sources::of_process(args.flags.0))?.config;
    let Some(uri) = &config.store.mongodb_uri else {
        return Err(
            anyhow::anyhow!("there are no rows of yours in kinsync's own file: set MONGODB_URI").into()
        );
    };
    if config.store.adopt_by_email == Adopt::Never && !args.dry_run {
        let text = "adoption is off: set KINSYNC_ADOPT_BY_EMAIL=verified, or look with --dry-run";
        return Err(anyhow::anyhow!(text).into());
    }
    let run = if args.dry_run { adopt::Run::Dry } else { adopt::Run::Adopt };
    let store = MongoStore::connect(mongo_config(&config.store, uri.expose_secret()));
    let store = store.await.map_err(anyhow::Error::from)?;
    if !args.dry_run {
        store.prepare().await.map_err(anyhow::Error::from)?;
    }
    let anybody = UserFilter { with_deleted: true, limit: 1, ..UserFilter::default() };
    if store.users(&anybody).await.map_err(anyhow::Error::from)?.is_empty() {
        let text = "no users are loaded yet, so nobody can say whose your rows are: run `kinsync backfill` first, then \
                    this again";
        return Err(anyhow::anyhow!(text).into());
    }
    let bar = output::counter("rows seen");
    let progress = |found: &Adoption| bar.set_position(found.rows);
    let found = adopt::adopt(&store, Clock::system().now(), run, &progress).await;
    bar.finish_and_clear();
    let found = found.context("no row is half adopted; run it again to go on")?;
    show(&found, args.only, args.dry_run, args.json);
    Ok(ExitCode::SUCCESS)
}

fn show(found: &Adoption, only: Only, dry_run: bool, as_json: bool) {
    let listed = found.candidates.iter().filter(|one| only.shows(one.verdict));
    let rows: Vec<Value> = listed
        .map(|one| {
            json!({
                "row": one.row, "user": one.user, "verdict": word(one.verdict, dry_run),
                "nextStep": one.verdict.next_step(),
            })
        })
        .collect();
    let adopted = found.candidates.iter().filter(|one| one.verdict == Verdict::Adopted).count();
    let conflicts = found.candidates.len() - adopted;
    if as_json {
        return output::json(&json!({
            "dryRun": dry_run, "rows": found.rows, "unclaimed": found.unclaimed, "adopted": adopted,
            "conflicts": conflicts, "candidates": rows,
        }));
    }
    if !rows.is_empty() {
        let columns = [("YOUR ROW", "row"), ("USER", "user"), ("", "verdict"), ("NEXT STEP", "nextStep")];
        output::table(&rows, &columns);
        output::say("");
    }
    let verb = if dry_run { "would be adopted" } else { "adopted" };
    output::say(&format!(
        "{} rows of yours have an address: {adopted} {verb}, {conflicts} cannot be, {} belong to nobody at Kinde",
        found.rows, found.unclaimed
    ));
}

fn word(verdict: Verdict, dry_run: bool) -> &'static str {
    match verdict {
        Verdict::Adopted if dry_run => "would be adopted",
        Verdict::Adopted => "adopted",
        Verdict::NotVerified => "not verified",
        Verdict::SeveralRows => "several rows",
        Verdict::FieldsInBoth => "fields in both",
        Verdict::Refused => "refused",
    }
}
