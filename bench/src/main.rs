//! Compares kinsync with a baseline server and with a hand-written peer.
//!
//! Modules: the requests ([`events`], [`requests`], [`jwt`]), the load generator ([`load`], [`http`]), the servers
//! ([`process`], [`mongo`], [`redis`], [`kinsync`], [`peer`], [`baseline`], [`durable`]), the measurements ([`deliveries`], [`drain`], [`lag`],
//! [`me`], [`inside`], [`reconcile`], [`rebuild`],
//! [`queries`], [`queue`], [`footprint`]) and the report ([`series`], [`report`], [`machine`]).

mod baseline;
mod cli;
mod deliveries;
mod drain;
mod durable;
mod events;
mod existing;
mod footprint;
mod http;
mod inside;
mod jwt;
mod kinsync;
mod lag;
mod load;
mod machine;
mod me;
mod metrics;
mod mongo;
mod oplog;
mod options;
mod peer;
mod process;
mod queries;
mod queue;
mod raw;
mod rebuild;
mod reconcile;
mod redis;
mod report;
mod requests;
mod series;
mod work;

use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let command = cli::Command::parse();
    // One worker thread per core, as in kinsync.
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = command.run() => result,
            // Dropping `run` stops all child processes and removes the work folder.
            name = stopped() => Err(anyhow::anyhow!("stopped by {name}; all servers were stopped")),
        }
    });
    runtime.shutdown_background();
    result.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("bench: {error:#}");
    ExitCode::FAILURE
}

async fn stopped() -> &'static str {
    let listen = |kind| signal(kind).expect("the signals have handlers");
    let mut interrupt = listen(SignalKind::interrupt());
    let mut terminate = listen(SignalKind::terminate());
    let mut hangup = listen(SignalKind::hangup());
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    }
}
