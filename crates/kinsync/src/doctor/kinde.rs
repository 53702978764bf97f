//! Kinde: clock, signing keys, issuers, credentials, scopes, the webhook and the event types.

use std::{collections::BTreeSet, time::Duration};

use kinde::{
    Jwks, RequestTiming, bearer,
    discovery::{self, Discovery},
    domain::issuer_of,
    event, jwks,
    management::{self, Client, Error, EventType, Webhook},
};
use kinsync_tower::problem::chain;
use url::Url;

use super::{Finding, schema, some};
use crate::{
    app::management::settings,
    config::Config,
    registration::{self, REQUIRED, Registration, may_be_ours},
};

const CLOCK: &str = "kinde.clock";
const KEYS: &str = "kinde.keys";
const ISSUERS: &str = "kinde.issuers";
const AUDIENCE: &str = "kinde.audience";
const CREDENTIALS: &str = "kinde.credentials";
const SCOPES: &str = "kinde.scopes";
const WEBHOOK: &str = "kinde.webhook";
const EVENT_TYPES: &str = "kinde.event_types";

pub(super) const IDS: [&str; 8] = [CLOCK, KEYS, ISSUERS, AUDIENCE, CREDENTIALS, SCOPES, WEBHOOK, EVENT_TYPES];

/// A larger difference of the clocks is a warning, in seconds. A measurement is accurate to about a second.
const NOTABLE_SKEW: f64 = 5.0;
/// The scopes that are checked, with one request each.
const CHECKED_SCOPES: [&str; 4] = ["read:users", "read:webhooks", "read:event_types", "read:events"];
/// The id of no event: only the permission to read events matters.
const NO_EVENT: &str = "event_00000000000000000000000000000000";

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let (key_sets, discovered, api) =
        tokio::join!(fetch_key_sets(config), discover(config), call_api(config));
    vec![
        clock(config, &discovered, &api),
        keys(config, &key_sets),
        issuers(config, &discovered, &key_sets),
        audience(config),
        credentials(config, &api),
        scopes(&api),
        webhook(config, &api),
        event_types(&api),
    ]
}

/// The trusted issuers and the tenant.
fn domains(config: &Config) -> BTreeSet<Url> {
    config.kinde.issuers.iter().chain(&config.kinde.domain).cloned().collect()
}

fn setting_of(config: &Config, url: &Url) -> &'static str {
    if config.kinde.domain.as_ref() == Some(url) { "KINDE_DOMAIN" } else { "KINDE_ISSUERS" }
}

/// The keys of each domain.
type KeySets = Vec<(Url, Result<Jwks, String>)>;

async fn fetch_key_sets(config: &Config) -> KeySets {
    let fetches = domains(config).into_iter().map(async |url| {
        let fetched = fetch_keys(&url).await;
        (url, fetched)
    });
    futures_util::future::join_all(fetches).await
}

fn keys(config: &Config, key_sets: &KeySets) -> Finding {
    let (mut count, mut problems, mut names) = (0, Vec::new(), BTreeSet::new());
    if key_sets.is_empty() {
        return Finding::skipped(
            KEYS,
            "no tenant is configured",
            "set KINDE_DOMAIN if Kinde delivers webhooks or issues tokens",
        );
    }
    for (url, fetched) in key_sets {
        match fetched {
            Ok(keys) => count += keys.status().key_count,
            Err(why) => {
                problems.push(format!("{}: {why}", issuer_of(url)));
                names.insert(setting_of(config, url));
            }
        }
    }
    if problems.is_empty() {
        return Finding::ok(KEYS, format!("{count} RS256 keys of {} issuers", key_sets.len()));
    }
    let names: Vec<_> = names.into_iter().collect();
    Finding::failed(
        KEYS,
        format!(
            "cannot be fetched, so nothing that these issuers sign can be verified: {}",
            problems.join("; ")
        ),
        format!(
            "check {}, and that this machine can reach /.well-known/jwks.json there",
            names.join(" and ")
        ),
    )
}

async fn fetch_keys(url: &Url) -> Result<Jwks, String> {
    let keys = Jwks::new(jwks::Config::new(url.clone())).map_err(|error| chain(&error))?;
    let fetched = keys.refresh().await;
    fetched.map_err(|error| keys.status().last_error.unwrap_or_else(|| error.to_string()))?;
    Ok(keys)
}

