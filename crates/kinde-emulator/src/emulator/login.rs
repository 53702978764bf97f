//! Sign-in to applications: authorization codes, token exchange, refresh and revocation.
//!
//! Source: <https://docs.kinde.com/developer-tools/about/using-kinde-without-an-sdk/>.

use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Emulator, lock};
use crate::logins::{Code, Grant, Refresh};
use crate::tenant;
use crate::tokens::{Claims, MintOptions, TokenSpec};
use crate::user::User;
use crate::{clock, config::Application};

/// An OAuth error response (RFC 6749, 5.2).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) error: &'static str,
    pub(crate) description: String,
}

impl Denied {
    pub(crate) fn new(error: &'static str, description: impl Into<String>) -> Self {
        Self { error, description: description.into() }
    }

    fn grant(description: &str) -> Self {
        Self::new("invalid_grant", description)
    }
}

/// The response of the token endpoint.
#[derive(Debug, Serialize)]
pub(crate) struct Issued {
    access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    expires_in: i64,
    scope: String,
    token_type: &'static str,
}

/// Applications and tokens of their users.
impl Emulator {
    /// Adds an application or replaces the one with the same client id.
    pub fn add_application(&self, application: Application) {
        let mut applications = lock(&self.shared.applications);
        applications.retain(|known| known.client_id != application.client_id);
        applications.push(application);
    }

    /// The applications that users can sign in to.
    pub fn applications(&self) -> Vec<Application> {
        lock(&self.shared.applications).clone()
    }

    pub(crate) fn application(&self, client_id: &str) -> Option<Application> {
        lock(&self.shared.applications).iter().find(|known| known.client_id == client_id).cloned()
    }

    /// Issues an authorization code after a sign-in.
    pub(crate) fn issue_code(&self, grant: Grant, redirect_uri: &str, challenge: Option<String>) -> String {
        let code = self.tenant().clock.secret();
        let expires = in_future(self.config().tokens.code_lifetime);
        let what = Code { grant, redirect_uri: redirect_uri.to_owned(), challenge, expires };
        self.logins().add_code(code.clone(), what, clock::now());
        code
    }

    /// Exchanges a code for tokens, once.
    pub(crate) fn redeem(
        &self,
        application: &Application,
        issuer: &str,
        code: &str,
        redirect_uri: &str,
        verifier: &str,
    ) -> Result<Issued, Denied> {
        let found = self.logins().use_code(code, clock::now());
        let Code { grant, redirect_uri: sent_to, challenge, .. } =
            found.ok_or_else(|| Denied::grant("The code is unknown, has expired or was used before"))?;
        if grant.client_id != application.client_id || grant.issuer != issuer || sent_to != redirect_uri {
            return Err(Denied::grant("The code was issued to another application, domain or redirect_uri"));
        }
        let proved = match &challenge {
            Some(challenge) => *challenge == s256(verifier),
            None => verifier.is_empty(),
        };
        if !proved {
            return Err(Denied::grant("The code_verifier does not match the code_challenge"));
        }
        self.issue_tokens(application, grant, code, None)
    }

    /// Exchanges a refresh token for tokens. The old token stays valid for `tokens.refresh_overlap`.
    pub(crate) fn refresh(
        &self,
        application: &Application,
        issuer: &str,
        token: &str,
    ) -> Result<Issued, Denied> {
        let replaced = || Denied::grant("The refresh token is unknown, has expired or was replaced");
        let found = self.logins().refresh(token, clock::now()).map(|refresh| refresh.grant.clone());
        let grant = found.ok_or_else(replaced)?;
        if grant.client_id != application.client_id || grant.issuer != issuer {
            return Err(Denied::grant("The refresh token belongs to another application or domain"));
        }
        // Checked before the token is used up: the suspension may end.
        self.active_user(&grant)?;
        let overlap = self.config().tokens.refresh_overlap;
        let used = self.logins().use_refresh(token, clock::now(), overlap);
        let Refresh { grant, family, access, .. } = used.ok_or_else(replaced)?;
        let cached = self.config().unknowns.refresh_returns_cached_claims.then_some(access);
        self.issue_tokens(application, grant, &family, cached)
    }

    /// Returns the user of a grant if it is neither deleted nor suspended.
    fn active_user(&self, grant: &Grant) -> Result<User, Denied> {
        let user = self.tenant().user(&grant.user_id).filter(|user| user.deleted_on.is_none());
        let user = user.ok_or_else(|| Denied::grant("The user no longer exists"))?;
        if user.is_suspended {
            return Err(Denied::grant("The user is suspended"));
        }
        Ok(user)
    }

    fn issue_tokens(
        &self,
        application: &Application,
        grant: Grant,
        family: &str,
        cached: Option<(String, Claims)>,
    ) -> Result<Issued, Denied> {
        let user = self.active_user(&grant)?;
        let now = clock::now().as_second();
        let (token, claims) = self.issue_access(application, &grant, &user, cached);
        let expires_in = claims.get("exp").and_then(Value::as_i64).unwrap_or(now) - now;
        let id_token = grant.has("openid").then(|| self.issue_id(&grant, &user, &token));
        let scope = grant.scopes.join(" ");
        let refresh_token = grant.has("offline").then(|| {
            let refresh_token = self.tenant().clock.secret();
            let expires = in_future(self.config().tokens.refresh_lifetime);
            let access = (token.clone(), claims);
            let what = Refresh { grant, family: family.to_owned(), expires, access };
            self.logins().add_refresh(refresh_token.clone(), what, clock::now());
            refresh_token
        });
        Ok(Issued { access_token: token, id_token, refresh_token, expires_in, scope, token_type: "bearer" })
    }

