//! `kinsync health`

use std::process::ExitCode;

use anyhow::anyhow;
use serde::Serialize;

use super::{client::root, exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    api::health::{HealthReport, HealthStatus},
    config::{Config, Loaded, Sources},
    doctor::server,
};

const AFTER_HELP: &str = "\
Reads /health of the server with the same settings. The exit code is 0 if it accepts deliveries, also with problems that an operator \
should look at, and 1 if it does not or cannot be reached. Prints one line on stdout if the server answers, and problems on stderr. With \
--json it prints one object, also if the server cannot be reached. Meant for the health check of a container. Needs KINSYNC_METRICS_BIND \
if the main address uses TLS.

Needs the settings of the server, such as KINDE_DOMAIN. Without them, or if one is wrong, the exit code is 78 and nothing is printed on \
stdout, also with --json.

Examples:
  kinsync health
  kinsync health --json | jq -r '.problems[].code'";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    let loaded = Config::load(&Sources::of_process(args.flags.0))?;
    let health = match block_on(async { Ok(read(&loaded).await) })? {
        Ok(health) => health,
        Err(error) => {
            if args.json {
                output::json(&Unreachable::new(&error));
            }
            return Err(Exit::Failed(error));
        }
    };
    if args.json {
        output::json(&health);
    } else {
        print(&health);
    }
    Ok(if health.accepting { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(health: &HealthReport) {
    let (status, what) = match health.status {
        HealthStatus::Ok => ("ok", "works"),
        HealthStatus::Degraded => ("degraded", "works"),
        HealthStatus::Failing => ("failing", "does not accept deliveries"),
    };
    output::say(&format!("{status}: the server {what}"));
    for problem in &health.problems {
        output::complain(&format!("{}: {}", problem.code.as_str(), problem.detail));
    }
}

async fn read(loaded: &Loaded) -> anyhow::Result<HealthReport> {
    let http = &loaded.config.http;
    if http.tls_certificate.is_some() && http.metrics_bind.is_none() && loaded.config.server.is_none() {
        return Err(anyhow!("the main address has TLS: set KINSYNC_METRICS_BIND=127.0.0.1:PORT"));
    }
    let address = server::address(loaded).ok_or_else(|| anyhow!("the port is not known (PORT=0)"))?;
    // Without the admin token: a wrong one in the health check of a container would lock operators out.
    let report = server::read_health(&address, None).await;
    report.map_err(|error| anyhow!("cannot read {address}health: {}", root(&error)))
}

/// A report without a server, with the members that programs read.
#[derive(Serialize)]
struct Unreachable {
    status: &'static str,
    accepting: bool,
    problems: [UnreachableProblem; 1],
}

#[derive(Serialize)]
struct UnreachableProblem {
    code: &'static str,
    detail: String,
}

impl Unreachable {
    fn new(error: &anyhow::Error) -> Self {
        let problem = UnreachableProblem { code: "server_unreachable", detail: format!("{error:#}") };
        Self { status: "unreachable", accepting: false, problems: [problem] }
    }
}