/// Returns the first trusted issuer of another tenant: it has no key in common with the tenant, which is `KINDE_DOMAIN` or
/// the first issuer.
fn foreign_issuer<'a>(config: &'a Config, key_sets: &KeySets) -> Option<&'a Url> {
    let of =
        |url: &Url| key_sets.iter().find(|(known, _)| known == url).and_then(|(_, keys)| keys.as_ref().ok());
    let tenant = config.kinde.domain.as_ref().or_else(|| config.kinde.trusted_issuers().next())?;
    let tenant = of(tenant)?;
    config
        .kinde
        .trusted_issuers()
        .find(|url| of(url).is_some_and(|keys| keys.shares_key_with(tenant) == Some(false)))
}

/// The discovery document of each domain.
type Discovered = Vec<(Url, Result<(Discovery, RequestTiming), discovery::Error>)>;

async fn discover(config: &Config) -> Discovered {
    let requests = domains(config).into_iter().map(async |url| {
        let answer = discovery::discover(discovery::Config::new(url.clone())).await;
        (url, answer.map(|answer| (answer.value, answer.timing)))
    });
    futures_util::future::join_all(requests).await
}

/// Compares each trusted issuer with its discovery document. `KINDE_DOMAIN` is one only when `KINDE_ISSUERS` is not set.
fn issuers(config: &Config, discovered: &Discovered, key_sets: &KeySets) -> Finding {
    if let Some(foreign) = foreign_issuer(config, key_sets) {
        return Finding::failed(
            ISSUERS,
            format!(
                "{} shares no signing key with the tenant, so it belongs to another tenant and its tokens are refused",
                issuer_of(foreign)
            ),
            "remove it from KINDE_ISSUERS, and run one kinsync for each tenant",
        );
    }
    let (mut wrong, mut unread, mut right) = (None, Vec::new(), Vec::new());
    for url in config.kinde.trusted_issuers() {
        let trusted = issuer_of(url);
        let said = discovered.iter().find(|(known, _)| known == url).map(|(_, answer)| answer);
        let issuer = match said {
            Some(Ok((said, _))) => said.issuer.clone(),
            Some(Err(error)) => {
                unread.push(format!("{trusted}: {}", chain(error)));
                trusted.clone()
            }
            None => trusted.clone(),
        };
        if issuer != trusted {
            wrong.get_or_insert((trusted, issuer.clone()));
        }
        if !right.contains(&issuer) {
            right.push(issuer);
        }
    }
    if right.is_empty() {
        return Finding::skipped(
            ISSUERS,
            "no tenant is configured",
            "set KINDE_DOMAIN to accept access tokens",
        );
    }
    if let Some((trusted, said)) = wrong {
        return Finding::failed(
            ISSUERS,
            format!(
                "the discovery document of {trusted} names the issuer {said}, so its tokens are rejected"
            ),
            format!("set KINDE_ISSUERS to {}, if that is your tenant", right.join(",")),
        );
    }
    if unread.is_empty() {
        return Finding::ok(ISSUERS, some(&right));
    }
    let fix = "see kinde.keys; tokens are verified as long as the keys can be fetched";
    Finding::skipped(ISSUERS, format!("cannot be compared: {}", unread.join("; ")), fix)
}

/// Kinde's access tokens have no audience unless the front end requests a registered API.
fn audience(config: &Config) -> Finding {
    let audience = &config.kinde.audience;
    if domains(config).is_empty() {
        return Finding::skipped(
            AUDIENCE,
            "no tenant is configured",
            "set KINDE_DOMAIN to accept access tokens",
        );
    }
    if audience.is_empty() && config.kinde.allowed_client_ids.is_empty() {
        return Finding::warning(
            AUDIENCE,
            "access tokens of every application of the tenant are accepted, for whichever API they were issued",
            "set KINDE_AUDIENCE to the audience of your API in Kinde (Settings > APIs), or KINDE_ALLOWED_CLIENT_IDS to your \
             applications",
        );
    }
    if audience.is_empty() {
        return Finding::ok(
            AUDIENCE,
            format!("any audience, of the applications {}", some(&config.kinde.allowed_client_ids)),
        );
    }
    let is_kindes_own = |one: &&String| {
        let of = |url: &Url| **one == issuer_of(url) || **one == format!("{}/api", issuer_of(url));
        domains(config).iter().any(of)
    };
    match audience.iter().find(is_kindes_own) {
        Some(own) => Finding::warning(
            AUDIENCE,
            format!("`{own}` is the audience of Kinde's own API, which no access token of a user has"),
            "set KINDE_AUDIENCE to the audience of your API in Kinde (Settings > APIs), or remove it",
        ),
        None => Finding::ok(AUDIENCE, some(audience)),
    }
}

