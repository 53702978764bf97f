//! Signing keys, issuers and audiences of access tokens.

use std::collections::BTreeSet;

use kinde::{
    Jwks, RequestTiming,
    discovery::{self, Discovery},
    domain::issuer_of,
    jwks,
};
use kinsync_tower::problem::chain;
use url::Url;

use super::{AUDIENCE, Finding, ISSUERS, KEYS, some};
use crate::config::Config;

/// The trusted issuers and the tenant.
fn domains(config: &Config) -> BTreeSet<Url> {
    config.kinde.issuers.iter().chain(&config.kinde.domain).cloned().collect()
}

fn setting_of(config: &Config, url: &Url) -> &'static str {
    if config.kinde.domain.as_ref() == Some(url) { "KINDE_DOMAIN" } else { "KINDE_ISSUERS" }
}

/// The keys of each domain.
pub(super) type KeySets = Vec<(Url, Result<Jwks, String>)>;

pub(super) async fn fetch_key_sets(config: &Config) -> KeySets {
    let fetches = domains(config).into_iter().map(async |url| {
        let fetched = fetch_keys(&url).await;
        (url, fetched)
    });
    futures_util::future::join_all(fetches).await
}

pub(super) fn keys(config: &Config, key_sets: &KeySets) -> Finding {
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
pub(super) type Discovered = Vec<(Url, Result<(Discovery, RequestTiming), discovery::Error>)>;

pub(super) async fn discover(config: &Config) -> Discovered {
    let requests = domains(config).into_iter().map(async |url| {
        let answer = discovery::discover(discovery::Config::new(url.clone())).await;
        (url, answer.map(|answer| (answer.value, answer.timing)))
    });
    futures_util::future::join_all(requests).await
}

/// Compares each trusted issuer with its discovery document. `KINDE_DOMAIN` is one only when `KINDE_ISSUERS` is not set.
pub(super) fn issuers(config: &Config, discovered: &Discovered, key_sets: &KeySets) -> Finding {
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
        let answer = discovered.iter().find(|(known, _)| known == url).map(|(_, answer)| answer);
        let issuer = match answer {
            Some(Ok((document, _))) => document.issuer.clone(),
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
    if let Some((trusted, named)) = wrong {
        return Finding::failed(
            ISSUERS,
            format!(
                "the discovery document of {trusted} names the issuer {named}, so its tokens are rejected"
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
pub(super) fn audience(config: &Config) -> Finding {
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
