//! `kinsync doctor`

use std::{cell::RefCell, process::ExitCode};

use console::Style;
use serde::Serialize;

use super::{exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    config::{Config, Sources},
    doctor::{self, Finding, Status},
    plural::counted,
};

const AFTER_HELP: &str = "\
Reads the settings as `kinsync serve` does and checks Kinde, MongoDB, the data folder and the running server at the same \
time. It changes nothing: in the data folder it creates, syncs and removes one file, or one folder beside it while it does not exist. With \
the admin token, a server on this machine or with TLS names the causes of its problems. Kinde counts one token for each run.

  ok       works
  warning  works, and needs attention
  failed   does not work
  skipped  not in use, or could not be checked

Examples:
  kinsync doctor
  kinsync doctor --json | jq '.findings[] | select(.status == \"failed\")'
  kinsync doctor --config kinsync.toml --server http://127.0.0.1:5000

Exit codes: 0 no check failed; 1 a check failed; 78 wrong settings";

const SERVER: &str =
    "The running server to check [default: the address in the settings] [env: KINSYNC_SERVER]";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[arg(long, value_name = "URL", help = SERVER)]
    server: Option<String>,
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    block_on(examine(args))
}

async fn examine(args: Args) -> Result<ExitCode, Exit> {
    let mut flags = args.flags.0;
    flags.extend(args.server.map(|server| ("server".to_owned(), server)));
    let loaded = Config::load(&Sources::of_process(flags))?;
    let left = RefCell::new(doctor::GROUPS.to_vec());
    let spinner = output::spinner(&format!("checking {}", doctor::GROUPS.join(", ")));
    let findings = doctor::examine(&loaded, |group| {
        left.borrow_mut().retain(|one| *one != group);
        spinner.set_message(format!("waiting for {}", left.borrow().join(", ")));
    });
    let findings = Box::pin(findings).await;
    spinner.finish_and_clear();
    let failed = count(&findings, Status::Failed) > 0;
    if args.json {
        print_json(&findings, failed);
    } else {
        print(&findings);
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn count(findings: &[Finding], status: Status) -> usize {
    findings.iter().filter(|finding| finding.status == status).count()
}

/// The result, for programs.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    failed: usize,
    warnings: usize,
    findings: &'a [Finding],
}

fn print_json(findings: &[Finding], failed: bool) {
    output::json(&Report {
        ok: !failed,
        failed: count(findings, Status::Failed),
        warnings: count(findings, Status::Warning),
        findings,
    });
}

fn print(findings: &[Finding]) {
    let width = findings.iter().map(|finding| finding.id.len()).max().unwrap_or_default();
    for finding in findings {
        let status = style(finding.status).apply_to(format!("{:7}", finding.status.as_str()));
        let indent = 9 + width + 2;
        let found = format!("{status}  {:width$}  {}", finding.id, output::plain(&finding.found));
        output::say_wrapped(&found, indent);
        if let Some(fix) = &finding.fix {
            output::say_wrapped(&format!("{:indent$}> {}", "", output::plain(fix)), indent + 2);
        }
    }
    let (failed, warnings) = (count(findings, Status::Failed), count(findings, Status::Warning));
    let ok = count(findings, Status::Ok);
    let warnings = counted(warnings, "warning", "warnings");
    output::say(&format!("\n{ok} ok, {warnings}, {failed} failed"));
}

fn style(status: Status) -> Style {
    match status {
        Status::Ok => Style::new().green(),
        Status::Warning => Style::new().yellow(),
        Status::Failed => Style::new().red().bold(),
        Status::Skipped => Style::new().dim(),
    }
}
