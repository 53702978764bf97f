//! A request to the control API of a running emulator.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde_json::Value;
use url::Url;

use super::Target;

/// A request to the control API.
pub(super) struct Request {
    target: Target,
    method: Method,
    path: Vec<String>,
    query: Option<(&'static str, String)>,
    body: Option<Value>,
}

impl Request {
    pub(super) fn new(target: Target, method: Method, path: &[&str]) -> Self {
        let path = path.iter().map(|part| (*part).to_owned()).collect();
        Self { target, method, path, query: None, body: None }
    }

    pub(super) fn get(target: Target, path: &[&str]) -> Self {
        Self::new(target, Method::GET, path)
    }

    pub(super) fn post(target: Target, path: &[&str], body: Value) -> Self {
        Self { body: Some(body), ..Self::new(target, Method::POST, path) }
    }

    pub(super) fn patch(target: Target, path: &[&str], body: Value) -> Self {
        Self { body: Some(body), ..Self::new(target, Method::PATCH, path) }
    }

    pub(super) fn with_query(self, query: Option<(&'static str, String)>) -> Self {
        Self { query, ..self }
    }

    fn url(&self) -> anyhow::Result<Url> {
        let mut url = self.target.url.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow::anyhow!("`--url` must be an http address"))?
            .clear()
            .push("_emulator")
            .extend(&self.path);
        url.set_query(None);
        if let Some((name, value)) = &self.query {
            url.query_pairs_mut().append_pair(name, value);
        }
        Ok(url)
    }

    pub(super) async fn send(self) -> anyhow::Result<Value> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().build()?;
        let mut request = client.request(self.method.clone(), self.url()?);
        if let Some(body) = &self.body {
            request = request.json(body);
        }
        let hint = || {
            let url = &self.target.url;
            format!("no emulator responds at {url}: start one with `kinde-emulator serve`, or set --url")
        };
        let response = request.send().await.with_context(hint)?;
        let status = response.status();
        let text = response.text().await.context("the response is incomplete")?;
        if !status.is_success() {
            let error: Value = serde_json::from_str(&text).unwrap_or_default();
            bail!("{}", error["error"].as_str().unwrap_or(&text));
        }
        serde_json::from_str(&text).context("the response is not JSON: this is not a kinde-emulator")
    }
}
