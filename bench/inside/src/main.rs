//! Measures in one process: the cost of the layer ([`layer`]), the verification of a token ([`token`]), and the memory of
//! users and tokens ([`memory`]); or the time of the lists of both stores ([`queries`]); or the queues ([`queue`]). Prints
//! one line of JSON.
//!
//! Usage: `inside FOLDER ROUNDS USERS`, `inside queries FOLDER URI USERS ENTRIES`, or
//! `inside queue FOLDER ROUNDS ENTRIES WINDOW BYTES`. The bench runs it.

mod key;
mod layer;
mod memory;
mod queries;
mod queue;
mod tenant;
mod token;

use std::alloc::System;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// The allocator of the kinsync binary, with counters.
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
