//! `kinsync backfill`

use std::process::ExitCode;

use kinsync_engine::internal::reconcile::record::{DriftKind, RunMode};

use super::{
    exit::{self, Exit},
    flags::ServerFlags,
    runtime::block_on_all,
    scan::{self, Scanner},
};
use crate::{
    api::runs::Run,
    config::{Config, Sources},
};

const AFTER_HELP: &str = "\
Reads every user from Kinde's Management API, page by page, and creates or updates the stored one. Fields of your application are not \
changed, and no user is deleted. An interrupted backfill continues at the first page that was not written. Servers may run at the same \
time: a webhook event that arrives in the meantime takes precedence. Only the embedded store allows one process: stop its server first, or \
use `kinsync reconcile --soon`.

Needs KINDE_DOMAIN, KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET, with the scope `read:users`.

Examples:
  kinsync backfill
  kinsync backfill --expect 250000   show the time left; Kinde has no total
  kinsync backfill --json | jq .drift

Exit codes: 0 done; 1 failed, run it again to continue, or users were refused by the store; 69 another process is scanning; 78 wrong \
settings";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The approximate number of users, to show the time left
    #[arg(long, value_name = "USERS")]
    expect: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    let config = Config::of_command(&Sources::of_process(args.flags.0))?;
    block_on_all(async {
        let scanner = Scanner::open(&config, &RunMode::Backfill).await?;
        let run = scanner.run(RunMode::Backfill, args.expect).await?;
        scan::show(&Run::from(&run), args.json, "kinsync reconcile --approve");
        Ok(exit::of_scan(run.tally.of(DriftKind::Refused)))
    })
}
