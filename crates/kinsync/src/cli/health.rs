//! `kinsync health`

use std::process::ExitCode;

use anyhow::anyhow;

use super::{exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    config::{Config, Loaded, Sources},
    doctor::server,
};

const AFTER_HELP: &str = "\
Reads /health of the server with the same settings. The exit code is 0 if it accepts deliveries, also with problems that an operator \
should look at, and 1 if it does not or cannot be reached. Meant for the health check of a container. Needs KINSYNC_METRICS_BIND if the \
main address uses TLS.

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
    let health = block_on(read(&loaded))?;
    if args.json {
        output::json(&health);
    } else {
        for problem in &health.problems {
            output::complain(&format!("{}: {}", problem.code.as_str(), problem.detail));
        }
    }
    Ok(if health.accepting { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn read(loaded: &Loaded) -> Result<crate::api::health::HealthReport, Exit> {
    let http = &loaded.config.http;
    if http.tls_certificate.is_some() && http.metrics_bind.is_none() && loaded.config.server.is_none() {
        return Err(Exit::Failed(anyhow!(
            "the main address has TLS: set KINSYNC_METRICS_BIND=127.0.0.1:PORT"
        )));
    }
    let address = server::address(loaded).ok_or_else(|| anyhow!("the port is not known (PORT=0)"))?;
    let report = server::read_health(&address).await;
    report.map_err(|error| Exit::Failed(anyhow!("cannot read {address}health: {error}")))
}
