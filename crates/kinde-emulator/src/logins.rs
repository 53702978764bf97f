//! The state of sign-ins: codes, refresh tokens, browser sessions and revoked tokens.
//!
//! Time and random values are passed in. Which users may sign in is decided elsewhere.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::tokens::Claims;

/// What a user granted to an application at one domain.
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

/// An authorization code that was not exchanged yet.
#[derive(Clone, Debug)]
pub(crate) struct Code {
    pub(crate) grant: Grant,
    pub(crate) redirect_uri: String,
    /// `S256` challenge, if the application uses PKCE.
    pub(crate) challenge: Option<String>,
    pub(crate) expires: Timestamp,
}

/// A refresh token.
#[derive(Clone, Debug)]
pub(crate) struct Refresh {
    pub(crate) grant: Grant,
    /// The code that it stems from. When a code is used twice, all tokens of its family are revoked.
    pub(crate) family: String,
    pub(crate) expires: Timestamp,
    /// The access token that was issued with it, with its claims.
    pub(crate) access: (String, Claims),
}

#[derive(Default)]
pub(crate) struct Logins {
    codes: HashMap<String, Code>,
    used_codes: HashSet<String>,
    refresh: HashMap<String, Refresh>,
    sessions: HashMap<String, String>,
    revoked: HashSet<String>,
}

impl Logins {
    pub(crate) fn add_code(&mut self, code: String, what: Code, now: Timestamp) {
        remove_expired(&mut self.codes, |code| code.expires > now);
        self.codes.insert(code, what);
    }

    /// Removes a code. A second use fails and revokes the refresh tokens of the first one (RFC 6749, 4.1.2).
    pub(crate) fn use_code(&mut self, code: &str, now: Timestamp) -> Option<Code> {
        let Some(found) = self.codes.remove(code) else {
            if self.used_codes.contains(code) {
                self.refresh.retain(|_, refresh| refresh.family != code);
            }
            return None;
        };
        self.used_codes.insert(code.to_owned());
        (found.expires > now).then_some(found)
    }

    pub(crate) fn add_refresh(&mut self, token: String, what: Refresh, now: Timestamp) {
        remove_expired(&mut self.refresh, |refresh| refresh.expires > now);
        self.refresh.insert(token, what);
    }

    pub(crate) fn refresh(&self, token: &str, now: Timestamp) -> Option<&Refresh> {
        self.refresh.get(token).filter(|refresh| refresh.expires > now)
    }

    /// Returns a refresh token and limits its lifetime to `overlap`. Another use does not extend it.
    pub(crate) fn use_refresh(&mut self, token: &str, now: Timestamp, overlap: Duration) -> Option<Refresh> {
        let refresh = self.refresh.get_mut(token).filter(|refresh| refresh.expires > now)?;
        let overlap_ends = now.checked_add(overlap).unwrap_or(Timestamp::MAX);
        refresh.expires = refresh.expires.min(overlap_ends);
        Some(refresh.clone())
    }

    /// Revokes a refresh token with its family, and the access token with this `jti`.
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

/// Removes expired entries when the table is full, then reserves as much room again. So an insert takes constant time
/// on average.
fn remove_expired<T>(table: &mut HashMap<String, T>, is_valid: impl Fn(&T) -> bool) {
    if table.len() == table.capacity() {
        table.retain(|_, entry| is_valid(entry));
        table.reserve(table.len().max(64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            client_id: "app".to_owned(),
            issuer: "https://acme.kinde.com".to_owned(),
            user_id: "kp_1".to_owned(),
            scopes: Vec::new(),
            audience: Vec::new(),
            org_code: None,
            nonce: None,
        }
    }

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn refresh(expires: Timestamp) -> Refresh {
        let access = (String::new(), Claims::new());
        Refresh { grant: grant(), family: "code".to_owned(), expires, access }
    }

    #[test]
    fn expired_codes_and_tokens_are_removed() {
        let mut logins = Logins::default();
        logins.add_refresh("valid".to_owned(), refresh(time(1_000_000)), time(0));
        for second in 0..10_000 {
            let (name, now, expires) = (second.to_string(), time(second), time(second + 10));
            let code = Code { grant: grant(), redirect_uri: String::new(), challenge: None, expires };
            logins.add_code(name.clone(), code, now);
            logins.add_refresh(name, refresh(expires), now);
        }
        assert!(logins.codes.len() < 300, "{} codes", logins.codes.len());
        assert!(logins.refresh.len() < 300, "{} refresh tokens", logins.refresh.len());
        assert!(logins.refresh("valid", time(10_000)).is_some());
        assert!(logins.use_code("9999", time(10_000)).is_some());
    }

    #[test]
    fn a_refresh_token_is_used_once_without_overlap() {
        let mut logins = Logins::default();
        let (now, later) = (time(1), time(2));
        for token in ["once", "twice"] {
            logins.add_refresh(token.to_owned(), refresh(time(9)), now);
        }
        assert!(logins.use_refresh("once", now, Duration::ZERO).is_some());
        assert!(logins.use_refresh("once", now, Duration::ZERO).is_none());
        assert!(logins.use_refresh("twice", now, Duration::from_secs(2)).is_some());
        assert!(logins.use_refresh("twice", later, Duration::from_secs(2)).is_some());
        assert!(
            logins.use_refresh("twice", time(3), Duration::from_secs(2)).is_none(),
            "the overlap is not extended"
        );
    }
}
