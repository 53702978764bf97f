//! What a running server says of itself.

use std::{net::IpAddr, time::Duration};

use serde_json::Value;
use url::Url;

use super::Finding;
use crate::config::{Http, Loaded, Origin, Setting};

const HEALTH: &str = "server.health";

pub(super) const IDS: [&str; 1] = [HEALTH];

const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn examine(loaded: &Loaded) -> Vec<Finding> {
    vec![health(loaded).await]
}

async fn health(loaded: &Loaded) -> Finding {
    let start = "start it with `kinsync serve`, or pass --server";
    let Some(base) = address(loaded) else {
        return Finding::skipped(HEALTH, "with PORT=0 nobody knows where a server is", "pass --server");
    };
    let at = base.as_str().trim_end_matches('/');
    match ask(&base).await {
        Err(error) if error.is_connect() => Finding::skipped(HEALTH, format!("none listens at {at}"), start),
        Err(error) if error.is_timeout() => Finding::failed(
            HEALTH,
            format!("the one at {at} does not answer within {TIMEOUT:?}"),
            "look at its log and its load; restart it: what it accepted is in the queue",
        ),
        Err(_) => not_kinsync(at),
        Ok(health) => told(at, &health),
    }
}

/// Where /health is: as the operator says with the command, else where these settings put it. `KINSYNC_SERVER` is where
/// the admin routes are, and with `KINSYNC_METRICS_BIND` that is not the place.
fn address(loaded: &Loaded) -> Option<Url> {
    let config = &loaded.config;
    if let Some(server) = &config.server
        && (config.http.metrics_bind.is_none() || is_flag(loaded, Setting::of("KINSYNC_SERVER")))
    {
        return Some(server.clone());
    }
    let Http { bind, port, metrics_bind, .. } = config.http;
    let (ip, port) = metrics_bind.map_or((bind, port), |address| (address.ip(), address.port()));
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    (port != 0)
        .then(|| Url::parse(&format!("http://{ip}:{port}")).expect("an address and a port are an authority"))
}

fn is_flag(loaded: &Loaded, setting: &Setting) -> bool {
    let mut settings = loaded.merged.settings.iter();
    settings.any(|one| one.setting.env == setting.env && matches!(one.origin, Origin::Flag(_)))
}

async fn ask(base: &Url) -> reqwest::Result<Value> {
    let http = reqwest::Client::builder().connect_timeout(TIMEOUT).timeout(TIMEOUT).no_proxy().build()?;
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().push("health");
    }
    http.get(url).send().await?.json().await
}

fn told(at: &str, health: &Value) -> Finding {
    let problems: Vec<&str> =
        health["problems"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let fix = "do what is said; the log of the server says more";
    match health["status"].as_str() {
        Some("ok") => Finding::ok(HEALTH, format!("{at} accepts deliveries{}", last_delivery(health))),
        Some("degraded") => Finding::warning(HEALTH, format!("{at}: {}", problems.join("; ")), fix),
        Some("failing") => {
            Finding::failed(HEALTH, format!("{at} accepts no deliveries: {}", problems.join("; ")), fix)
        }
        _ => not_kinsync(at),
    }
}

fn last_delivery(health: &Value) -> String {
    let seconds = health.pointer("/components/webhook/secondsSinceLastDelivery").and_then(Value::as_f64);
    seconds.map_or_else(String::new, |seconds| format!(", the last one came {seconds:.0} s ago"))
}

fn not_kinsync(at: &str) -> Finding {
    let fix = "pass --server, or correct PORT, KINSYNC_BIND or KINSYNC_METRICS_BIND";
    Finding::warning(HEALTH, format!("what answers at {at} is not kinsync"), fix)
}
