//! What cannot be seen from outside, measured in one process and printed as one line of JSON: what the layer adds to a
//! call ([`layer`]), what a token costs alone ([`token`]), the memory of users and tokens ([`memory`]).
//!
//! `inside FOLDER ROUNDS USERS`; called by the bench.

mod key;
mod layer;
mod memory;
mod token;
mod town;

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
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("inside FOLDER ROUNDS USERS");
    let (folder, rounds, users) = (PathBuf::from(next()?), next()?.parse()?, next()?.parse()?);
    let found = json!({
        "token": token::measure(rounds).await?,
        "layer": layer::measure(&folder.join("layer"), rounds).await?,
        "memory": memory::measure(&folder.join("memory"), users).await?,
    });
    println!("{found}");
    Ok(())
}

/// The middle one.
fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    values.get(values.len() / 2).map_or(f64::NAN, |value| *value as f64)
}
