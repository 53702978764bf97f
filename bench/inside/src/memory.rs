//! The memory of users and of tokens in the caches of an authenticator, and that the setting bounds both.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kinde::bearer::CachingVerifier;
use kinsync_tower::Authenticator;
use kinsync_tower::authenticator::Config;
use serde_json::{Value, json};

use crate::ALLOCATOR;
use crate::town::{Town, for_all};

/// Requests at a time: enough for full batches of loads.
const LANES: usize = 1_024;
/// Longer than the measurement: nobody is loaded twice, nobody waits in vain.
const NEVER: Duration = Duration::from_hours(1);

/// Bytes for this many users: first with room for all, then with room for a tenth.
pub async fn measure(folder: &Path, users: usize) -> anyhow::Result<Value> {
    let bound = (users / 10).max(1);
    let town = Arc::new(Town::with(folder, users).await?);
    let start = Held::now()?;
    let tokens = town.tokens(users);
    verify(&town, &tokens, users).await?;
    let with_tokens = Held::now()?;
    let running = town.open(&tokens, config(users));
    authenticate(&town, &running.authenticator, users).await?;
    let with_users = Held::now()?;
    running.end().await?;
    let before = Held::now()?;
    let running = town.open(&tokens, config(bound));
    authenticate(&town, &running.authenticator, users).await?;
    let bounded_users = Held::now()?.live - before.live;
    running.end().await?;
    drop(tokens);
    let before = Held::now()?;
    let tokens = town.tokens(bound);
    // Each is verified anew: no more than it takes to see that the bound holds.
    let new_tokens = users.min(bound * 5 / 2);
    verify(&town, &tokens, new_tokens).await?;
    let bounded_tokens = Held::now()?.live - before.live;
    Ok(json!({
        "users": users, "bound": bound,
        "tokens_live": with_tokens.live - start.live, "tokens_rss": with_tokens.rss - start.rss,
        "users_live": with_users.live - with_tokens.live, "users_rss": with_users.rss - with_tokens.rss,
        "bounded_users_live": bounded_users, "bounded_tokens_live": bounded_tokens, "new_tokens": new_tokens,
    }))
}

fn config(cached_users: usize) -> Config {
    let (deadline, refresh_after, stale_after, flush_every) = (NEVER, NEVER, NEVER, NEVER);
    Config { cached_users, deadline, refresh_after, stale_after, flush_every, ..Config::default() }
}

async fn verify(town: &Arc<Town>, tokens: &CachingVerifier, users: usize) -> anyhow::Result<()> {
    let (town, tokens) = (Arc::clone(town), tokens.clone());
    for_all(users, 2, move |user| {
        let (town, tokens) = (Arc::clone(&town), tokens.clone());
        async move {
            tokens.verify(&town.token(user), town.now()).await?;
            Ok(())
        }
    })
    .await
}

async fn authenticate(town: &Arc<Town>, authenticator: &Authenticator, users: usize) -> anyhow::Result<()> {
    let (town, authenticator) = (Arc::clone(town), authenticator.clone());
    for_all(users, LANES, move |user| {
        let (town, authenticator) = (Arc::clone(&town), authenticator.clone());
        async move {
            let admitted = authenticator
                .authenticate(&town.headers(user)?)
                .await
                .map_err(|problem| anyhow!("{problem:?}"))?;
            anyhow::ensure!(!admitted.is_degraded(), "the store did not answer");
            // As `/api/me` does: the text is kept with the user.
            anyhow::ensure!(!admitted.json().body().is_empty(), "a document is empty");
            Ok(())
        }
    })
    .await
}

/// What the process holds, in bytes.
struct Held {
    /// Allocated and not freed, by Rust's allocator.
    live: f64,
    /// Resident, by the kernel.
    rss: f64,
}

impl Held {
    fn now() -> anyhow::Result<Self> {
        let counted = ALLOCATOR.stats();
        let status = fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no `VmRSS:`")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        let allocated = counted.bytes_allocated as f64 - counted.bytes_deallocated as f64;
        Ok(Self { live: allocated, rss: kib * 1024.0 })
    }
}
