//! Settings of the emulator. Every field has a default. Behaviour that Kinde does not document is a setting.
//!
//! Reading files and the environment is the responsibility of the binary.

mod application;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::faults::Fault;
use crate::span;
use crate::webhook::WebhookSpec;

pub use application::Application;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// All settings. Durations are written as `"250ms"`, `"5s"`, `"2m"` or `"12h"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address to listen on. The control API has no password: keep it on loopback.
    pub bind: IpAddr,
    /// Port to listen on; 0 lets the system choose.
    pub port: u16,
    /// Seed of ids, jitter and faults with a probability.
    pub seed: u64,
    /// Factor by which the retry schedule and the automatic disabling run faster.
    pub time_scale: f64,
    /// Client id of the machine-to-machine application.
    pub client_id: String,
    /// Client secret of the machine-to-machine application.
    pub client_secret: String,
    /// Client id of the front-end application: `azp` of user tokens.
    pub app_client_id: String,
    /// Scopes granted to the machine-to-machine application; empty means all scopes.
    pub scopes: Vec<String>,
    /// Event types that webhooks can subscribe to; empty means all documented types.
    pub event_types: Vec<String>,
    /// Organization that every user joins on sign-up.
    pub org_code: String,
    /// Custom domains, recognized by the `Host` of a request: `localhost`, `auth.example.test:8443` or
    /// `https://auth.example.com`. Their tokens have this issuer; they have no Management API.
    pub custom_domains: Vec<String>,
    /// Lifetimes and optional claims of tokens.
    pub tokens: Tokens,
    /// When failed deliveries are retried.
    pub retry: Retry,
    /// How deliveries are sent.
    pub delivery: DeliverySettings,
    /// Behaviour that Kinde does not document.
    pub unknowns: Unknowns,
    /// Generated users, which are not stored.
    pub generated: Generated,
    /// Rate limits of the Management API.
    pub limits: Limits,
    /// Applications that users sign in to. Unless it is listed here, an application `app_client_id` without a
    /// secret exists with the redirect URI `http://localhost:3000/callback`.
    pub applications: Vec<Application>,
    /// Webhook endpoints that exist from the start.
    pub webhooks: Vec<WebhookSpec>,
    /// Faults that are active from the start.
    pub faults: Vec<Fault>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            seed: 1,
            time_scale: 1.0,
            client_id: "d4d3c5b74e064badb9625a4aa6241bcc".to_owned(),
            client_secret: "emulator-secret".to_owned(),
            app_client_id: "dee7f3c57b3c47e8b96edde2c7ecab7d".to_owned(),
            scopes: Vec::new(),
            event_types: Vec::new(),
            org_code: "org_590d7f1a86a".to_owned(),
            custom_domains: Vec::new(),
            tokens: Tokens::default(),
            retry: Retry::default(),
            delivery: DeliverySettings::default(),
            unknowns: Unknowns::default(),
            generated: Generated::default(),
            limits: Limits::default(),
            applications: Vec::new(),
            webhooks: Vec::new(),
            faults: Vec::new(),
        }
    }
}

impl Config {
    /// Returns the applications at the start.
    pub(crate) fn applications(&self) -> Vec<Application> {
        let mut applications = self.applications.clone();
        if !applications.iter().any(|application| application.client_id == self.app_client_id) {
            applications.push(Application {
                logout_redirect_uris: vec!["http://localhost:3000".to_owned()],
                ..Application::public(&self.app_client_id, "http://localhost:3000/callback")
            });
        }
        applications
    }
}

/// Lifetimes, by default those of Kinde, and claims that an application must opt into.
///
/// Source: <https://docs.kinde.com/build/tokens/configure-tokens/>.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// Lifetime of access and M2M tokens.
    #[serde(with = "span::one")]
    pub access_lifetime: Duration,
    /// Lifetime of ID tokens.
    #[serde(with = "span::one")]
    pub id_lifetime: Duration,
    /// Lifetime of refresh tokens.
    #[serde(with = "span::one")]
    pub refresh_lifetime: Duration,
    /// Time during which a used refresh token can be used again. Kinde has "a small overlap". Not scaled.
    #[serde(with = "span::one")]
    pub refresh_overlap: Duration,
    /// Lifetime of an authorization code. Kinde's value is not documented. Not scaled.
    #[serde(with = "span::one")]
    pub code_lifetime: Duration,
    /// `aud` of user access tokens that request no API; empty by default, as at Kinde.
    pub audience: Vec<String>,
    /// Whether access tokens carry `email`. They do not by default, as at Kinde.
    pub email_in_access_token: bool,
    /// Whether access tokens carry `roles`. They do not by default, as at Kinde.
    pub roles_in_access_token: bool,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            access_lifetime: 24 * HOUR,
            id_lifetime: HOUR,
            refresh_lifetime: 15 * 24 * HOUR,
            refresh_overlap: 10 * SECOND,
            code_lifetime: MINUTE,
            audience: Vec::new(),
            email_in_access_token: false,
            roles_in_access_token: false,
        }
    }
}

