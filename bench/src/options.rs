//! The options of a run.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// Options of a run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Seconds of each measured window of load.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Number of turns of each server.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    pub rounds: u64,
    /// Number of connections.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Number of signed JWT deliveries; each takes about 0.3 ms on two cores; kept for the next run.
    #[arg(long, default_value_t = 120_000)]
    pub tokens: usize,
    /// Number of events to drain, of a quarter as many users.
    #[arg(long, default_value_t = 200_000)]
    pub events: usize,
    /// Number of access tokens that are sent once; signed in each run.
    #[arg(long, default_value_t = 20_000)]
    pub cold_tokens: usize,
    /// Number of users in the memory measurement.
    #[arg(long, default_value_t = 1_000_000)]
    pub cached: usize,
    /// Number of users in the reconciliation.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub users: u64,
    /// Number of users in the reconciliation with roles; with two memberships each, and one organization per 200 users.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(400..))]
    pub role_users: u64,
    /// Number of users in the lists.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub listed_users: u64,
    /// Number of entries of the log in the lists.
    #[arg(long, default_value_t = 5_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub listed_entries: u64,
    /// Number of events in the log of the rebuild, of a tenth as many users.
    #[arg(long, default_value_t = 1_000_000)]
    pub logged_events: usize,
    /// Number of entries of each turn of a queue.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub entries: u64,
    /// Number of entries of a queue that are not acknowledged yet, at any time.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    pub outstanding: u64,
    /// Bytes of an entry of a queue.
    #[arg(long, default_value_t = 450)]
    pub payload: u64,
    /// Number of cold starts.
    #[arg(long, default_value_t = 20)]
    pub starts: usize,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// File for the JSON.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Binary to measure [default: target/release/kinsync].
    #[arg(long, value_name = "FILE")]
    pub kinsync: Option<PathBuf>,
    /// Keep the work folder with the logs of all servers.
    #[arg(long)]
    pub keep: bool,
}

impl Options {
    /// The measured window.
    pub fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}
