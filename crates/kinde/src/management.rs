//! A client for Kinde's Management API: users and their properties, organizations, roles and permissions, webhooks, event
//! types, events.
//!
//! It manages the machine-to-machine token, limits rates, retries within a budget per call, and reads responses strictly.
//! It guarantees: a response that is incomplete, not JSON or of another shape is an error, never an empty list or an
//! absent user; a request that creates something is not repeated if it may have taken effect; no credential is printed.
//!
//! <https://docs.kinde.com/kinde-apis/management/>, <https://docs.kinde.com/developer-tools/kinde-api/api-rate-limits/>

mod call;
mod config;
mod directory;
mod error;
mod pages;
mod property;
mod retry;
mod token;
mod webhook;

use std::fmt;
use std::sync::Arc;

use reqwest::{RequestBuilder, StatusCode};
use secrecy::ExposeSecret as _;
use tokio::sync::Semaphore;
use url::Url;

use self::call::{Call, Effect};
pub use self::config::{Config, ConfigError, Expand, MAX_PAGE_SIZE, RetryPolicy};
pub use self::directory::{Organization, OrganizationUser, RoleUser, UserPermission};
pub use self::error::Error;
use self::pages::{List, Paging};
pub use self::pages::{Page, Pages};
pub use self::property::{Property, PropertyDefinition, SearchedUser};
use self::retry::Gate;
use self::token::{Credentials, Tokens};
pub use self::webhook::{EventType, NewWebhook, Webhook, WebhookUpdate};
use crate::domain;
use crate::endpoint::Endpoint;
use crate::event::reader::Reader;
use crate::event::{self, Event};
pub use crate::event::{Permission, Role};
use crate::http_client::{HttpClient, Limits};
use crate::json::is_id;
use crate::response::Response;
pub use crate::user::{ApiUser as User, Assignment, Identity};

/// The scope of requests that read users.
const USERS: &str = "read:users";
/// Kinde's code for an unknown path. It does not mean that the requested object is absent.
const NO_ROUTE: &str = "ROUTE_NOT_FOUND";

/// A client for one tenant. Clones share the token, the limits and the connections.
///
/// All calls are cancel safe; a canceled call that creates something may have created it. All calls retry within
/// [`Config::retry`]. Requires a tokio runtime.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

pub(crate) struct Inner {
    config: Config,
    exchange: HttpClient,
    tokens: Tokens,
    max_concurrent_requests: Semaphore,
    gate: Gate,
}

