//! Access to the routes for operators: the `Host`, the back-off after wrong tokens, tokens and their scopes, and the audit
//! log.

use std::{fmt, net::IpAddr};

use aws_lc_rs::{constant_time, digest};
use http::{HeaderMap, header};
use kinsync_engine::internal::audit::{AuditLog, Kind, Record};
use kinsync_tower::Problem;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

use super::{
    answer,
    back_off::BackOff,
    network::{Network, Peer},
};
use crate::{
    app::AppState,
    config::{Http, Scope},
};

/// The name of the token in `KINSYNC_ADMIN_TOKEN`.
const ADMIN: &str = "admin";

/// What a route for operators returns or changes. Decides the scope that it needs, and whether it is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Returns figures and settings.
    Figures,
    /// Returns personal data.
    PersonalData,
    /// Changes something.
    Action,
}

impl Access {
    /// The scope that the route needs.
    pub fn scope(self) -> Scope {
        match self {
            Self::Figures | Self::PersonalData => Scope::Read,
            Self::Action => Scope::Operate,
        }
    }

    fn audited_as(self) -> Option<Kind> {
        match self {
            Self::Figures => None,
            Self::PersonalData => Some(Kind::Read),
            Self::Action => Some(Kind::Action),
        }
    }
}

/// The operator of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operator {
    /// Name of the token.
    pub name: String,
    /// Address of the client.
    pub peer: IpAddr,
}

/// Verifies requests of operators and records them.
#[derive(Debug)]
pub struct AdminAccess {
    tokens: Vec<Token>,
    /// Allowed names in `Host`; `None`: every name.
    hosts: Option<Vec<String>>,
    proxies: Vec<Network>,
    back_off: BackOff,
    audit: AuditLog,
}

impl AdminAccess {
    /// Creates the tokens and rules of the settings.
    pub fn new(http: &Http) -> Self {
        let single = http.admin_token.iter().map(|token| Token::new(ADMIN, Scope::Operate, token));
        let named = http.admin_tokens.iter().map(|named| Token::new(&named.name, named.scope, &named.token));
        Self {
            tokens: single.chain(named).collect(),
            hosts: http.admin_ip().is_loopback().then(|| hosts(http)),
            proxies: http.trusted_proxies.clone(),
            back_off: BackOff::default(),
            audit: AuditLog::default(),
        }
    }

    /// The audit log.
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Returns the operator of a request that may use a route with this scope.
    pub fn authorize<B>(&self, request: &http::Request<B>, needed: Scope) -> Result<Operator, Problem> {
        let headers = request.headers();
        if self.tokens.is_empty() {
            return Err(Problem::Disabled { what: "admin routes", enabled_by: "KINSYNC_ADMIN_TOKEN" });
        }
        if !self.is_allowed_host(request) {
            return Err(Problem::UnknownHost);
        }
        let peer = Peer::of(request.extensions()).client(headers, &self.proxies);
        if let Some(retry_after) = self.back_off.pause(peer) {
            return Err(Problem::TooManyWrongTokens { retry_after });
        }
        let token = self.token(headers).inspect_err(|problem| {
            if *problem == Problem::WrongToken {
                let pause = self.back_off.fail(peer).as_secs();
                tracing::warn!(%peer, pause_seconds = pause, "an admin request with a wrong token was refused");
            }
        })?;
        let name = token.name.clone();
        if token.scope < needed {
            let scope = needed.as_str();
            tracing::warn!(%peer, actor = name, scope, "an admin request without the scope of its route was refused");
            return Err(Problem::MissingScope { scope });
        }
        Ok(Operator { name, peer })
    }

    /// The token of the `Authorization` header. It is compared with every configured one, so that the time of the answer reveals nothing.
    fn token(&self, headers: &HeaderMap) -> Result<&Token, Problem> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let sent = values.next().and_then(|value| bearer(value.as_bytes())).ok_or(Problem::NoToken)?;
        if values.next().is_some() {
            return Err(Problem::WrongToken);
        }
        let sent = digest::digest(&digest::SHA256, sent);
        let matching: Vec<_> = self.tokens.iter().filter(|token| token.matches(&sent)).collect();
        matching.into_iter().max_by_key(|token| token.scope).ok_or(Problem::WrongToken)
    }

    /// A name in `Host` may be one that its owner has pointed to this machine, to reach it from a browser here (DNS
    /// rebinding). An address cannot be.
    fn is_allowed_host<B>(&self, request: &http::Request<B>) -> bool {
        let Some(allowed) = &self.hosts else { return true };
        let sent = request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or_default());
        let Some(sent) = sent.or_else(|| request.uri().authority().map(http::uri::Authority::as_str)) else {
            // HTTP/1.0 without a Host: no browser sends that.
            return true;
        };
        let Ok(sent) = sent.parse::<http::uri::Authority>() else { return false };
        let name = sent.host().trim_end_matches('.').to_ascii_lowercase();
        let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        is_address || name == "localhost" || allowed.contains(&name)
    }

    /// Records a request before it is carried out. What cannot be recorded is not carried out.
    pub async fn record(
        &self,
        state: &AppState,
        access: Access,
        operator: Operator,
        (route, parameters): (String, Map<String, Value>),
    ) -> answer::Result<()> {
        let Some(kind) = access.audited_as() else { return Ok(()) };
        let Operator { name, peer } = operator;
        let what = Value::Object(parameters.clone());
        tracing::info!(actor = name, %peer, route, parameters = %what, "admin request");
        let now = state.engine.clock().now();
        let record = Record::new(kind, now, (name, peer.to_string())).of(route, parameters);
        Ok(self.audit.add(&**state.engine.store(), &record).await?)
    }
}

