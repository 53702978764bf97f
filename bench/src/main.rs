//! Measures kinsync side by side with a server that does nothing and with a peer written by hand.
//!
//! One module each: what is sent ([`events`], [`requests`], [`jwt`]), how it is sent ([`load`], [`http`]), the servers
//! ([`process`], [`mongo`], [`kinsync`], [`peer`], [`baseline`]), what is measured ([`deliveries`], [`drain`], [`lag`],
//! [`me`], [`inside`], [`reconcile`], [`footprint`]) and how it is told ([`series`], [`report`], [`machine`]).

mod baseline;
mod cli;
mod deliveries;
mod drain;
mod events;
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
mod peer;
mod process;
mod raw;
mod reconcile;
mod report;
mod requests;
mod series;
mod work;

use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let command = cli::Command::parse();
    // Default worker threads, as in kinsync: one per core.
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = command.run() => result,
            // Dropping `run` drops the guards of all child processes and of the work folder.
            name = stopped() => Err(anyhow::anyhow!("stopped by {name}; every server was stopped too")),
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
    let listen = |kind| signal(kind).expect("these signals can be listened to");
    let mut interrupt = listen(SignalKind::interrupt());
    let mut terminate = listen(SignalKind::terminate());
    let mut hangup = listen(SignalKind::hangup());
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    }
}
