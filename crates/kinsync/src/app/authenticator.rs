//! The authenticator of this app: keys and profiles of each issuer.

use std::sync::Arc;

use kinde::{
    Jwks,
    account::{self, ProfileClient},
    bearer::{self, CachingConfig, CachingVerifier, Verifier},
    domain::issuer_of,
    jwks,
};
use kinsync_engine::Engine;
use kinsync_tower::authenticator::{self, Authenticator, Sources};
use url::Url;

use super::Error;
use crate::config::Config;

/// The keys of each issuer of tokens. The tenant's own are fetched once, for webhooks and tokens alike.
pub(super) fn key_sets(config: &Config, tenant: Option<&Jwks>) -> Result<Vec<Jwks>, Error> {
    config.kinde.trusted_issuers().map(|url| keys(url, tenant)).collect()
}

/// `None` without an issuer: no token could be verified.
pub(super) fn start(
    config: &Config,
    key_sets: &[Jwks],
    tenant: Option<&Jwks>,
    engine: &Engine,
) -> Result<Option<Authenticator>, Error> {
    if key_sets.is_empty() {
        return Ok(None);
    }
    let issuers = key_sets.iter().map(|keys| (keys.issuer().to_owned(), keys.clone())).collect();
    let profiles = config.kinde.trusted_issuers().map(|url| Ok((issuer_of(url), profile_client(url)?)));
    let profiles = profiles.collect::<Result<_, Error>>()?;
    // One tenant per deployment: without a domain it is that of the first issuer.
    let tenant = tenant.or(key_sets.first()).cloned();
    let audiences = config.kinde.audience.clone();
    let client_ids = config.kinde.allowed_client_ids.clone();
    let verifier =
        Verifier::new(bearer::Config { issuers, tenant, audiences, client_ids, ..bearer::Config::default() });
    // One bound for both: a user that makes requests has one token, and a new one only after an hour or a day.
    let cached_users = config.http.cached_users;
    let tokens =
        CachingVerifier::new(verifier, &CachingConfig { entries: cached_users, ..CachingConfig::default() });
    let sources = Sources { tokens, profiles, claims: Arc::new(authenticator::claims::Email) };
    let refused_users = config.store.refused_users;
    let unknown_roles = config.http.unknown_roles;
    let settings = authenticator::Config {
        cached_users,
        refused_users,
        unknown_roles,
        ..authenticator::Config::default()
    };
    let authenticator = Authenticator::start(engine, sources, settings);
    Ok(Some(match &config.http.token_cookie {
        Some(cookie) => authenticator.with_token_cookie(cookie.as_str()),
        None => authenticator,
    }))
}

fn keys(url: &Url, tenant: Option<&Jwks>) -> Result<Jwks, Error> {
    match tenant.filter(|tenant| tenant.issuer() == issuer_of(url)) {
        Some(tenant) => Ok(tenant.clone()),
        None => Jwks::new(jwks::Config::new(url.clone())).map_err(|error| Error::Jwks(Arc::new(error))),
    }
}

fn profile_client(url: &Url) -> Result<ProfileClient, Error> {
    ProfileClient::new(account::Config::new(url.clone())).map_err(|error| Error::Issuer(Arc::new(error)))
}