/// Answers a request for operators that was refused, and counts it by the code of the problem.
pub fn refused(problem: Problem) -> answer::Failure {
    metrics::counter!("kinsync_admin_requests_refused_total", "reason" => problem.code()).increment(1);
    problem.into()
}

fn hosts(http: &Http) -> Vec<String> {
    let public = http.public_url.as_ref().and_then(|url| url.host_str()).map(str::to_owned);
    http.admin_hosts.iter().cloned().chain(public).collect()
}

/// The token of `Bearer <token>`; the scheme is case-insensitive (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// A token as a digest: compared in constant time, whatever the lengths.
struct Token {
    name: String,
    scope: Scope,
    digest: digest::Digest,
}

impl Token {
    fn new(name: &str, scope: Scope, token: &SecretString) -> Self {
        let digest = digest::digest(&digest::SHA256, token.expose_secret().as_bytes());
        Self { name: name.to_owned(), scope, digest }
    }

    fn matches(&self, sent: &digest::Digest) -> bool {
        constant_time::verify_slices_are_equal(self.digest.as_ref(), sent.as_ref()).is_ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// Parameters with a value of a user.
const PERSONAL: [&str; 4] = ["email", "email_prefix", "name_prefix", "phone"];

/// The parameters of a request as the audit log keeps them: the value of a user would outlive the user's erasure, so the start
/// of its SHA-256 replaces it. The position of a page, which can contain such a value, is left out.
pub fn audited(parameters: &impl serde::Serialize) -> Map<String, Value> {
    let Ok(Value::Object(mut parameters)) = serde_json::to_value(parameters) else { return Map::new() };
    parameters.retain(|name, value| !value.is_null() && name != "after");
    for name in PERSONAL {
        if let Some(Value::String(text)) = parameters.get_mut(name) {
            let hash = digest::digest(&digest::SHA256, text.trim().to_lowercase().as_bytes());
            let start = hash.as_ref().first_chunk().copied().map(u64::from_be_bytes).unwrap_or_default();
            *text = format!("sha256:{start:016x}");
        }
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn access(vars: &[(&str, &str)]) -> AdminAccess {
        let usual =
            [("KINDE_WEBHOOK_SECRET", "a-secret-of-more-than-16-characters"), ("KINSYNC_ADMIN_TOKEN", "t")];
        let config = Config::from_vars(usual.iter().chain(vars).copied()).unwrap();
        AdminAccess::new(&config.http)
    }

    fn request(headers: &[(&str, &str)]) -> http::Request<()> {
        let request = http::Request::get("/api/admin/users").extension(Peer("192.0.2.1".parse().unwrap()));
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
    }

    #[test]
    fn on_a_loopback_address_only_own_names_are_served() {
        let check = |vars: &[(&str, &str)], host: &str, expected: bool| {
            let (access, request) = (access(vars), request(&[("host", host), ("authorization", "Bearer t")]));
            assert_eq!(access.authorize(&request, Scope::Read).is_ok(), expected, "{host} with {vars:?}");
        };
        for host in ["localhost", "LOCALHOST:5000", "localhost.", "127.0.0.1:5000", "[::1]:5000", "10.0.0.7"]
        {
            check(&[], host, true);
        }
        for host in ["evil.example", "localhost.evil.example:5000", "127.0.0.1.evil.example", "", "a@b@c"] {
            check(&[], host, false);
            check(&[("KINSYNC_BIND", "127.0.0.1"), ("KINSYNC_ADMIN_BIND", "[::1]:1")], host, false);
        }
        check(&[("KINSYNC_PUBLIC_URL", "https://app.example.com/x")], "app.example.com", true);
        check(&[("KINSYNC_ADMIN_HOSTS", "Admin.Internal")], "admin.internal:443", true);
        let everywhere =
            [("KINSYNC_BIND", "0.0.0.0"), ("KINSYNC_ADMIN_TOKEN", "a-token-of-more-than-16-characters")];
        let (access, request) = (access(&everywhere), request(&[("host", "any.example")]));
        assert_eq!(access.authorize(&request, Scope::Read), Err(Problem::NoToken), "its names are not known");
    }

    #[tokio::test(start_paused = true)]
    async fn the_back_off_is_of_the_client_behind_a_trusted_proxy() {
        let access = access(&[("KINSYNC_TRUSTED_PROXIES", "192.0.2.0/24")]);
        let from = |client: &str, token: &str| {
            let token = format!("Bearer {token}");
            let forwarded = format!("203.0.113.99, {client}, 192.0.2.9");
            access.authorize(
                &request(&[("authorization", &token), ("x-forwarded-for", &forwarded)]),
                Scope::Read,
            )
        };
        for _ in 0..6 {
            assert_eq!(from("203.0.113.1", "wrong"), Err(Problem::WrongToken));
        }
        assert!(matches!(from("203.0.113.1", "t"), Err(Problem::TooManyWrongTokens { .. })));
        assert_eq!(from("203.0.113.2", "t").unwrap().peer, IpAddr::from([203, 0, 113, 2]));
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!(from("203.0.113.1", "t").is_ok());
    }

    #[test]
    fn a_request_without_a_token_causes_no_pause() {
        let access = access(&[]);
        for _ in 0..100 {
            assert_eq!(access.authorize(&request(&[]), Scope::Read), Err(Problem::NoToken));
        }
    }

    #[test]
    fn the_audit_log_keeps_no_email_address() {
        let query =
            crate::api::users::UsersQuery { email: Some(" Ada@Example.com".into()), ..Default::default() };
        let kept = Value::Object(audited(&query));
        assert_eq!(kept, serde_json::json!({ "email": "sha256:b5fc85e55755f9e0", "deleted": false }));
    }
}