/// The retry schedule. The default is that of Kinde: at once, 5 s, 30 s, 2 min, 10 min, 1 h, 4 h, then every
/// 12 h until 36 h.
///
/// Source: <https://docs.kinde.com/integrate/webhooks/about-webhooks/>.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Delays before the second, third, … attempt.
    #[serde(with = "span::many")]
    pub delays: Vec<Duration>,
    /// Delay before every later attempt; zero means no more attempts.
    #[serde(with = "span::one")]
    pub then_every: Duration,
    /// Time after the first attempt at which attempts end.
    #[serde(with = "span::one")]
    pub until: Duration,
    /// Fraction by which each delay is extended at most, at random.
    pub jitter: f64,
    /// Time after which an endpoint without a success is disabled.
    #[serde(with = "span::one")]
    pub disable_after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            delays: vec![5 * SECOND, 30 * SECOND, 2 * MINUTE, 10 * MINUTE, HOUR, 4 * HOUR],
            then_every: 12 * HOUR,
            until: 36 * HOUR,
            jitter: 0.05,
            disable_after: 72 * HOUR,
        }
    }
}

impl Retry {
    /// The delay before each attempt after the first, unscaled and without jitter.
    #[must_use]
    pub fn schedule(&self) -> Vec<Duration> {
        let mut delays = self.delays.clone();
        let mut total: Duration = delays.iter().sum();
        while !self.then_every.is_zero() && total + self.then_every <= self.until {
            delays.push(self.then_every);
            total += self.then_every;
        }
        delays
    }
}

/// How deliveries are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliverySettings {
    /// Timeout of an attempt. Kinde's value is not documented. Not scaled.
    #[serde(with = "span::one")]
    pub timeout: Duration,
    /// Concurrent attempts per endpoint; 1 sends in order.
    pub max_in_flight: usize,
    /// Number of delivery records and events that are kept.
    pub log: usize,
}

impl Default for DeliverySettings {
    fn default() -> Self {
        Self { timeout: 10 * SECOND, max_in_flight: 16, log: 10_000 }
    }
}

/// A large tenant. User `k` is generated from these settings and `k` at each access and uses no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Generated {
    /// Number of users.
    pub users: u64,
    /// Seed of ids, names, emails and roles of members.
    pub seed: u64,
    /// Number of organizations, `org_code` included.
    pub organizations: u64,
    /// Organizations of each user, `org_code` included. The members of all others are as many, or differ by one.
    pub memberships_per_user: u64,
    /// Number of roles, each with five permissions. A member has none, one or two of them.
    pub roles: u64,
}

impl Default for Generated {
    fn default() -> Self {
        Self { users: 0, seed: 1, organizations: 1, memberships_per_user: 1, roles: 0 }
    }
}

/// Rate limits of the Management API. Kinde has both and publishes no numbers. Zero means no limit.
///
/// Source: <https://docs.kinde.com/developer-tools/kinde-api/api-rate-limits/>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests per window.
    pub requests: u32,
    /// Length of a window. Not scaled.
    #[serde(with = "span::one")]
    pub window: Duration,
    /// Concurrent requests.
    pub concurrency: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 0, window: MINUTE, concurrency: 0 }
    }
}