impl Client {
    /// Checks the configuration. Sends no request.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let domain = domain::parse_domain(config.domain.as_str())?;
        if !(1..=MAX_PAGE_SIZE).contains(&config.page_size) {
            return Err(ConfigError::PageSize(config.page_size));
        }
        if config.client_id.is_empty() || config.client_secret.expose_secret().is_empty() {
            return Err(ConfigError::NoCredentials);
        }
        let exchange = HttpClient::new(&domain, limits(&config)).map_err(ConfigError::Client)?;
        let tokens = Tokens::new(exchange.clone(), credentials(&config, &domain), config.retry.clone());
        let max_concurrent_requests =
            Semaphore::new(config.max_concurrent_requests.clamp(1, Semaphore::MAX_PERMITS));
        Ok(Self(Arc::new(Inner { config, exchange, tokens, max_concurrent_requests, gate: Gate::default() })))
    }

    /// Lists all users from the first page. Scope `read:users`.
    pub fn users(&self) -> Pages<User> {
        let expand = self.0.config.expand.query();
        let list = List {
            endpoint: Endpoint::Users,
            scope: USERS,
            url: self.url(&["users"]),
            query: expand.map(|expand| ("expand", expand.to_owned())).into_iter().collect(),
            member: "users",
            paging: Paging::Token,
            read: User::read,
        };
        Pages::new(self.clone(), list)
    }

    /// Lists all users from the page of a [`Page::next_token`]. Scope `read:users`.
    pub fn users_from(&self, next_token: impl Into<String>) -> Pages<User> {
        self.users().from(next_token.into())
    }

    /// Reads one user; `None` if Kinde reports that the user does not exist. Scope `read:users`.
    ///
    /// Kinde documents no response for an unknown user. `None` is a 404 with any code of the API except `ROUTE_NOT_FOUND`,
    /// and a 400 with one of [`Config::unknown_user_codes`]. Any other 400, and a 404 of a proxy, is an error.
    pub async fn user(&self, id: &str) -> Result<Response<Option<User>>, Error> {
        check_id(id)?;
        let url = self.url(&["user"]);
        let expand = self.0.config.expand.query().map(|expand| ("expand", expand));
        let call = Call {
            endpoint: Endpoint::User,
            scope: USERS,
            effect: Effect::Idempotent,
            build: |http: &reqwest::Client| {
                http.get(url.clone()).query(&[("id", id)]).query(expand.as_slice())
            },
            is_absent: |status, code: &str| {
                is_missing(status, code, |code| {
                    self.0.config.unknown_user_codes.iter().any(|known| known == code)
                })
            },
            read: User::read,
        };
        let response = call.run(&self.0).await?;
        if response.value.as_ref().is_some_and(|user| user.id != id) {
            return Err(Error::WrongUser);
        }
        Ok(response)
    }

    /// Lists the event types that webhooks can deliver. Scope `read:event_types`.
    pub async fn event_types(&self) -> Result<Response<Vec<EventType>>, Error> {
        let url = self.url(&["event_types"]);
        let get = |http: &reqwest::Client| http.get(url.clone());
        let read = |response: Reader<'_>| list(response, "event_types", EventType::read);
        self.existing(reading(Endpoint::EventTypes, "read:event_types", get, read)).await
    }

    /// Reads one event; `None` if Kinde does not have it. Scope `read:events`.
    pub async fn event(&self, id: &str) -> Result<Response<Option<Event>>, Error> {
        check_id(id)?;
        let url = self.url(&["events", id]);
        let call = Call {
            endpoint: Endpoint::Event,
            scope: "read:events",
            effect: Effect::Idempotent,
            build: |http: &reqwest::Client| http.get(url.clone()),
            is_absent: |status, code: &str| {
                is_missing(status, code, |code| {
                    matches!(code, "EVENT_NOT_FOUND" | "EVENT_INVALID" | "NOT_FOUND")
                })
            },
            // The API returns the payload of a webhook under `event`.
            read: |mut response: Reader<'_>| event::read(response.required_object("event")?),
        };
        call.run(&self.0).await
    }

    /// Lists all webhooks. Scope `read:webhooks`.
    pub async fn webhooks(&self) -> Result<Response<Vec<Webhook>>, Error> {
        let url = self.url(&["webhooks"]);
        let get = |http: &reqwest::Client| http.get(url.clone());
        let read = |response: Reader<'_>| list(response, "webhooks", Webhook::read);
        self.existing(reading(Endpoint::Webhooks, "read:webhooks", get, read)).await
    }

    /// Creates a webhook and returns its id. Scope `create:webhooks`.
    ///
    /// Not retried if the request may have taken effect: check [`Self::webhooks`] first.
    pub async fn create_webhook(&self, webhook: &NewWebhook) -> Result<Response<String>, Error> {
        let url = self.url(&["webhooks"]);
        let call = Call {
            endpoint: Endpoint::CreateWebhook,
            scope: "create:webhooks",
            effect: Effect::Creates,
            build: |http: &reqwest::Client| http.post(url.clone()).json(webhook),
            is_absent: NEVER,
            read: |mut response: Reader<'_>| response.required_object("webhook")?.required_id("id"),
        };
        self.existing(call).await
    }

    /// Updates a webhook. Scope `update:webhooks`.
    pub async fn update_webhook(&self, id: &str, edit: &WebhookUpdate) -> Result<Response<()>, Error> {
        check_id(id)?;
        let url = self.url(&["webhooks", id]);
        let call = Call {
            endpoint: Endpoint::UpdateWebhook,
            scope: "update:webhooks",
            effect: Effect::Idempotent,
            build: |http: &reqwest::Client| http.patch(url.clone()).json(edit),
            is_absent: NEVER,
            read: |_: Reader<'_>| Ok(()),
        };
        self.existing(call).await
    }

    /// Returns the number of tokens that Kinde has issued to this client. Kinde bills each of them.
    pub fn tokens_fetched(&self) -> u64 {
        self.0.tokens.fetched()
    }

    /// Runs a call for an object that cannot be absent.
    async fn existing<Build, Read, T>(&self, call: Call<Build, Never, Read>) -> Result<Response<T>, Error>
    where
        Build: Fn(&reqwest::Client) -> RequestBuilder + Send + Sync,
        Read: Fn(Reader<'_>) -> Result<T, event::Error> + Send + Sync,
    {
        let Response { value, timing } = call.run(&self.0).await?;
        let value = value.expect("`NEVER` maps no response to an absent object");
        Ok(Response { value, timing })
    }

    /// The URL of `/api/v1/` and these segments, percent-encoded.
    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.0.config.domain.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(["api", "v1"]).extend(segments);
        }
        url
    }
}

/// Prints the tenant only.
impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Client").field(&self.0.config.domain.as_str()).finish()
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        connect_timeout: config.connect_timeout,
        timeout: config.timeout,
        max_body_bytes: config.max_body_bytes,
        clock_allowance: config.clock_allowance,
        clock: config.clock.clone(),
    }
}

fn credentials(config: &Config, domain: &Url) -> Credentials {
    let mut url = domain.clone();
    url.set_path("/oauth2/token");
    let audience = config.audience.clone().unwrap_or_else(|| format!("{}/api", domain::issuer_of(domain)));
    Credentials {
        url,
        client_id: config.client_id.clone(),
        client_secret: config.client_secret.clone(),
        audience,
    }
}

/// A call that reads an object that always exists.
fn reading<Build, Read>(
    endpoint: Endpoint,
    scope: &'static str,
    build: Build,
    read: Read,
) -> Call<Build, Never, Read> {
    Call { endpoint, scope, effect: Effect::Idempotent, build, is_absent: NEVER, read }
}

type Never = fn(StatusCode, &str) -> bool;

/// For objects that cannot be absent.
const NEVER: Never = |_, _| false;

fn is_missing(status: StatusCode, code: &str, is_known: impl Fn(&str) -> bool) -> bool {
    match status {
        StatusCode::NOT_FOUND => !code.is_empty() && code != NO_ROUTE,
        StatusCode::BAD_REQUEST => is_known(code),
        _ => false,
    }
}

/// Rejects `.` and `..` too, because they would change the path of the URL.
fn check_id(id: &str) -> Result<(), Error> {
    if is_id(id) && id != "." && id != ".." { Ok(()) } else { Err(Error::InvalidIdentifier) }
}

fn list<T>(
    mut response: Reader<'_>,
    key: &str,
    read: fn(Reader<'_>) -> Result<T, event::Error>,
) -> Result<Vec<T>, event::Error> {
    response.required_objects(key)?.into_iter().map(read).collect()
}
