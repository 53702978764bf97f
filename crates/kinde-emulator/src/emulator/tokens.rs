//! The emulator's keys, and the tokens that they sign.

use std::sync::RwLockReadGuard;
use std::time::Duration;

use serde_json::Value;

use super::Emulator;
use crate::keys::{self, Key, Keyring, Overlap};
use crate::tenant;
use crate::tokens::{self, Claims, Issue, MintOptions, Signer, TokenSpec};
use crate::user::User;

/// Keys and tokens.
impl Emulator {
    /// The published keys.
    pub fn jwks(&self) -> Value {
        self.keys().jwks()
    }

    /// The `kid` of the key that signs.
    pub fn active_kid(&self) -> String {
        self.keys().active().kid.clone()
    }

    /// Makes a new signing key and returns its `kid`. Blocks for some 100 ms.
    pub fn rotate_keys(&self, overlap: Overlap) -> Result<String, keys::Error> {
        let key = Key::generate()?;
        let kid = key.kid.clone();
        self.shared.keys.write().expect("no holder of the keys panics").rotate(key, overlap);
        Ok(kid)
    }

    /// An access token as the user's application (`app_client_id`) would get it.
    pub fn access_token(&self, user_id: &str, spec: &TokenSpec) -> Result<String, tenant::Error> {
        let user = self.known_user(user_id)?;
        let tokens = &self.config().tokens;
        let issue = self.issue(self.issuer(), &self.config().app_client_id, spec, tokens.access_lifetime);
        let application = self.application(&self.config().app_client_id);
        let email = self.has_email_in_access_token(application.as_ref());
        let claims = issue.access(&user, spec, &tokens.audience, email);
        Ok(self.mint(&claims, &spec.sign))
    }

    /// An ID token of the user.
    pub fn id_token(&self, user_id: &str, spec: &TokenSpec) -> Result<String, tenant::Error> {
        let user = self.known_user(user_id)?;
        let issue =
            self.issue(self.issuer(), &self.config().app_client_id, spec, self.config().tokens.id_lifetime);
        Ok(self.mint(&issue.id(&user, spec), &spec.sign))
    }

    /// A machine-to-machine token, for the Management API unless `spec` names another audience.
    pub fn m2m_token(&self, spec: &TokenSpec) -> String {
        let config = self.config();
        let scopes =
            if config.scopes.is_empty() { crate::routes::all_scopes() } else { config.scopes.clone() };
        let issue = self.issue(self.issuer(), &config.client_id, spec, config.tokens.access_lifetime);
        self.mint(&issue.m2m(spec, &[self.api_audience()], &scopes), &spec.sign)
    }

    /// Any claims, signed in any way: for forged tokens and webhooks.
    pub fn mint(&self, claims: &Claims, options: &MintOptions) -> String {
        let active = self.keys().active();
        let signer = match options.signer {
            Signer::Tenant => &active,
            Signer::Foreign => self.foreign(),
        };
        tokens::forge(&Value::Object(claims.clone()), options, &active, signer)
    }

    /// The claims of a token of this emulator that has not expired.
    pub(crate) fn verify(&self, token: &str) -> Option<Claims> {
        tokens::verify(token, &self.keys(), jiff::Timestamp::now().as_second())
    }

    fn foreign(&self) -> &Key {
        let make = || Key::generate().expect("the crypto library made a key before");
        self.shared.foreign.get_or_init(make)
    }

    pub(super) fn issue<'a>(
        &self,
        issuer: &'a str,
        client_id: &'a str,
        spec: &TokenSpec,
        lifetime: Duration,
    ) -> Issue<'a> {
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        Issue {
            issuer,
            client_id,
            now: jiff::Timestamp::now().as_second(),
            expires_in: spec.expires_in.unwrap_or(lifetime),
            jti: self.tenant().clock.uuid(),
        }
    }

    fn known_user(&self, id: &str) -> Result<User, tenant::Error> {
        self.user(id).ok_or_else(|| tenant::Error::UnknownUser(id.to_owned()))
    }

    fn keys(&self) -> RwLockReadGuard<'_, Keyring> {
        self.shared.keys.read().expect("no holder of the keys panics")
    }
}