/// Behaviour that Kinde does not document. Tests can use each value to check that a consumer accepts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent settings, each read in one place")]
pub struct Unknowns {
    /// Whether each attempt has its own signature and the time of the attempt as `timestamp`.
    pub timestamp_changes_between_attempts: bool,
    /// Whether the payload has `event_timestamp` in addition to `timestamp` (observed since 2026).
    pub event_timestamp: bool,
    /// Format of offsets in webhook payloads.
    pub offset: Offset,
    /// Precision of webhook timestamps. Coarse timestamps of different events may be equal.
    pub precision: Precision,
    /// Value of `email` in the payload of a user without an email.
    pub missing_email: Missing,
    /// Status of the response for an unknown user: 400, the only one in the `OpenAPI` document, or 404.
    pub unknown_user_status: u16,
    /// Error code of this response.
    pub unknown_user_code: String,
    /// Whether deleted users with a kept profile are listed.
    pub list_includes_deleted: bool,
    /// Largest `page_size` of `GET /api/v1/users`.
    pub page_size_cap: usize,
    /// Pagination of the user list.
    pub pagination: Pagination,
    /// Value of absent text fields in the Management API, including `next_token` on the last page.
    pub missing_in_api: Missing,
    /// Event types of a sign-up, in this order.
    pub sign_up_events: Vec<String>,
    /// Whether the profile endpoint rejects the tokens of a suspended user immediately.
    pub suspension_revokes_tokens: bool,
    /// Whether the permissions of a member, in events and in the API, include those of the member's roles.
    pub user_permissions: UserPermissions,
    /// Whether the removal of a user from an organization sends `user.updated`.
    pub leaving_sends_user_updated: bool,
    /// Whether a refresh returns the valid access token, or a new one with its claims, although the user has changed.
    pub refresh_returns_cached_claims: bool,
}

impl Default for Unknowns {
    fn default() -> Self {
        Self {
            timestamp_changes_between_attempts: false,
            event_timestamp: true,
            offset: Offset::Sydney,
            precision: Precision::Micros,
            missing_email: Missing::Null,
            unknown_user_status: 400,
            unknown_user_code: "USER_INVALID".to_owned(),
            list_includes_deleted: false,
            page_size_cap: 500,
            pagination: Pagination::Cursor,
            missing_in_api: Missing::Null,
            sign_up_events: vec!["user.created".to_owned(), "user.authenticated".to_owned()],
            suspension_revokes_tokens: false,
            user_permissions: UserPermissions::Direct,
            leaving_sends_user_updated: true,
            refresh_returns_cached_claims: false,
        }
    }
}

/// The content of a member's list of permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserPermissions {
    /// The permissions that were assigned to the member.
    Direct,
    /// These and the permissions of the member's roles.
    Effective,
}

/// The pagination of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pagination {
    /// A page starts after the last user of the page before. No user is skipped or repeated.
    Cursor,
    /// A page starts after a number of users. When a user is removed between two pages, another one is skipped.
    Offset,
}

/// The format of a timestamp's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Offset {
    /// `Z`, as in the example of the documentation in 2026.
    #[serde(rename = "Z")]
    Utc,
    /// `+10:00`, as in every captured delivery.
    #[serde(rename = "+10:00")]
    Sydney,
    /// `+10`, which some endpoints send and RFC 3339 does not allow.
    #[serde(rename = "+10")]
    Short,
}

/// The precision of a timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Whole seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds, as in captured deliveries.
    Micros,
}

/// The representation of an absent value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// `null`.
    Null,
    /// `""`.
    Empty,
    /// The key is omitted.
    Absent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_schedule_is_that_of_kinde() {
        let hours: Vec<f64> = Retry::default().schedule().iter().map(|w| w.as_secs_f64() / 3600.0).collect();
        assert_eq!(hours.len(), 8, "{hours:?}");
        assert_eq!(hours[5..], [4.0, 12.0, 12.0]);
    }

    #[test]
    fn the_readme_shows_the_defaults() {
        let readme = include_str!("../README.md");
        let (_, rest) = readme.split_once("```toml\n").unwrap();
        let (settings, _) = rest.split_once("```").unwrap();
        assert_eq!(toml::from_str::<Config>(settings).unwrap(), Config::default());
        let with_examples: String =
            settings.lines().map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned() + "\n").collect();
        let config = toml::from_str::<Config>(&with_examples).unwrap();
        assert_eq!((config.webhooks.len(), config.faults.len()), (1, 1));
    }

    #[test]
    fn settings_round_trip_through_toml_and_reject_unknown_keys() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        assert!(toml::from_str::<Config>("prot = 1").is_err());
        let config: Config =
            toml::from_str("[retry]\ndelays = [\"1s\", \"2m\"]\n[unknowns]\noffset = \"+10\"").unwrap();
        assert_eq!(config.retry.delays, [SECOND, 2 * MINUTE]);
        assert_eq!(config.unknowns.offset, Offset::Short);
    }
}
