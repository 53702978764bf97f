//! `kinsync reconcile`

use std::process::ExitCode;

use kinsync_core::UserId;
use kinsync_engine::internal::reconcile::record::{DriftKind, RunMode, Tally};
use serde::Serialize;

use super::{
    client::Client,
    exit::{self, Exit},
    flags::ServerFlags,
    output,
    runtime::{block_on, block_on_all},
    scan::{self, Scanner},
};
use crate::{
    api::{
        runs::{Drift, Run, ScanRequest, ScanRequested},
        users::CheckRequested,
    },
    config::{Config, Sources},
};

const AFTER_HELP: &str = "\
Compares every user at Kinde with the stored one and repairs each difference: users without any event, and changes and deletions with a \
lost event. `kinsync serve` does the same every hour. Users that Kinde no longer lists are read again, twice, before they are deleted. \
Deletions within 24 hours that exceed both KINSYNC_RECONCILE_MAX_DELETES and KINSYNC_RECONCILE_MAX_DELETE_SHARE, or half of the users, are \
held until an operator approves them. Creations and changes are never held. Only the embedded store allows one process: stop its server \
first, or use `--soon`.

Examples:
  kinsync reconcile --dry-run              print the differences
  kinsync reconcile
  kinsync reconcile --user kp_0190932d7592c68bda50d62b2ffa8cbb
  kinsync reconcile --approve 20261123-101500-3fa2
  kinsync reconcile --soon                 request it from the server
  kinsync reconcile --soon --approve 20261123-101500-3fa2
  kinsync runs list                        list the last scans

Exit codes: 0 done; 1 failed, or users were refused by the store; 2 wrong usage; 3 operator approval required; 69 another process is \
scanning, or the server cannot be reached; 77 no permission; 78 wrong settings";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Args {
    /// Print the differences and change nothing
    #[arg(long, conflicts_with_all = ["approve", "approve_empty_tenant", "soon"])]
    dry_run: bool,
    /// Read only this user from Kinde, instead of all
    #[arg(
        long,
        value_name = "ID",
        value_parser = UserId::parse,
        conflicts_with_all = ["approve", "approve_empty_tenant"]
    )]
    user: Option<UserId>,
    /// Carry out the deletions that this run held, if the users are still missing at Kinde
    #[arg(long, value_name = "RUN")]
    approve: Option<String>,
    /// Delete the last users of a tenant, if Kinde lists no user at all
    #[arg(long, conflicts_with = "approve")]
    approve_empty_tenant: bool,
    /// Request it from the running server and do not wait for it
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
    let config = Config::of_command(&Sources::of_process(args.flags.0))?;
    let mode = match args.approve {
        Some(run) => RunMode::Approve(run),
        None if args.approve_empty_tenant => RunMode::ApproveEmptyTenant,
        None if args.dry_run => RunMode::DryRun,
        None => RunMode::Reconcile,
    };
    block_on_all(async {
        let scanner = Scanner::open(&config, &mode).await?;
        let tally = if let Some(user) = args.user {
            let tally = scanner.check(&user, &mode).await?;
            show_check(&user, &tally, args.dry_run, args.json);
            tally
        } else {
            let run = scanner.run(mode, None).await?;
            scan::show(&Run::from(&run), args.json, "kinsync reconcile --approve");
            run.tally
        };
        Ok(if tally.held() > 0 {
            exit::approval_required()
        } else if args.dry_run {
            ExitCode::SUCCESS
        } else {
            exit::of_scan(tally.of(DriftKind::Refused))
        })
    })
}

/// What a check of one user found, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked<'a> {
    user: &'a UserId,
    dry_run: bool,
    /// `unknown` for a user that is neither stored nor known to Kinde.
    outcome: &'static str,
    /// The difference, in outcome `drift`.
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<Drift>,
}

fn show_check(user: &UserId, tally: &Tally, is_dry: bool, as_json: bool) {
    let drift = tally.examples.first().map(Drift::from);
    let (outcome, text) = match &drift {
        None if tally.unchanged > 0 => ("unchanged", "equals Kinde's".to_owned()),
        None => ("unknown", "neither stored nor known to Kinde".to_owned()),
        Some(Drift { kind: DriftKind::DeletionHeld, .. }) => (
            "drift",
            "deleted at Kinde; too many users were deleted within 24 hours: run `kinsync reconcile`, which holds the \
             deletion for your approval"
                .to_owned(),
        ),
        Some(drift) => ("drift", scan::phrase(drift.kind, is_dry).to_owned()),
    };
    if as_json {
        return output::json(&Checked { user, dry_run: is_dry, outcome, drift });
    }
    output::say(&format!("{user}: {text}"));
}

async fn request(args: Args) -> Result<ExitCode, Exit> {
    let client = Client::of(args.flags.0)?;
    if let Some(user) = args.user {
        let requested: CheckRequested = client.post(&["users", user.as_str(), "check"]).await?;
        say_requested(
            &requested,
            "requested; `kinsync users show` shows the user once it is checked",
            args.json,
        );
        return Ok(ExitCode::SUCCESS);
    }
    let request = ScanRequest { approve: args.approve, approve_empty_tenant: args.approve_empty_tenant };
    let requested: ScanRequested = client.post_json(&["reconcile"], &request).await?;
    say_requested(&requested, "requested; `kinsync runs list` shows the scan once it has started", args.json);
    Ok(ExitCode::SUCCESS)
}

fn say_requested(requested: &impl Serialize, text: &str, as_json: bool) {
    if as_json { output::json(requested) } else { output::say(text) }
}
