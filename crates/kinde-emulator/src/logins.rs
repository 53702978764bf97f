//! What sign-ins leave behind: codes, refresh tokens, browser sessions and revoked tokens, each with its end.
//!
//! Pure of time and chance: both are passed in. Not responsible for who may sign in.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use crate::tokens::Claims;

/// What a user granted to an application, at one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) client_id: String,
    pub(crate) issuer: String,
    pub(crate) user_id: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) audience: Vec<String>,
    pub(crate) org_code: Option<String>,
    pub(crate) nonce: Option<String>,
}

impl Grant {
    pub(crate) fn has(&self, scope: &str) -> bool {
        self.scopes.iter().any(|granted| granted == scope)
    }
}

/// A code that waits to be redeemed.
#[derive(Clone, Debug)]
pub(crate) struct Code {
    pub(crate) grant: Grant,
    pub(crate) redirect_uri: String,
    /// `S256` of the verifier, when the application uses PKCE.
    pub(crate) challenge: Option<String>,
    pub(crate) expires: Timestamp,
}

/// A refresh token.
#[derive(Clone, Debug)]
pub(crate) struct Refresh {
    pub(crate) grant: Grant,
    /// The code that it began with: a code that is redeemed twice ends all that came of it.
    pub(crate) family: String,
    pub(crate) expires: Timestamp,
    /// The access token that was issued with it, and its claims.
    pub(crate) access: (String, Claims),
}

#[derive(Default)]
pub(crate) struct Logins {
    codes: HashMap<String, Code>,
    spent: HashSet<String>,
    refresh: HashMap<String, Refresh>,
    sessions: HashMap<String, String>,
    revoked: HashSet<String>,
}

impl Logins {
    pub(crate) fn keep_code(&mut self, code: String, what: Code) {
        self.codes.insert(code, what);
    }

    /// Takes a code out. The second time it fails, and ends the refresh tokens of the first (RFC 6749, 4.1.2).
    pub(crate) fn spend_code(&mut self, code: &str, now: Timestamp) -> Option<Code> {
        let Some(found) = self.codes.remove(code) else {
            if self.spent.contains(code) {
                self.refresh.retain(|_, refresh| refresh.family != code);
            }
            return None;
        };
        self.spent.insert(code.to_owned());
        (found.expires > now).then_some(found)
    }

    pub(crate) fn keep_refresh(&mut self, token: String, what: Refresh) {
        self.refresh.insert(token, what);
    }

    pub(crate) fn refresh(&self, token: &str, now: Timestamp) -> Option<&Refresh> {
        self.refresh.get(token).filter(|refresh| refresh.expires > now)
    }

    /// A refresh token that was used lives on until `overlap_ends`, and not longer for being used again.
    pub(crate) fn retire_refresh(&mut self, token: &str, overlap_ends: Timestamp) {
        if let Some(refresh) = self.refresh.get_mut(token) {
            refresh.expires = refresh.expires.min(overlap_ends);
        }
    }

    /// Revokes a refresh token with its family, or the access token with this `jti`.
    pub(crate) fn revoke(&mut self, token: &str, jti: Option<&str>) {
        if let Some(family) = self.refresh.get(token).map(|refresh| refresh.family.clone()) {
            self.refresh.retain(|_, refresh| refresh.family != family);
        }
        self.revoked.extend(jti.map(str::to_owned));
    }

    pub(crate) fn is_revoked(&self, jti: &str) -> bool {
        self.revoked.contains(jti)
    }

    pub(crate) fn open_session(&mut self, session: String, user_id: &str) {
        self.sessions.insert(session, user_id.to_owned());
    }

    pub(crate) fn session(&self, session: &str) -> Option<&str> {
        self.sessions.get(session).map(String::as_str)
    }

    pub(crate) fn close_session(&mut self, session: &str) {
        self.sessions.remove(session);
    }
}
