//! `kinsync serve`

use std::process::ExitCode;

use anyhow::Context as _;

use super::{exit::Exit, flags::ServerFlags};
use crate::{
    app::{App, Stopped},
    config::{Config, Sources},
    log,
};

const AFTER_HELP: &str = "\
Examples:
  Deliveries through a relay that signs by HMAC, users in MongoDB:
    KINDE_WEBHOOK_SECRET=… MONGODB_URI=mongodb://127.0.0.1:27017/app kinsync serve

  Kinde's own webhooks, users in a file, reachable from outside:
    kinsync serve --kinde-domain https://acme.kinde.com --bind 0.0.0.0 --data-dir /var/lib/kinsync

Stops on SIGTERM and SIGINT: answers what is in flight, finishes the batch, exits with 0. A second signal
ends it at once; what was accepted is in the queue either way.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    let loaded = Config::load(&Sources::of_process(args.flags.0))?;
    log::start(&loaded.config.log);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(loaded.config))
}

async fn serve(config: Config) -> Result<ExitCode, Exit> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let app = App::start(config).await.map_err(anyhow::Error::from)?;
    let failure = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "told to stop");
            None
        }
        error = app.failed() => Some(error),
    };
    let stopped = tokio::select! {
        stopped = app.stop() => stopped,
        _ = signals.next() => Stopped::Cut,
    };
    match (failure, stopped) {
        (Some(error), _) => Err(Exit::Failed(error.into())),
        (None, Stopped::Clean | Stopped::Cut) => Ok(ExitCode::SUCCESS),
    }
}

/// What tells a process to stop.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = tokio::signal::ctrl_c() => "SIGINT",
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> &'static str {
        _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    }
}
