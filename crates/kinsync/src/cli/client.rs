//! A client of the admin routes of a running server.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use http::Method;
use kinsync_tower::problem::{Document, chain};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

use super::{exit::Exit, flags::ClientFlags};
use crate::config::{ClientConfig, Flags, Sources};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than the server takes for a request.
const TIMEOUT: Duration = Duration::from_secs(35);

/// A running server and the token for it.
pub(super) struct Client {
    base: Url,
    token: Option<SecretString>,
    http: reqwest::Client,
}

impl Client {
    /// A client of the server that the flags and the environment name. Sends nothing yet.
    pub(super) fn new(flags: ClientFlags) -> Result<Self, Exit> {
        Self::of(flags.0)
    }

    /// The same for a command that takes the flags of a server too.
    pub(super) fn of(flags: Flags) -> Result<Self, Exit> {
        let ClientConfig { server, admin_token } = ClientConfig::load(&Sources::of_process(flags))?;
        if admin_token.is_some() && server.scheme() == "http" && !kinde::domain::is_loopback(&server) {
            return Err(Exit::Failed(anyhow!(
                "{server} is another machine without TLS, where the admin token could be read on the way: use https:// \
                 (KINSYNC_TLS_CERTIFICATE or a proxy), or a tunnel to 127.0.0.1 such as `ssh -L` or `kubectl port-forward`"
            )));
        }
        let http =
            reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT).no_proxy().build();
        Ok(Self { base: server, token: admin_token, http: http.context("cannot make an HTTP client")? })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Exit> {
        self.send(self.request(Method::GET, path)?).await
    }

    /// Requests a list with the filters of the command line. A filter that the server refuses is wrong usage.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &impl Serialize,
    ) -> Result<T, Exit> {
        match self.answer(self.request(Method::GET, path)?.query(query)).await? {
            Ok(document) => Ok(document),
            // The query consists of what was typed.
            Err(problem) if problem.status == 400 => Err(Exit::Usage(text(*problem))),
            Err(problem) => Err(self.refused(*problem)),
        }
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Exit> {
        self.send(self.request(Method::POST, path)?).await
    }

    pub(super) async fn post_query<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &impl Serialize,
    ) -> Result<T, Exit> {
        self.send(self.request(Method::POST, path)?.query(query)).await
    }

    pub(super) async fn post_json<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Exit> {
        self.send(self.request(Method::POST, path)?.json(body)).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Exit> {
        self.send(self.request(Method::DELETE, path)?).await
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<reqwest::RequestBuilder, Exit> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow!("the server is not a base URL"))?
            .pop_if_empty()
            .extend(["api", "admin"].iter().chain(path));
        let request = self.http.request(method, url);
        Ok(match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        })
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, Exit> {
        self.answer(request).await?.map_err(|problem| self.refused(*problem))
    }

    /// The document, or the problem that the server answers instead.
    async fn answer<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<Result<T, Box<Document>>, Exit> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let is_success = response.status().is_success();
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let answer = if is_success {
            serde_json::from_slice(&body).map(Ok)
        } else {
            serde_json::from_slice(&body).map(|problem| Err(Box::new(problem)))
        };
        answer.map_err(|error| self.not_kinsync(&error))
    }

    fn refused(&self, problem: Document) -> Exit {
        match problem.status {
            401 if self.token.is_none() => Exit::Denied(format!(
                "{}: set KINSYNC_ADMIN_TOKEN, or KINSYNC_ADMIN_TOKEN_FILE, to an admin token of the server at {}",
                problem.title,
                self.base.as_str().trim_end_matches('/')
            )),
            401 | 403 => Exit::Denied(text(problem)),
            503 => Exit::Unavailable(format!("{}; `kinsync doctor` names what to do", text(problem))),
            _ => Exit::Failed(anyhow!(text(problem))),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Exit {
        let base = self.base.as_str().trim_end_matches('/');
        let cause = if error.is_timeout() { "it does not answer in time".to_owned() } else { root(error) };
        Exit::Unavailable(format!(
            "cannot reach kinsync at {base} ({cause}): start it with `kinsync serve` or pass --server"
        ))
    }

    fn not_kinsync(&self, error: &serde_json::Error) -> Exit {
        Exit::Failed(anyhow!(
            "the server at {} is not this version of kinsync ({error}): pass --server, or use the same version",
            self.base
        ))
    }
}

/// The innermost cause: the layers around it only say that a request failed.
pub(super) fn root(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map_or_else(|| chain(error), ToString::to_string)
}

fn text(problem: Document) -> String {
    let reason = problem.cause.unwrap_or(problem.detail);
    let request = problem.request_id.map(|id| format!(" (request {id})")).unwrap_or_default();
    format!("{}: {reason}{request}", problem.title)
}
