//! Talks to the admin routes of a running server.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use http::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use super::{exit::Exit, flags::ClientFlags};
use crate::config::{ClientConfig, Flags, Sources};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const TIMEOUT: Duration = Duration::from_secs(35);

/// A running server and the token for it.
pub(super) struct Client {
    base: Url,
    token: Option<SecretString>,
    http: reqwest::Client,
}

/// Parameters of a query; those without a value are left out.
pub(super) type Query<'a> = &'a [(&'a str, Option<String>)];

impl Client {
    /// A client for the server that the flags and the environment name. Nothing is sent yet.
    pub(super) fn new(flags: ClientFlags) -> Result<Self, Exit> {
        Self::of(flags.0)
    }

    /// The same for a command that takes the flags of a server too.
    pub(super) fn of(flags: Flags) -> Result<Self, Exit> {
        let ClientConfig { server, admin_token } = ClientConfig::load(&Sources::of_process(flags))?;
        let http =
            reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT).no_proxy().build();
        Ok(Self { base: server, token: admin_token, http: http.context("cannot make an HTTP client")? })
    }

    pub(super) async fn get(&self, path: &[&str], query: Query<'_>) -> Result<Value, Exit> {
        self.call(Method::GET, path, query, None).await
    }

    pub(super) async fn post(&self, path: &[&str]) -> Result<Value, Exit> {
        self.call(Method::POST, path, &[], None).await
    }

    pub(super) async fn post_json(&self, path: &[&str], body: &Value) -> Result<Value, Exit> {
        self.call(Method::POST, path, &[], Some(body)).await
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<Value, Exit> {
        self.call(Method::DELETE, path, &[], None).await
    }

    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        body: Option<&Value>,
    ) -> Result<Value, Exit> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow!("the server is not a base URL"))?
            .pop_if_empty()
            .extend(["api", "admin"].iter().chain(path));
        let query: Vec<_> = query.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?))).collect();
        let mut request = self.http.request(method, url).query(&query);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body: Value = response.json().await.map_err(|_| self.not_kinsync())?;
        if status.is_success() { Ok(body) } else { Err(refused(status.as_u16(), &body)) }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Exit {
        let base = self.base.as_str().trim_end_matches('/');
        let why = if error.is_timeout() { "it does not answer" } else { "nothing listens there" };
        Exit::Unavailable(format!(
            "cannot reach kinsync at {base} ({why}): start it with `kinsync serve` or pass --server"
        ))
    }

    fn not_kinsync(&self) -> Exit {
        Exit::Failed(anyhow!("what answers at {} is not kinsync: pass --server", self.base))
    }
}

fn refused(status: u16, problem: &Value) -> Exit {
    let text = |key: &str| problem[key].as_str().unwrap_or("no reason given").to_owned();
    let mut message = format!("{}: {}", text("title"), text("detail"));
    if let Some(id) = problem["requestId"].as_str() {
        message = format!("{message} (request {id})");
    }
    match status {
        401 | 403 => Exit::Denied(message),
        503 => Exit::Unavailable(message),
        _ => Exit::Failed(anyhow!(message)),
    }
}
