//! The login of this app: keys and profiles of each issuer.

use std::sync::Arc;

use kinde::{
    Jwks,
    account::{self, ProfileClient},
    bearer::{self, Cached, CachedConfig, Verifier},
    domain::issuer_of,
    jwks,
};
use kinsync_engine::{clock::Clock, queue::Queue, store::Store};
use kinsync_tower::login::{self, Login, Work};
use url::Url;

use super::Error;
use crate::config::Config;

/// `None` without an issuer: nobody could be verified.
pub(super) fn open(
    config: &Config,
    tenant: Option<&Jwks>,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    clock: Clock,
) -> Result<Option<(Login, Work)>, Error> {
    let mut issuers = Vec::new();
    let mut profiles = Vec::new();
    for url in config.kinde.trusted_issuers() {
        let issuer = issuer_of(url);
        issuers.push((issuer.clone(), keys(url, &issuer, tenant)?));
        profiles.push((issuer, profile_client(url)?));
    }
    if issuers.is_empty() {
        return Ok(None);
    }
    let audiences = config.kinde.audience.clone();
    let verifier = Verifier::new(bearer::Config { issuers, audiences, ..bearer::Config::default() });
    // One bound for both: a user who makes requests has one token, and a new one only after an hour or a day.
    let cached_users = config.http.cached_users;
    let tokens = Cached::new(verifier, &CachedConfig { entries: cached_users, ..CachedConfig::default() });
    let claims = Arc::new(login::claims::Email);
    let parts = login::Parts { tokens, store, queue, clock, profiles, claims };
    Ok(Some(Login::new(parts, login::Config { cached_users, ..login::Config::default() })))
}

/// The tenant's own keys are fetched once, for webhooks and tokens alike.
fn keys(url: &Url, issuer: &str, tenant: Option<&Jwks>) -> Result<Jwks, Error> {
    match tenant.filter(|tenant| tenant.issuer() == issuer) {
        Some(tenant) => Ok(tenant.clone()),
        None => Jwks::new(jwks::Config::new(url.clone())).map_err(|error| Error::Jwks(Arc::new(error))),
    }
}

fn profile_client(url: &Url) -> Result<ProfileClient, Error> {
    ProfileClient::new(account::Config::new(url.clone())).map_err(|error| Error::Issuer(Arc::new(error)))
}
