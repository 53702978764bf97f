//! The memory of cached users and tokens, and that the settings limit both.

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
use crate::tenant::{Tenant, for_all};

/// Concurrent requests: enough for full batches of loads.
const LANES: usize = 1_024;
/// Longer than the measurement, so that no user is loaded twice and no request times out.
const NEVER: Duration = Duration::from_hours(1);

/// Measures the bytes for this many users, first with a limit for all, then with a limit of a tenth.
pub async fn measure(folder: &Path, users: usize) -> anyhow::Result<Value> {
    let bound = (users / 10).max(1);
    let tenant = Arc::new(Tenant::with(folder, users).await?);
    let start = Held::now()?;
    let tokens = tenant.tokens(users);
    verify(&tenant, &tokens, users).await?;
    let with_tokens = Held::now()?;
    let running = tenant.open(&tokens, config(users)).await?;
    authenticate(&tenant, &running.authenticator, users).await?;
    let with_users = Held::now()?;
    running.end().await;
    let before = Held::now()?;
    let running = tenant.open(&tokens, config(bound)).await?;
    authenticate(&tenant, &running.authenticator, users).await?;
    let bounded_users = Held::now()?.live - before.live;
    running.end().await;
    drop(tokens);
    let before = Held::now()?;
    let tokens = tenant.tokens(bound);
    // Enough new tokens to see that the limit holds.
    let new_tokens = users.min(bound * 5 / 2);
    verify(&tenant, &tokens, new_tokens).await?;
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

async fn verify(tenant: &Arc<Tenant>, tokens: &CachingVerifier, users: usize) -> anyhow::Result<()> {
    let (tenant, tokens) = (Arc::clone(tenant), tokens.clone());
    for_all(users, 2, move |user| {
        let (tenant, tokens) = (Arc::clone(&tenant), tokens.clone());
        async move {
            tokens.verify(&tenant.token(user), tenant.now()).await?;
            Ok(())
        }
    })
    .await
}

async fn authenticate(
    tenant: &Arc<Tenant>,
    authenticator: &Authenticator,
    users: usize,
) -> anyhow::Result<()> {
    let (tenant, authenticator) = (Arc::clone(tenant), authenticator.clone());
    for_all(users, LANES, move |user| {
        let (tenant, authenticator) = (Arc::clone(&tenant), authenticator.clone());
        async move {
            let admitted = authenticator
                .authenticate(&tenant.headers(user)?)
                .await
                .map_err(|problem| anyhow!("{problem:?}"))?;
            anyhow::ensure!(!admitted.is_degraded(), "the store is unavailable");
            // The text is cached with the user, as for `/api/me`.
            anyhow::ensure!(!admitted.json().body().is_empty(), "a document is empty");
            Ok(())
        }
    })
    .await
}

/// Memory of the process in bytes.
struct Held {
    /// Allocated by Rust's allocator and not freed.
    live: f64,
    /// Resident memory, from the kernel.
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
