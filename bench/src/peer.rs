//! The servers with which kinsync is compared.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::http;
use crate::kinsync::SECRET;
use crate::process::{Process, wait_until};
use crate::work::{Work, free_address, on_path};

const START: Duration = Duration::from_secs(30);

/// What the baseline answers at /api/me.
#[derive(Debug, Clone, Copy)]
pub enum Me<'a> {
    /// Nothing.
    Empty,
    /// The document in this file.
    Constant(&'a Path),
    /// A copy of the document in this file for each token, found by the token.
    ByToken(&'a Path),
}

/// A server that accepts deliveries at /api/webhook and returns the user at /api/me.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    address: SocketAddr,
}

impl Peer {
    /// Starts the baseline, which is this program in a separate process.
    pub async fn baseline(work: &Work, me: Me<'_>) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["baseline", "--port", &address.port().to_string()]);
        match me {
            Me::Empty => {}
            Me::Constant(document) => drop(command.arg("--me").arg(document)),
            Me::ByToken(document) => drop(command.arg("--by-token").arg("--me").arg(document)),
        }
        Self::start(work, "baseline", &command, address).await
    }

    /// Starts the simplest durable server, which is this program in a separate process. `public_key` is the file with the key of JWT
    /// deliveries.
    pub async fn durable(work: &Work, name: &str, public_key: Option<&Path>) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["durable", "--port", &address.port().to_string(), "--folder"]);
        command.arg(work.folder(name)?);
        if let Some(key) = public_key {
            command.arg("--public-key").arg(key);
        }
        Self::start(work, name, &command, address).await
    }

    /// Starts Express and Mongoose with a database of the same mongod for the tenant at `domain`.
    pub async fn express(work: &Work, mongodb: &str, domain: &str) -> anyhow::Result<Self> {
        let folder = work.root().join("bench/peers/express-mongoose");
        anyhow::ensure!(folder.join("node_modules/express").is_dir(), "run `npm ci` in {}", folder.display());
        let address = free_address()?;
        let mut command = Command::new(on_path("node").context("node is not installed: run .ci/install")?);
        command.arg(folder.join("server.js"));
        command.env("NODE_ENV", "production").env("PORT", address.port().to_string());
        command.env("KINDE_WEBHOOK_SECRET", SECRET).env("MONGODB_URI", mongodb);
        command.env("KINDE_DOMAIN", domain);
        Self::start(work, "express", &command, address).await
    }

    /// The rows per transaction of the simplest durable server, on average.
    pub async fn rows_per_transaction(&self) -> anyhow::Result<f64> {
        let (status, body) = http::get(self.address, "/group").await?;
        anyhow::ensure!(status == 200, "the status is {status}");
        Ok(body.parse()?)
    }

    async fn start(work: &Work, name: &str, command: &Command, address: SocketAddr) -> anyhow::Result<Self> {
        let mut process = Process::start(name, command, &work.path().join(format!("{name}.log")))?;
        wait_until(&mut process, START, || http::is_ready(address)).await?;
        Ok(Self { process, address })
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