/// The answers of the Management API.
enum ApiResult {
    /// Not requested: a setting is missing.
    Unset,
    /// Not requested: a setting is wrong.
    Unusable(management::ConfigError),
    Answered(Box<Answers>),
}

struct Answers {
    users: Result<Option<RequestTiming>, Error>,
    webhooks: Result<Vec<Webhook>, Error>,
    event_types: Result<Vec<EventType>, Error>,
    event: Result<(), Error>,
}

impl Answers {
    /// The errors, each with the scope that the request needs.
    fn errors(&self) -> impl Iterator<Item = (&'static str, &Error)> {
        let errors = [
            self.users.as_ref().err(),
            self.webhooks.as_ref().err(),
            self.event_types.as_ref().err(),
            self.event.as_ref().err(),
        ];
        CHECKED_SCOPES.into_iter().zip(errors).filter_map(|(scope, error)| Some((scope, error?)))
    }

    /// Why Kinde does not accept the credentials: no token, or a token that it rejects for every request.
    fn refusal(&self) -> Option<&Error> {
        let mut errors = self.errors().map(|(_, error)| error);
        let all_failed = self.errors().count() == CHECKED_SCOPES.len();
        errors.find(|error| match error {
            Error::TokenUnavailable(_) => true,
            Error::Unauthorized { .. } => all_failed,
            _ => false,
        })
    }
}

impl ApiResult {
    /// The answers, if Kinde accepts the credentials.
    fn answers(&self) -> Option<&Answers> {
        match self {
            Self::Answered(answers) if answers.refusal().is_none() => Some(answers),
            _ => None,
        }
    }
}

/// Makes one request for each scope, all with one token.
async fn call_api(config: &Config) -> ApiResult {
    let Some(mut settings) = settings(config) else { return ApiResult::Unset };
    settings.page_size = 1;
    settings.timeout = Duration::from_secs(8);
    settings.retry.max_attempts = 2;
    settings.retry.max_elapsed = Duration::from_secs(10);
    let client = match Client::new(settings) {
        Ok(client) => client,
        Err(error) => return ApiResult::Unusable(error),
    };
    let mut pages = client.users();
    let (users, webhooks, event_types, event) =
        tokio::join!(pages.next(), client.webhooks(), client.event_types(), client.event(NO_EVENT));
    ApiResult::Answered(Box::new(Answers {
        users: users.map(|page| page.map(|page| page.timing)),
        webhooks: webhooks.map(|answer| answer.value),
        event_types: event_types.map(|answer| answer.value),
        event: match event {
            // Kinde does not document its answer for an unknown event: either of these means that reading is permitted.
            Err(Error::UnexpectedStatus { status, .. }) if matches!(status.as_u16(), 400 | 404) => Ok(()),
            answer => answer.map(|_| ()),
        },
    }))
}

fn clock(config: &Config, discovered: &Discovered, api: &ApiResult) -> Finding {
    let of_api = || api.answers()?.users.as_ref().ok()?.as_ref()?.clock_skew();
    let of_tenant = || {
        let mut sent = discovered.iter().filter_map(|(.., answer)| Some(answer.as_ref().ok()?.1));
        sent.find_map(|sent| sent.clock_skew())
    };
    let Some(skew) = of_api().or_else(of_tenant).map(|skew| skew.as_secs_f64()) else {
        let fix = if config.kinde.domain.is_some() { "see kinde.keys" } else { "set KINDE_DOMAIN" };
        return Finding::skipped(CLOCK, "Kinde's time is not known", fix);
    };
    let leeway = bearer::Config::default().leeway.as_secs_f64();
    let (side, harm) = if skew > 0.0 {
        ("ahead of", "valid tokens are rejected")
    } else {
        ("behind", "expired tokens are accepted")
    };
    let found = format!("this machine's clock is {:.0} s {side} Kinde's", skew.abs());
    let fix = "synchronize the clock of this machine with NTP (`timedatectl set-ntp true`)";
    if skew.abs() > leeway {
        return Finding::failed(CLOCK, format!("{found}: {harm}"), fix);
    }
    if skew.abs() > NOTABLE_SKEW {
        return Finding::warning(CLOCK, found, fix);
    }
    Finding::ok(CLOCK, format!("within {:.0} s of Kinde's", skew.abs().ceil().max(1.0)))
}