    /// Issues an access token. With `cached`, returns the cached token while it is valid, else a new token with its claims.
    fn issue_access(
        &self,
        application: &Application,
        grant: &Grant,
        user: &User,
        cached: Option<(String, Claims)>,
    ) -> (String, Claims) {
        let tokens = &self.config().tokens;
        let spec = TokenSpec {
            audience: Some(grant.audience.clone()),
            scopes: Some(grant.scopes.clone()),
            org: grant.org_code.clone(),
            ..TokenSpec::default()
        };
        let issue = self.issue(&grant.issuer, &grant.client_id, &spec, tokens.access_lifetime);
        let access = self.access_claims(user, &spec, Some(application));
        let mut claims = issue.access(user, &spec, &[], access);
        if let Some((token, mut old)) = cached {
            if old.get("exp").and_then(Value::as_i64) > Some(issue.now) {
                return (token, old);
            }
            for name in ["iat", "exp", "jti"] {
                old.insert(name.to_owned(), claims[name].take());
            }
            claims = old;
        }
        (self.mint(&claims, &MintOptions::default()), claims)
    }

    fn issue_id(&self, grant: &Grant, user: &User, access_token: &str) -> String {
        let mut spec = TokenSpec::default();
        let mut set = |name: &str, value: Value| spec.claims.insert(name.to_owned(), value);
        set("at_hash", json!(half_hash(access_token)));
        if let Some(nonce) = &grant.nonce {
            set("nonce", json!(nonce));
        }
        if !grant.has("email") {
            set("email", Value::Null);
        }
        if !grant.has("profile") {
            for name in ["given_name", "family_name", "name", "picture", "updated_at"] {
                set(name, Value::Null);
            }
        }
        let lifetime = self.config().tokens.id_lifetime;
        let issue = self.issue(&grant.issuer, &grant.client_id, &spec, lifetime);
        self.mint(&issue.id(user, &spec), &spec.sign)
    }

    /// Revokes a refresh token with its family, or an access token of this application.
    pub(crate) fn revoke(&self, application: &Application, token: &str) {
        let claims = self.verify(token).unwrap_or_default();
        let own = claims.get("azp").and_then(Value::as_str) == Some(&application.client_id);
        let jti = claims.get("jti").and_then(Value::as_str).filter(|_| own);
        let mut logins = self.logins();
        let is_foreign = logins
            .refresh(token, clock::now())
            .is_some_and(|refresh| refresh.grant.client_id != application.client_id);
        if !is_foreign {
            logins.revoke(token, jti);
        }
    }

    /// Whether access tokens carry `email`, by the application, else by the settings.
    pub(super) fn has_email_in_access_token(&self, application: Option<&Application>) -> bool {
        let own = application.and_then(|application| application.email_in_access_token);
        own.unwrap_or(self.config().tokens.email_in_access_token)
    }

    /// Whether the token was revoked, or its user is suspended and `suspension_revokes_tokens` is set.
    pub(crate) fn is_revoked(&self, claims: &Claims) -> bool {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if text("jti").is_some_and(|jti| self.logins().is_revoked(jti)) {
            return true;
        }
        let is_suspended = |id: &str| self.user(id).is_some_and(|user| user.is_suspended);
        self.config().unknowns.suspension_revokes_tokens && text("sub").is_some_and(is_suspended)
    }

    /// Creates a browser session and returns the value of its cookie.
    pub(crate) fn open_session(&self, user_id: &str) -> String {
        let session = self.tenant().clock.secret();
        self.logins().open_session(session.clone(), user_id);
        session
    }

    /// Returns the user of a session if it may still sign in.
    pub(crate) fn session_user(&self, session: &str) -> Option<User> {
        let id = self.logins().session(session)?.to_owned();
        self.user(&id).filter(|user| user.deleted_on.is_none() && !user.is_suspended)
    }

    pub(crate) fn close_session(&self, session: &str) {
        self.logins().close_session(session);
    }

    /// Signs a user in, to an organization if one is requested.
    pub(crate) fn sign_in_to(&self, id: &str, org_code: Option<&str>) -> Result<User, tenant::Error> {
        let is_outside =
            |user: &User| org_code.is_some_and(|code| !user.organizations.iter().any(|org| org.code == code));
        if self.user(id).is_some_and(|user| is_outside(&user)) {
            return Err(tenant::Error::NotAMember(id.to_owned()));
        }
        self.sign_in(id)
    }
}

fn in_future(wait: Duration) -> Timestamp {
    clock::now().checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// The `S256` challenge of a verifier (RFC 7636, 4.2).
fn s256(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()))
}

/// `at_hash` (`OpenID` Connect Core, 3.1.3.6).
fn half_hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(&digest::digest(&digest::SHA256, token.as_bytes()).as_ref()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_equals_the_example_of_rfc_7636() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(s256(verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }
}
