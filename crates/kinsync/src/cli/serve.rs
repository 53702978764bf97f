//! `kinsync serve`

use std::process::ExitCode;

use anyhow::Context as _;

use super::{exit::Exit, flags::ServerFlags, runtime::block_on_all};
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

With KINDE_M2M_CLIENT_ID set, all users at Kinde are compared with the store every hour; SIGUSR1 asks for that now.

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
    block_on_all(serve(loaded.config))
}

async fn serve(config: Config) -> Result<ExitCode, Exit> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let mut asked = Asked::listen().context("cannot listen for signals")?;
    let app = App::start(config).await.map_err(anyhow::Error::from)?;
    let failure = loop {
        tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "told to stop");
                break None;
            }
            () = asked.next() => scan(&app).await,
            error = app.failed() => break Some(error),
        }
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

/// SIGUSR1: compare everybody soon.
async fn scan(app: &App) {
    if app.state().reconcile.is_none() {
        return tracing::warn!("SIGUSR1 asks for a scan, which needs KINDE_M2M_CLIENT_ID");
    }
    match app.state().ask_for_scan().await {
        Ok(()) => tracing::info!("SIGUSR1: a scan was asked for"),
        Err(error) => {
            tracing::warn!(error = kinsync_tower::problem::chain(&error), "a scan could not be asked for");
        }
    }
}

/// What asks a process for a scan.
struct Asked {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Asked {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            signal: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if self.signal.recv().await.is_some() {
            return;
        }
        std::future::pending::<()>().await;
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
