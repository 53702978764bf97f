//! Settings of the emulator: every field has a default, and what is not known of Kinde is a switch here.
//!
//! Not responsible for reading files or the environment: the binary does that.

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

/// Everything that can be set. Durations are written as `"250ms"`, `"5s"`, `"2m"` or `"12h"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address to listen on. The control API has no password: keep it on loopback.
    pub bind: IpAddr,
    /// Port to listen on; 0 lets the system choose.
    pub port: u16,
    /// Seed of ids, jitter and faults with a chance.
    pub seed: u64,
    /// How many times faster than real the retry schedule and the auto-disable run.
    pub time_scale: f64,
    /// Client id of the machine-to-machine application.
    pub client_id: String,
    /// Client secret of the machine-to-machine application.
    pub client_secret: String,
    /// Client id of the front-end application: `azp` of user tokens.
    pub app_client_id: String,
    /// Scopes granted to the machine-to-machine application; empty means every scope there is.
    pub scopes: Vec<String>,
    /// Types of events that the tenant offers to webhooks; empty means all that Kinde documents.
    pub event_types: Vec<String>,
    /// Organization that every user joins on sign-up.
    pub org_code: String,
    /// Domains beside the emulator's own, told by the `Host` of a request: `localhost`, `auth.example.test:8443`
    /// or `https://auth.example.com`. Their tokens carry that issuer; they have no Management API.
    pub custom_domains: Vec<String>,
    /// Lifetimes and optional claims of tokens.
    pub tokens: Tokens,
    /// When a failed delivery is tried again.
    pub retry: Retry,
    /// How deliveries are sent.
    pub delivery: DeliverySettings,
    /// What is not known of Kinde.
    pub unknowns: Unknowns,
    /// Users that are computed and not kept.
    pub generated: Generated,
    /// The limiters of the Management API.
    pub limits: Limits,
    /// Applications that users sign in to. One without a secret and with the id `app_client_id` is always
    /// there, for `http://localhost:3000/callback`, unless it is listed here.
    pub applications: Vec<Application>,
    /// Webhook endpoints that exist from the start.
    pub webhooks: Vec<WebhookSpec>,
    /// Faults that are on from the start.
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
    /// The applications that are there at the start.
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

/// Lifetimes as Kinde's defaults, and claims that an application must opt into.
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
    /// How long a refresh token that was used can be used again. Kinde has "a small overlap". Not scaled.
    #[serde(with = "span::one")]
    pub refresh_overlap: Duration,
    /// How long a code can be redeemed. Kinde's own value is not known. Not scaled.
    #[serde(with = "span::one")]
    pub code_lifetime: Duration,
    /// `aud` of user access tokens; empty unless a registered API is asked for.
    pub audience: Vec<String>,
    /// Whether access tokens carry `email`; Kinde leaves it out by default.
    pub email_in_access_token: bool,
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
        }
    }
}

/// The retry schedule; the default is Kinde's: at once, 5 s, 30 s, 2 min, 10 min, 1 h, 4 h, then every
/// 12 h until 36 h.
///
/// Source: <https://docs.kinde.com/integrate/webhooks/about-webhooks/>.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Waits before the second, third, … attempt.
    #[serde(with = "span::many")]
    pub delays: Vec<Duration>,
    /// Wait before every attempt after those; zero means no more attempts.
    #[serde(with = "span::one")]
    pub then_every: Duration,
    /// No attempt is made later than this after the first.
    #[serde(with = "span::one")]
    pub until: Duration,
    /// Each wait is lengthened by up to this fraction.
    pub jitter: f64,
    /// An endpoint that fails for this long without one success is disabled.
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
    /// The wait before each attempt after the first, unscaled and without jitter.
    #[must_use]
    pub fn waits(&self) -> Vec<Duration> {
        let mut waits = self.delays.clone();
        let mut total: Duration = waits.iter().sum();
        while !self.then_every.is_zero() && total + self.then_every <= self.until {
            waits.push(self.then_every);
            total += self.then_every;
        }
        waits
    }
}

