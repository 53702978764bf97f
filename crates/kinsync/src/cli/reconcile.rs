//! `kinsync reconcile`

use std::process::ExitCode;

use kinsync_engine::internal::reconcile::record::{DriftKind, RunMode};

use super::{
    client::Client,
    exit::{self, Exit},
    flags::ServerFlags,
    output,
    runtime::{block_on, block_on_all},
    scan::{self, Scanner},
};
use crate::{
    api::runs::{Run, ScanRequest, ScanRequested},
    config::{Config, Sources},
};

const AFTER_HELP: &str = "\
Compares every user at Kinde with the stored one and repairs each difference: users without any event, and changes and \
deletions whose event was lost. `kinsync serve` does the same every hour. Users that Kinde no longer lists are read again, \
twice, before they are deleted. Deletions that exceed both KINSYNC_RECONCILE_MAX_DELETES and \
KINSYNC_RECONCILE_MAX_DELETE_SHARE are held until an operator approves them. Creations and changes are never held.

Examples:
  kinsync reconcile --dry-run              print the differences
  kinsync reconcile
  kinsync reconcile --approve 20261123-101500-3fa2
  kinsync reconcile --soon                 request it from the server
  kinsync reconcile --soon --approve 20261123-101500-3fa2
  kinsync runs list                        list the last scans

Exit codes: 0 done; 1 failed, or users were rejected by the store; 2 wrong usage; 3 operator approval required; 69 another process is scanning, or the server \
cannot be reached; 77 no permission; 78 wrong settings";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Print the differences and change nothing
    #[arg(long, conflicts_with_all = ["approve", "soon"])]
    dry_run: bool,
    /// Carry out the deletions that this run held, if the users are still missing at Kinde
    #[arg(long, value_name = "RUN")]
    approve: Option<String>,
    /// Request the scan from the running server and do not wait for it
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
        return block_on(request(args));
    }
    let config = Config::load(&Sources::of_process(args.flags.0))?.config;
    let mode = match args.approve {
        Some(run) => RunMode::Approve(run),
        None if args.dry_run => RunMode::DryRun,
        None => RunMode::Reconcile,
    };
    block_on_all(async {
        let run = Scanner::open(&config, &mode).await?.run(mode, None).await?;
        scan::show(&Run::from(&run), args.json);
        Ok(if run.tally.of(DriftKind::DeletionHeld) > 0 {
            exit::approval_required()
        } else if args.dry_run {
            ExitCode::SUCCESS
        } else {
            exit::of_scan(run.tally.of(DriftKind::Rejected))
        })
    })
}

async fn request(args: Args) -> Result<ExitCode, Exit> {
    let request = ScanRequest { approve: args.approve };
    let requested: ScanRequested = Client::of(args.flags.0)?.post_json(&["reconcile"], &request).await?;
    if args.json {
        output::json(&requested);
    } else {
        output::say("requested; `kinsync runs list` shows the scan once it has started");
    }
    Ok(ExitCode::SUCCESS)
}
