//! Measures in one process: the cost of the layer ([`layer`]), the verification of a token ([`token`]), and the memory of
//! users and tokens ([`memory`]); or the time of the lists of both stores ([`queries`]); or the queues ([`queue`]); or the parts of a
//! delivery ([`parts`]). Prints one line of JSON.
//!
//! Usage: `inside FOLDER ROUNDS USERS`, `inside queries FOLDER URI USERS ENTRIES`,
//! `inside queue FOLDER ROUNDS ENTRIES WINDOW BYTES`, or `inside parts FOLDER ROUNDS BYTES TOKEN-BYTES GROUP`. The bench runs it.

mod key;
mod layer;
mod memory;
mod parts;
mod queries;
mod queue;
mod tenant;
mod token;

use std::alloc::System;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Kernel ticks per second in /proc.
const TICKS_PER_SECOND: f64 = 100.0;

/// The allocator of the system with counters; the binary of kinsync has another one.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if_eq("queries").is_some() {
        let mut next = || arguments.next().context("inside queries FOLDER URI USERS ENTRIES");
        let (folder, uri) = (PathBuf::from(next()?), next()?);
        let sizes = (next()?.parse()?, next()?.parse()?);
        println!("{}", queries::measure(&folder, uri, sizes).await?);
        return Ok(());
    }
    if arguments.next_if_eq("queue").is_some() {
        let mut next = || arguments.next().context("inside queue FOLDER ROUNDS ENTRIES WINDOW BYTES");
        let folder = PathBuf::from(next()?);
        let mut next = || anyhow::Ok(next()?.parse()?);
        let sizes = queue::Sizes { rounds: next()?, entries: next()?, window: next()?, payload: next()? };
        println!("{}", queue::measure(&folder, sizes).await?);
        return Ok(());
    }
    if arguments.next_if_eq("parts").is_some() {
        let mut next = || arguments.next().context("inside parts FOLDER ROUNDS BYTES TOKEN-BYTES GROUP");
        let folder = PathBuf::from(next()?);
        let mut next = || anyhow::Ok(next()?.parse()?);
        let sizes = parts::Sizes { rounds: next()?, hmac: next()?, token: next()?, group: next()? };
        println!("{}", parts::measure(&folder, sizes).await?);
        return Ok(());
    }
    let mut next = || arguments.next().context("inside FOLDER ROUNDS USERS");
    let (folder, rounds, users) = (PathBuf::from(next()?), next()?.parse()?, next()?.parse()?);
    let results = json!({
        "token": token::measure(rounds).await?,
        "layer": layer::measure(&folder.join("layer"), rounds).await?,
        "memory": memory::measure(&folder.join("memory"), users).await?,
    });
    println!("{results}");
    Ok(())
}

/// The median.
fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    values.get(values.len() / 2).map_or(f64::NAN, |value| *value as f64)
}

/// CPU time of this process in seconds.
fn own_cpu() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Fields are counted after the closing bracket of the program name: utime and stime are fields 14 and 15.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("reading /proc/self/stat")?;
    Ok((user + system) / TICKS_PER_SECOND)
}
