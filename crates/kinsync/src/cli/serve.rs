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
  Accept deliveries that a relay signs by HMAC, store users in MongoDB:
    export KINDE_WEBHOOK_SECRET=… MONGODB_URI=mongodb://127.0.0.1:27017/app
    kinsync serve

  Accept Kinde's own webhooks from other machines, store users in a file:
    export KINDE_DOMAIN=https://acme.kinde.com KINSYNC_BIND=0.0.0.0
    kinsync serve --data-dir /var/lib/kinsync

  Split the work over processes that share a queue and a MongoDB:
    export KINSYNC_QUEUE=redis://queue.internal
    export MONGODB_URI=mongodb://db.internal/app
    export KINDE_DOMAIN=https://acme.kinde.com
    export KINDE_M2M_CLIENT_ID=… KINDE_M2M_CLIENT_SECRET=…
    kinsync serve --role ingest,api
    kinsync serve --role project,reconcile

With KINDE_M2M_CLIENT_ID set, all users at Kinde are compared with the store every hour; SIGUSR1 starts a scan now.

SIGTERM or SIGINT stops the server: it answers the requests in flight, finishes the batch and exits with 0. A second signal \
ends it at once. Accepted deliveries stay in the queue in both cases.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    let loaded = Config::load(&Sources::of_process(args.flags.0))?;
    // Dropped at the end, outside of the runtime: it exports the last traces.
    let _traces = log::start(&loaded.config.log)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(block_on_all(serve(loaded.config)).unwrap_or_else(Exit::log))
}

async fn serve(config: Config) -> Result<ExitCode, Exit> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let mut scan_signal = ScanSignal::listen().context("cannot listen for signals")?;
    let app = App::start(config).await.map_err(anyhow::Error::from)?;
    let failure = loop {
        tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "signal received, stopping");
                break None;
            }
            () = scan_signal.next() => scan(&app).await,
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

/// Requests a scan on SIGUSR1.
async fn scan(app: &App) {
    if app.state().engine.reconciler().is_none() {
        return tracing::warn!("SIGUSR1 requests a scan, which needs KINDE_M2M_CLIENT_ID");
    }
    match app.state().engine.request_scan().await {
        Ok(()) => tracing::info!("scan requested by SIGUSR1"),
        Err(error) => {
            tracing::warn!(error = kinsync_tower::problem::chain(&error), "the scan could not be requested");
        }
    }
}

/// The signal that requests a scan.
struct ScanSignal {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl ScanSignal {
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

/// The signals that stop a process.
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
