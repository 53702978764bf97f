//! A private Redis on the disk of the project that writes each change to its file before it answers.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::process::{Process, wait_until};
use crate::work::{Work, free_address};

const START: Duration = Duration::from_secs(20);

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    address: SocketAddr,
}

impl Redis {
    /// Starts an empty server.
    pub async fn start(work: &Work, name: &str) -> anyhow::Result<Self> {
        let (folder, address) = (work.folder(name)?, free_address()?);
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.args(["--port", &address.port().to_string()]).arg("--dir").arg(&folder);
        let mut process = Process::start("Redis", &command, &folder.with_extension("log"))?;
        wait_until(&mut process, START, || async move { TcpStream::connect(address).await.map(|_| true) })
            .await?;
        Ok(Self { process, address })
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}
