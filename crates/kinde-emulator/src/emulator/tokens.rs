//! Signing keys and tokens of the emulator.

use std::sync::RwLockReadGuard;
use std::time::Duration;

use serde_json::{Value, json};

use super::Emulator;
use crate::config::{Application, UserPermissions};
use crate::keys::{self, Key, Keyring, Overlap};
use crate::tokens::{self, Access, Claims, Issue, MintOptions, Signer, TokenSpec};
use crate::user::User;
use crate::{clock, tenant};

/// Keys and tokens.
impl Emulator {
    /// The published keys as a JWKS.
    pub fn jwks(&self) -> Value {
        self.keys().jwks()
    }

    /// The `kid` of the signing key.
    pub fn active_kid(&self) -> String {
        self.keys().active().kid.clone()
    }

    /// Generates a new signing key and returns its `kid`. Blocks for about 100 ms.
    pub fn rotate_keys(&self, overlap: Overlap) -> Result<String, keys::Error> {
        let key = Key::generate()?;
        let kid = key.kid.clone();
        self.shared.keys.write().expect("no code that holds this lock panics").rotate(key, overlap);
        Ok(kid)
    }

    /// Returns an access token as the application `app_client_id` gets it.
    pub fn access_token(&self, user_id: &str, spec: &TokenSpec) -> Result<String, tenant::Error> {
        let user = self.known_user(user_id)?;
        if spec.org.as_ref().is_some_and(|code| user.membership(code).is_none()) {
            return Err(tenant::Error::NotAMember(user.id));
        }
        let tokens = &self.config().tokens;
        let issue = self.issue(self.issuer(), &self.config().app_client_id, spec, tokens.access_lifetime);
        let application = self.application(&self.config().app_client_id);
        let access = self.access_claims(&user, spec, application.as_ref());
        let claims = issue.access(&user, spec, &tokens.audience, access);
        Ok(self.mint(&claims, &spec.sign))
    }

    /// The claims that come from the tenant. A user that has left the organization has nothing in it.
    pub(super) fn access_claims(
        &self,
        user: &User,
        spec: &TokenSpec,
        application: Option<&Application>,
    ) -> Access {
        let email = spec.email.unwrap_or_else(|| self.has_email_in_access_token(application));
        let org_code = spec.org.clone().or_else(|| user.organizations.first().map(|org| org.code.clone()));
        let member = org_code.as_ref().and_then(|code| user.membership(code));
        let tenant = self.tenant();
        let directory = &tenant.directory;
        let permissions = member.map(|member| directory.permissions_of(member, UserPermissions::Effective));
        let permissions = permissions.into_iter().flatten().map(|(permission, _)| permission.key.clone());
        let roles = member.into_iter().flat_map(|member| &member.roles).map(|grant| {
            let name = directory.roles.get(&grant.id).map(|role| &role.name);
            json!({"id": grant.id, "key": grant.key, "name": name})
        });
        let has_roles = spec.roles.unwrap_or(self.config().tokens.roles_in_access_token);
        let roles = has_roles.then(|| roles.collect());
        Access { email, permissions: permissions.collect(), roles, org_code }
    }

    /// Returns an ID token of the user.
    pub fn id_token(&self, user_id: &str, spec: &TokenSpec) -> Result<String, tenant::Error> {
        let user = self.known_user(user_id)?;
        let issue =
            self.issue(self.issuer(), &self.config().app_client_id, spec, self.config().tokens.id_lifetime);
        Ok(self.mint(&issue.id(&user, spec), &spec.sign))
    }

    /// Returns a machine-to-machine token, for the Management API unless `spec` sets another audience.
    pub fn m2m_token(&self, spec: &TokenSpec) -> String {
        let config = self.config();
        let scopes =
            if config.scopes.is_empty() { crate::routes::all_scopes() } else { config.scopes.clone() };
        let issue = self.issue(self.issuer(), &config.client_id, spec, config.tokens.access_lifetime);
        self.mint(&issue.m2m(spec, &[self.api_audience()], &scopes), &spec.sign)
    }

    /// Signs any claims in any way, for forged tokens and webhooks.
    pub fn mint(&self, claims: &Claims, options: &MintOptions) -> String {
        let active = self.keys().active();
        let signer = match options.signer {
            Signer::Tenant => &active,
            Signer::Foreign => self.foreign(),
        };
        tokens::forge(&Value::Object(claims.clone()), options, &active, signer)
    }

    /// Returns the claims of a valid token of this emulator.
    pub(crate) fn verify(&self, token: &str) -> Option<Claims> {
        tokens::verify(token, &self.keys(), clock::now().as_second())
    }

    fn foreign(&self) -> &Key {
        let make = || Key::generate().expect("key generation succeeded at the start");
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
            now: clock::now().as_second(),
            expires_in: spec.expires_in.unwrap_or(lifetime),
            jti: self.tenant().clock.uuid(),
        }
    }

    fn known_user(&self, id: &str) -> Result<User, tenant::Error> {
        self.user(id).ok_or_else(|| tenant::Error::UnknownUser(id.to_owned()))
    }

    fn keys(&self) -> RwLockReadGuard<'_, Keyring> {
        self.shared.keys.read().expect("no code that holds this lock panics")
    }
}
