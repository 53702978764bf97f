//! Time and allocations that the layer adds to a call of an axum handler, with a cached user and token.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{HeaderMap, Request, StatusCode};
use kinsync_tower::KinsyncLayer;
use kinsync_tower::authenticator::Config;
use serde_json::{Value, json};
use stats_alloc::Region;
use tower::Service;
use tower_layer::layer_fn;

use crate::tenant::{Tenant, for_all};
use crate::{ALLOCATOR, median};

const USERS: usize = 2_000;
const CALLS: usize = 100_000;
/// Longer than a measurement.
const NEVER: Duration = Duration::from_hours(1);

/// Measures the microseconds of a call of the plain handler, behind an empty layer and behind kinsync's layer, for each
/// round, and the allocations of a call.
pub async fn measure(folder: &Path, rounds: usize) -> anyhow::Result<Value> {
    let tenant = Tenant::with(folder, USERS).await?;
    let requests = (0..USERS).map(|user| tenant.headers(user)).collect::<Result<Vec<_>, _>>()?;
    let tokens = tenant.tokens(USERS * 2);
    // As in production: users are reloaded every 400 ms during the calls.
    let running = tenant.open(&tokens, Config::default()).await?;
    warm(&running.authenticator, &requests).await?;
    let (mut plain, mut empty, mut kinsync) =
        (handler(), behind_empty_layer(), behind(&running.authenticator));
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (times, router) in times.iter_mut().zip([&mut plain, &mut empty, &mut kinsync]) {
            times.push(median(call(router, &requests).await?) / 1000.0);
        }
    }
    running.end().await;
    // Idle, so that nothing else allocates.
    let quiet = Config { refresh_after: NEVER, stale_after: NEVER, flush_every: NEVER, ..Config::default() };
    let running = tenant.open(&tokens, quiet).await?;
    warm(&running.authenticator, &requests).await?;
    let mut kinsync = behind(&running.authenticator);
    let base = allocations(&mut plain, &requests).await?;
    let empty = allocations(&mut empty, &requests).await? - base;
    let kinsync = allocations(&mut kinsync, &requests).await? - base;
    let [plain_times, empty_times, kinsync_times] = times;
    Ok(json!({
        "plain": plain_times, "empty": empty_times, "kinsync": kinsync_times, "calls": CALLS,
        "empty_allocations": empty, "kinsync_allocations": kinsync,
    }))
}

fn handler() -> Router {
    Router::new().route("/", get(async || "hello"))
}

fn behind_empty_layer() -> Router {
    handler().route_layer(layer_fn(|inner: axum::routing::Route| inner))
}

fn behind(authenticator: &kinsync_tower::Authenticator) -> Router {
    handler().route_layer(KinsyncLayer::new(authenticator.clone()))
}

async fn warm(authenticator: &kinsync_tower::Authenticator, requests: &[HeaderMap]) -> anyhow::Result<()> {
    let (authenticator, requests) = (authenticator.clone(), std::sync::Arc::new(requests.to_vec()));
    for_all(USERS, 64, move |user| {
        let (authenticator, requests) = (authenticator.clone(), requests.clone());
        async move {
            let user = authenticator.authenticate(&requests[user]).await;
            anyhow::ensure!(user.is_ok_and(|user| !user.is_degraded()), "a user is not authenticated");
            Ok(())
        }
    })
    .await
}

/// Measures the nanoseconds of each call, without creating the request and dropping the response.
async fn call(router: &mut Router, requests: &[HeaderMap]) -> anyhow::Result<Vec<u64>> {
    let mut times = Vec::with_capacity(CALLS);
    for headers in requests.iter().cycle().take(CALLS) {
        let request = request(headers);
        let start = Instant::now();
        let response = Service::<Request<Body>>::call(router, request).await?;
        times.push(u64::try_from(start.elapsed().as_nanos())?);
        anyhow::ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
    }
    Ok(times)
}

/// Counts the allocations of a call with its request and response.
async fn allocations(router: &mut Router, requests: &[HeaderMap]) -> anyhow::Result<f64> {
    call(router, &requests[..1]).await?;
    let region = Region::new(ALLOCATOR);
    for headers in requests {
        let response = Service::<Request<Body>>::call(router, request(headers)).await?;
        anyhow::ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
    }
    let stats = region.change();
    Ok((stats.allocations + stats.reallocations) as f64 / requests.len() as f64)
}

fn request(headers: &HeaderMap) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    request.headers_mut().clone_from(headers);
    request
}
