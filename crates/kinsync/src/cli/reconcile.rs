//! `kinsync reconcile`

use std::process::ExitCode;

use kinsync_engine::reconcile::record::{Kind, Wish};
use serde_json::json;

use super::{
    client::Client,
    exit::Exit,
    flags::ServerFlags,
    output,
    runtime::{block_on, block_on_all},
    scan::{self, Scanner},
};
use crate::config::{Config, Sources};

const AFTER_HELP: &str = "\
Compares every user at Kinde with the stored one and repairs what differs: users that no webhook told of, changes and
deletions that were lost. `kinsync serve` does the same every hour by itself. Who is not listed any more is asked about
twice; more deletions than KINSYNC_RECONCILE_MAX_DELETES and KINSYNC_RECONCILE_MAX_DELETE_SHARE are held until you
approve them. Creations and changes are never held.

Examples:
  kinsync reconcile --dry-run              what differs; changes nothing
  kinsync reconcile
  kinsync reconcile --approve 20261123-101500-3fa2
  kinsync reconcile --soon                 asks the running server (KINSYNC_SERVER), also for users in a file
  kinsync reconcile --soon --approve 20261123-101500-3fa2
  kinsync runs list                        what runs found

Exit codes: 0 done, nothing is open; 1 failed; 2 wrong usage; 3 deletions are held; 69 another process is scanning, or the
server cannot be reached; 77 no permission; 78 wrong settings";

/// Deletions wait for an operator.
const HELD: u8 = 3;

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Print what differs; change nothing
    #[arg(long, conflicts_with_all = ["approve", "soon"])]
    dry_run: bool,
    /// Carry out the deletions that this run held, if they are still right
    #[arg(long, value_name = "RUN")]
    approve: Option<String>,
    /// Ask the running server for a scan, and do not wait for it
    #[arg(long)]
    soon: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    if args.soon {
        return block_on(ask(args));
    }
    let config = Config::load(&Sources::of_process(args.flags.0))?.config;
    let wish = match args.approve {
        Some(run) => Wish::Approve(run),
        None if args.dry_run => Wish::Dry,
        None => Wish::Reconcile,
    };
    block_on_all(async {
        let run = Scanner::open(&config, &wish).await?.run(wish, None).await?;
        scan::show(&scan::value(&run), args.json);
        Ok(if run.tally.of(Kind::Held) > 0 { ExitCode::from(HELD) } else { ExitCode::SUCCESS })
    })
}

async fn ask(args: Args) -> Result<ExitCode, Exit> {
    let client = Client::of(args.flags.0)?;
    let answer = match args.approve {
        Some(run) => client.post_json(&["reconcile"], &json!({ "approve": run })).await?,
        None => client.post(&["reconcile"]).await?,
    };
    if args.json {
        output::json(&answer);
    } else {
        output::say("asked; `kinsync runs list` shows the run when it has begun");
    }
    Ok(ExitCode::SUCCESS)
}