fn credentials(config: &Config, api: &ApiResult) -> Finding {
    let application = "of a machine-to-machine application that is authorised for the Kinde Management API";
    match api {
        ApiResult::Unset if config.kinde.domain.is_none() => {
            let fix = "set KINDE_DOMAIN, KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET to compare users with Kinde";
            Finding::skipped(CREDENTIALS, "no tenant is configured", fix)
        }
        ApiResult::Unset => Finding::warning(
            CREDENTIALS,
            "none are configured, so lost deliveries cannot be repaired",
            format!("set KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET {application}"),
        ),
        ApiResult::Unusable(error) => Finding::failed(
            CREDENTIALS,
            chain(error),
            format!("set KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET {application}"),
        ),
        ApiResult::Answered(answers) => match answers.refusal() {
            Some(error) => Finding::failed(CREDENTIALS, chain(error), credentials_fix(error, application)),
            None => Finding::ok(CREDENTIALS, "Kinde issues a token"),
        },
    }
}

fn credentials_fix(error: &Error, application: &str) -> String {
    match error {
        Error::TokenUnavailable(source) if matches!(**source, Error::InvalidCredentials { .. }) => {
            format!(
                "set KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET to those {application}, and KINDE_DOMAIN to the \
                 kinde.com address of its environment"
            )
        }
        Error::TokenUnavailable(_) => "check KINDE_DOMAIN, and that this machine can reach it".to_owned(),
        _ => "set KINDE_DOMAIN to the kinde.com address: a custom domain does not serve the Management API and belongs into \
              KINDE_ISSUERS"
            .to_owned(),
    }
}

fn scopes(api: &ApiResult) -> Finding {
    let Some(answers) = api.answers() else { return Finding::needs(SCOPES, CREDENTIALS) };
    // A request that is rejected without a reason, while others succeed, lacks its scope too.
    let (lacking, others): (Vec<_>, Vec<_>) = answers
        .errors()
        .partition(|(_, error)| matches!(error, Error::MissingScope { .. } | Error::Unauthorized { .. }));
    let lacking: Vec<&str> = lacking.into_iter().map(|(scope, _)| scope).collect();
    if !lacking.is_empty() {
        let found = format!("the machine-to-machine application lacks {}", lacking.join(", "));
        let fix = format!(
            "grant {} in Kinde under Settings > APIs > Kinde Management API > the application",
            lacking.join(", ")
        );
        // A scan needs the users; the other scopes are for setup and diagnosis.
        return if lacking.contains(&"read:users") {
            Finding::failed(SCOPES, found, fix)
        } else {
            Finding::warning(SCOPES, found, fix)
        };
    }
    // A lasting error for the users comes first: it makes every scan fail.
    match others.first() {
        Some((scope, error)) => {
            let found = format!("the request that needs {scope} failed: {}", chain(*error));
            let fix = "try again in a moment; status.kinde.com shows outages of Kinde";
            if *scope == "read:users" && !error.is_transient() {
                Finding::failed(SCOPES, found, fix)
            } else {
                Finding::warning(SCOPES, found, fix)
            }
        }
        None => Finding::ok(SCOPES, CHECKED_SCOPES.join(", ")),
    }
}

