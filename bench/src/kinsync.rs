//! Runs the kinsync binary with settings in the environment and its own data folder.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::http;
use crate::metrics::Samples;
use crate::process::{Process, wait_until};
use crate::work::{Work, free_address};

/// The webhook secret.
pub const SECRET: &str = "bench-webhook-secret-0123456789abcdef";
/// The collection of users, by kinsync's default.
pub const USERS: &str = "users";
/// The collection of the event log, by kinsync's default.
pub const EVENTS: &str = "user_events";

/// The admin token.
pub const ADMIN_TOKEN: &str = "bench-admin-token-0123456789abcdef";

const START: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Settings that differ between measurements.
#[derive(Debug, Default)]
pub struct Settings {
    /// `MONGODB_URI`; `None` is the embedded store.
    pub mongodb: Option<String>,
    /// `KINDE_DOMAIN`; without it JWT webhooks are rejected.
    pub domain: Option<String>,
    /// `KINSYNC_QUEUE`; `None` is the embedded queue.
    pub queue: Option<String>,
}

/// A running kinsync.
#[derive(Debug)]
pub struct Kinsync {
    process: Process,
    address: SocketAddr,
}

impl Kinsync {
    /// Starts kinsync with an empty data folder and waits until it is ready.
    pub async fn start(work: &Work, name: &str, settings: &Settings) -> anyhow::Result<Self> {
        Self::start_until(work, name, settings, "/health/ready").await
    }

    /// Starts kinsync and waits only until it is live, for use without MongoDB.
    pub async fn start_without_store(work: &Work, name: &str, settings: &Settings) -> anyhow::Result<Self> {
        Self::start_until(work, name, settings, "/health/live").await
    }

    async fn start_until(work: &Work, name: &str, settings: &Settings, page: &str) -> anyhow::Result<Self> {
        let (command, log, address) = prepare(work, name, settings)?;
        let mut process = Process::start("kinsync", &command, &log)?;
        let ready = || async move { Ok(http::get(address, page).await?.0 == 200) };
        wait_until(&mut process, START, ready).await?;
        Ok(Self { process, address })
    }

    /// Stops it with SIGTERM.
    pub async fn stop(self, limit: Duration) -> anyhow::Result<()> {
        self.process.stop(limit).await
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> anyhow::Result<Samples> {
        Samples::of(self.address).await
    }

    /// Waits until the queue is below `depth`. Returns the time and the depth.
    pub async fn below(&mut self, depth: u64, limit: Duration) -> anyhow::Result<(Instant, u64)> {
        let deadline = Instant::now() + limit;
        loop {
            let now = self.metrics().await?.queue_depth()?;
            if now < depth {
                return Ok((Instant::now(), now));
            }
            self.process.check()?;
            anyhow::ensure!(Instant::now() < deadline, "{now} entries are still queued after {limit:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the queue is empty. Returns the time.
    pub async fn drained(&mut self, limit: Duration) -> anyhow::Result<Instant> {
        Ok(self.below(1, limit).await?.0)
    }
}

/// The command, the log and the address of a new kinsync.
pub fn prepare(
    work: &Work,
    name: &str,
    settings: &Settings,
) -> anyhow::Result<(Command, PathBuf, SocketAddr)> {
    let folder = work.folder(name)?;
    let address = free_address()?;
    let mut command = Command::new(work.kinsync()?);
    command.arg("serve");
    command.env("KINDE_WEBHOOK_SECRET", SECRET);
    command.env("KINSYNC_ADMIN_TOKEN", ADMIN_TOKEN);
    command.env("KINSYNC_DATA_DIR", folder.join("data"));
    command.env("PORT", address.port().to_string());
    let Settings { mongodb, domain, queue } = settings;
    for (name, value) in [("MONGODB_URI", mongodb), ("KINDE_DOMAIN", domain), ("KINSYNC_QUEUE", queue)] {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    Ok((command, folder.join("kinsync.log"), address))
}
