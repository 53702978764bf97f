//! What a running server reports about itself.

use std::{net::IpAddr, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::Finding;
use crate::{
    api::health::{HealthReport, HealthStatus},
    config::{Http, Loaded, Origin, Setting},
};

const HEALTH: &str = "server.health";

pub(super) const IDS: [&str; 1] = [HEALTH];

const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn examine(loaded: &Loaded) -> Vec<Finding> {
    vec![health(loaded).await]
}

async fn health(loaded: &Loaded) -> Finding {
    let start = "start it with `kinsync serve`, or pass --server";
    let Some(base) = address(loaded) else {
        return Finding::skipped(HEALTH, "the port of the server is not known (PORT=0)", "pass --server");
    };
    let at = base.as_str().trim_end_matches('/');
    match read_health(&base, token(&base, loaded)).await {
        Err(error) if error.is_connect() => {
            Finding::skipped(HEALTH, format!("no server listens at {at}"), start)
        }
        Err(error) if error.is_timeout() => Finding::failed(
            HEALTH,
            format!("the server at {at} does not answer within {} s", TIMEOUT.as_secs()),
            "check its log and its load, then restart it: accepted deliveries stay in the queue",
        ),
        Err(_) => not_kinsync(at),
        Ok(health) => finding(at, &health),
    }
}

/// The address of /health: from `--server`, else from the settings. With `KINSYNC_METRICS_BIND` it differs from the address
/// of the admin routes, which `KINSYNC_SERVER` names.
pub(crate) fn address(loaded: &Loaded) -> Option<Url> {
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

/// The admin token, for which the server names causes. Not sent to another machine without TLS, where it could be read on the way.
fn token<'a>(base: &Url, loaded: &'a Loaded) -> Option<&'a SecretString> {
    let is_safe = base.scheme() == "https" || kinde::domain::is_loopback(base);
    loaded.config.http.admin_token.as_ref().filter(|_| is_safe)
}

/// The answer to `GET /health`. The error is of the connection, or of a body that is not a health report.
pub(crate) async fn read_health(base: &Url, token: Option<&SecretString>) -> reqwest::Result<HealthReport> {
    let http = reqwest::Client::builder().connect_timeout(TIMEOUT).timeout(TIMEOUT).no_proxy().build()?;
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().push("health");
    }
    let request = http.get(url);
    let request = match token {
        Some(token) => request.bearer_auth(token.expose_secret()),
        None => request,
    };
    request.send().await?.json().await
}

fn finding(at: &str, health: &HealthReport) -> Finding {
    let problems: Vec<&str> = health.problems.iter().map(|problem| problem.detail.as_str()).collect();
    let problems = problems.join("; ");
    let fix = "each problem names its fix; the log of the server has more details";
    match health.status {
        HealthStatus::Ok => Finding::ok(HEALTH, format!("{at} accepts deliveries{}", last_delivery(health))),
        HealthStatus::Degraded => Finding::warning(HEALTH, format!("{at}: {problems}"), fix),
        HealthStatus::Failing => {
            Finding::failed(HEALTH, format!("{at} does not accept deliveries: {problems}"), fix)
        }
    }
}

fn last_delivery(health: &HealthReport) -> String {
    let seconds = health.components.webhook.seconds_since_last_delivery;
    seconds.map_or_else(String::new, |seconds| format!(", the last one {seconds:.0} s ago"))
}

fn not_kinsync(at: &str) -> Finding {
    let fix = "pass --server, or correct PORT, KINSYNC_BIND or KINSYNC_METRICS_BIND";
    Finding::warning(HEALTH, format!("the server at {at} is not this version of kinsync"), fix)
}
