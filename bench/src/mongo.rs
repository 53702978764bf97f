//! A private mongod: a replica set with one member on the disk of the project, which can be stopped and restarted.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bson::{Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};

use crate::process::Process;
use crate::work::{Work, free_address};

const TIMEOUT: Duration = Duration::from_mins(1);

/// A mongod and its client.
#[derive(Debug)]
pub struct Mongod {
    program: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    process: Option<Process>,
    client: Client,
}

impl Mongod {
    /// Starts an empty mongod and waits until it accepts writes.
    pub async fn start(work: &Work, name: &str) -> anyhow::Result<Self> {
        let (program, folder, address) = (work.mongod()?, work.folder(name)?, free_address()?);
        let client = client(address, "replicaSet=rs0", TIMEOUT).await?;
        let mut mongod = Self { program, folder, address, process: None, client };
        mongod.launch()?;
        mongod.initiate().await?;
        mongod.writable().await?;
        Ok(mongod)
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["--replSet", "rs0", "--bind_ip", "127.0.0.1", "--wiredTigerCacheSizeGB", "1"]);
        command.args(["--oplogSize", "2048", "--nounixsocket", "--quiet"]);
        command.args(["--port", &self.address.port().to_string()]).arg("--dbpath").arg(&self.folder);
        self.process = Some(Process::start("mongod", &command, &self.folder.with_extension("log"))?);
        Ok(())
    }

    async fn initiate(&mut self) -> anyhow::Result<()> {
        let member = doc! { "_id": 0, "host": self.address.to_string() };
        let command = doc! { "replSetInitiate": { "_id": "rs0", "members": [member] } };
        self.run_until(command, |_| true).await.context("initiating the replica set")
    }

    async fn writable(&mut self) -> anyhow::Result<()> {
        let is_primary = |answer: &Document| answer.get_bool("isWritablePrimary").unwrap_or_default();
        self.run_until(doc! { "hello": 1 }, is_primary).await.context("waiting for the primary")
    }

    /// Repeats a command on new connections until it succeeds, because a client without a server retries only twice a second.
    async fn run_until(
        &mut self,
        command: Document,
        right: impl Fn(&Document) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let direct = client(self.address, "directConnection=true", Duration::from_millis(300)).await?;
            match direct.database("admin").run_command(command.clone()).await {
                Ok(answer) if right(&answer) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                _ => anyhow::ensure!(Instant::now() < deadline, "mongod was not ready in {TIMEOUT:?}"),
            }
            self.process()?.check()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().context("mongod is stopped")
    }

    /// Stops it and keeps its files.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(process) => process.stop(TIMEOUT).await,
            None => Ok(()),
        }
    }

    /// Starts it again with its files. Returns the time at which it accepted writes.
    pub async fn start_again(&mut self) -> anyhow::Result<Instant> {
        self.launch()?;
        self.writable().await?;
        Ok(Instant::now())
    }

    /// CPU time since the last start.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        self.process.as_ref().map_or(Ok(Duration::ZERO), Process::cpu)
    }

    /// The connection string of a database.
    pub fn uri(&self, database: &str) -> String {
        format!("mongodb://{}/{database}?replicaSet=rs0", self.address)
    }

    /// A database.
    pub fn database(&self, name: &str) -> Database {
        self.client.database(name)
    }

    /// Its version.
    pub async fn version(&self) -> anyhow::Result<String> {
        let info = self.database("admin").run_command(doc! { "buildInfo": 1 }).await?;
        Ok(info.get_str("version")?.to_owned())
    }
}

async fn client(to: SocketAddr, how: &str, limit: Duration) -> anyhow::Result<Client> {
    let mut options = ClientOptions::parse(format!("mongodb://{to}/?{how}")).await?;
    options.server_selection_timeout = Some(limit);
    options.connect_timeout = Some(limit);
    Ok(Client::with_options(options)?)
}