fn webhook(config: &Config, api: &ApiResult) -> Finding {
    let Some(answers) = api.answers() else { return Finding::needs(WEBHOOK, CREDENTIALS) };
    let Ok(webhooks) = &answers.webhooks else { return Finding::needs(WEBHOOK, SCOPES) };
    let endpoints: Vec<&str> = webhooks.iter().filter_map(|webhook| webhook.endpoint.as_deref()).collect();
    if webhooks.is_empty() {
        let fix = "run `kinsync webhook setup --public-url https://<your server>`, which creates one";
        return Finding::failed(WEBHOOK, "none exists at Kinde, so Kinde delivers nothing", fix);
    }
    let Some(endpoint) = registration::endpoint(&config.http) else {
        let likely =
            webhooks.iter().find(|webhook| may_be_ours(webhook)).and_then(|one| one.endpoint.as_deref());
        let likely = likely.unwrap_or("https://<your server>/api/webhook").trim_end_matches("/api/webhook");
        let found =
            format!("the address of this server is not configured, and these exist: {}", some(&endpoints));
        return Finding::skipped(WEBHOOK, found, format!("set KINSYNC_PUBLIC_URL, for example {likely}"));
    };
    let offered = answers.event_types.as_deref().unwrap_or_default();
    let offered: Vec<String> = offered.iter().map(|kind| kind.code.clone()).collect();
    let registration = Registration::of(endpoint, webhooks.clone(), &offered);
    let endpoint = &registration.endpoint;
    let Some(ours) = &registration.ours else {
        return elsewhere(config, endpoint, &endpoints);
    };
    let has = |kind: &&str| ours.event_types.iter().any(|one| one == kind);
    let lacking: Vec<&str> = REQUIRED.into_iter().filter(|kind| !has(kind)).collect();
    if !lacking.is_empty() {
        let found = format!("the webhook for {endpoint} does not deliver {}", lacking.join(", "));
        return Finding::failed(WEBHOOK, found, "run `kinsync webhook setup`, which adds them");
    }
    if !registration.twins.is_empty() {
        let found = format!(
            "{} deliver to {endpoint}, so each event arrives more than once",
            registration.twins.len() + 1
        );
        return Finding::warning(WEBHOOK, found, "remove all but one in Kinde under Settings > Webhooks");
    }
    let found = format!(
        "delivers {} event types to {endpoint}; Kinde does not show whether it disabled the webhook, as it does after 72 h of \
         failures",
        ours.event_types.len()
    );
    Finding::ok(WEBHOOK, found)
}

/// No webhook has the configured address. One that reaches this server through a proxy must not be created twice.
fn elsewhere(config: &Config, endpoint: &Url, endpoints: &[&str]) -> Finding {
    let found = format!("none delivers to {endpoint}; these exist: {}", some(endpoints));
    let is_near = |text: &&&str| Url::parse(text).is_ok_and(|url| url.origin() == endpoint.origin());
    match endpoints.iter().find(is_near).filter(|_| config.http.webhook_url.is_none()) {
        Some(near) => Finding::warning(
            WEBHOOK,
            found,
            format!(
                "if a proxy forwards {near} to /api/webhook, set KINSYNC_WEBHOOK_URL to it; else run `kinsync webhook setup`, \
                 which creates one"
            ),
        ),
        None => Finding::failed(
            WEBHOOK,
            found,
            "if one of them reaches this server, set KINSYNC_WEBHOOK_URL to it, or correct KINSYNC_PUBLIC_URL; else run `kinsync \
             webhook setup`, which creates one",
        ),
    }
}

fn event_types(api: &ApiResult) -> Finding {
    let Some(answers) = api.answers() else { return Finding::needs(EVENT_TYPES, CREDENTIALS) };
    let Ok(types) = &answers.event_types else { return Finding::needs(EVENT_TYPES, SCOPES) };
    let offered: Vec<&str> = types.iter().map(|kind| kind.code.as_str()).collect();
    let missing: Vec<&str> = REQUIRED.into_iter().filter(|kind| !offered.contains(kind)).collect();
    if !missing.is_empty() {
        return Finding::failed(
            EVENT_TYPES,
            format!("Kinde has no {}, so these changes would not be delivered", missing.join(", ")),
            "check that KINDE_DOMAIN is the right environment, then contact Kinde's support",
        );
    }
    let unknown: Vec<&str> = offered.iter().filter(|kind| !event::is_known(kind)).copied().collect();
    let differences = schema::differences(types);
    if !differences.is_empty() {
        return Finding::warning(
            EVENT_TYPES,
            format!(
                "Kinde's event schemas differ from the fields that this version reads: {}",
                some(&differences)
            ),
            "check for a newer version of kinsync; until then scans find what events do not carry (`kinsync reconcile --dry-run`)",
        );
    }
    if unknown.is_empty() {
        return Finding::ok(EVENT_TYPES, format!("all {} are known", offered.len()));
    }
    Finding::warning(
        EVENT_TYPES,
        format!("Kinde has event types that this version does not know: {}", some(&unknown)),
        "check for a newer version of kinsync; until then these events are not subscribed to and change no user",
    )
}