/// How deliveries are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliverySettings {
    /// An attempt without an answer after this long has failed. Kinde's own value is not known. Not scaled.
    #[serde(with = "span::one")]
    pub timeout: Duration,
    /// Attempts at one time per endpoint; 1 sends in order.
    pub max_in_flight: usize,
    /// How many delivery records and events are kept for inspection.
    pub log: usize,
}

impl Default for DeliverySettings {
    fn default() -> Self {
        Self { timeout: 10 * SECOND, max_in_flight: 16, log: 10_000 }
    }
}

/// A large tenant at no cost: user `k` is computed from the seed and `k` whenever it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Generated {
    /// How many.
    pub users: u64,
    /// Another seed makes other ids, names and emails.
    pub seed: u64,
}

impl Default for Generated {
    fn default() -> Self {
        Self { users: 0, seed: 1 }
    }
}

/// The limiters of the Management API; Kinde has both and publishes no numbers. Zero is no limit.
///
/// Source: <https://docs.kinde.com/developer-tools/kinde-api/api-rate-limits/>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests in one window.
    pub requests: u32,
    /// How long a window is. Not scaled.
    #[serde(with = "span::one")]
    pub window: Duration,
    /// Requests at one time.
    pub concurrency: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 0, window: MINUTE, concurrency: 0 }
    }
}

/// What Kinde does not document: set both ways to see whether a consumer cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches, each read in one place")]
pub struct Unknowns {
    /// Whether each attempt is signed anew with the time of the attempt.
    pub timestamp_changes_between_attempts: bool,
    /// Whether the payload has `event_timestamp` beside `timestamp` (seen since 2026).
    pub event_timestamp: bool,
    /// How offsets are written in webhook payloads.
    pub offset: Offset,
    /// How fine webhook timestamps are; coarse ones collide.
    pub precision: Precision,
    /// What `email` is in the payload of a user without one.
    pub missing_email: Missing,
    /// Status of the answer for a user that does not exist: 400, the only one in the `OpenAPI` document, or 404.
    pub unknown_user_status: u16,
    /// The code of that answer.
    pub unknown_user_code: String,
    /// Whether users deleted with their profile kept are listed.
    pub list_includes_deleted: bool,
    /// Largest `page_size` of `GET /api/v1/users`.
    pub page_size_cap: usize,
    /// How the pages of users follow each other.
    pub pagination: Pagination,
    /// What the Management API writes for a text that is not there, `next_token` at the end included.
    pub missing_in_api: Missing,
    /// What a sign-up emits, in this order.
    pub sign_up_events: Vec<String>,
    /// Whether the tokens of a suspended user stop working at the profile endpoint at once.
    pub suspension_revokes_tokens: bool,
    /// Whether a refresh returns the access token that is still good, or one with the same claims, though the
    /// user has changed.
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
            refresh_returns_cached_claims: false,
        }
    }
}

/// How the pages of a list follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pagination {
    /// After the last user of the page before: nobody is missed or shown twice.
    Cursor,
    /// After so many users: one who is removed meanwhile hides another from the list.
    Offset,
}

/// How the offset of a timestamp is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Offset {
    /// `Z`, as in the documentation's example of 2026.
    #[serde(rename = "Z")]
    Utc,
    /// `+10:00`, as in every captured delivery.
    #[serde(rename = "+10:00")]
    Sydney,
    /// `+10`, which some endpoints emit and RFC 3339 forbids.
    #[serde(rename = "+10")]
    Short,
}

/// How fine a timestamp is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Whole seconds.
    Seconds,
    /// Three digits.
    Millis,
    /// Six digits, as captured.
    Micros,
}

/// How a value that is not there is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// `null`.
    Null,
    /// `""`.
    Empty,
    /// The key is left out.
    Absent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_schedule_is_kindes() {
        let hours: Vec<f64> = Retry::default().waits().iter().map(|w| w.as_secs_f64() / 3600.0).collect();
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
    fn a_config_survives_toml_and_refuses_unknown_keys() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        assert!(toml::from_str::<Config>("prot = 1").is_err());
        let config: Config =
            toml::from_str("[retry]\ndelays = [\"1s\", \"2m\"]\n[unknowns]\noffset = \"+10\"").unwrap();
        assert_eq!(config.retry.delays, [SECOND, 2 * MINUTE]);
        assert_eq!(config.unknowns.offset, Offset::Short);
    }
}
