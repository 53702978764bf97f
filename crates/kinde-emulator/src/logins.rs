//! What sign-ins leave behind: codes, refresh tokens, browser sessions and revoked tokens, each with its end.
//!
//! Pure of time and chance: both are passed in. Not responsible for who may sign in.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

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
    pub(crate) fn keep_code(&mut self, code: String, what: Code, now: Timestamp) {
        sweep(&mut self.codes, |code| code.expires > now);
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

    pub(crate) fn keep_refresh(&mut self, token: String, what: Refresh, now: Timestamp) {
        sweep(&mut self.refresh, |refresh| refresh.expires > now);
        self.refresh.insert(token, what);
    }

    pub(crate) fn refresh(&self, token: &str, now: Timestamp) -> Option<&Refresh> {
        self.refresh.get(token).filter(|refresh| refresh.expires > now)
    }

    /// What a refresh token is good for. It lives on for `overlap`, and not longer for being used again.
    pub(crate) fn spend_refresh(
        &mut self,
        token: &str,
        now: Timestamp,
        overlap: Duration,
    ) -> Option<Refresh> {
        let refresh = self.refresh.get_mut(token).filter(|refresh| refresh.expires > now)?;
        let overlap_ends = now.checked_add(overlap).unwrap_or(Timestamp::MAX);
        refresh.expires = refresh.expires.min(overlap_ends);
        Some(refresh.clone())
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

/// Forgets what has ended, when the table would have to grow. It has room for as many again then, so that an insert is
/// quick however many there are.
fn sweep<T>(table: &mut HashMap<String, T>, is_good: impl Fn(&T) -> bool) {
    if table.len() == table.capacity() {
        table.retain(|_, entry| is_good(entry));
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
    fn what_has_ended_is_forgotten() {
        let mut logins = Logins::default();
        logins.keep_refresh("good".to_owned(), refresh(time(1_000_000)), time(0));
        for second in 0..10_000 {
            let (name, now, expires) = (second.to_string(), time(second), time(second + 10));
            let code = Code { grant: grant(), redirect_uri: String::new(), challenge: None, expires };
            logins.keep_code(name.clone(), code, now);
            logins.keep_refresh(name, refresh(expires), now);
        }
        assert!(logins.codes.len() < 300, "{} codes", logins.codes.len());
        assert!(logins.refresh.len() < 300, "{} refresh tokens", logins.refresh.len());
        assert!(logins.refresh("good", time(10_000)).is_some());
        assert!(logins.spend_code("9999", time(10_000)).is_some());
    }

    #[test]
    fn a_refresh_token_is_spent_once_when_there_is_no_overlap() {
        let mut logins = Logins::default();
        let (now, later) = (time(1), time(2));
        for token in ["once", "twice"] {
            logins.keep_refresh(token.to_owned(), refresh(time(9)), now);
        }
        assert!(logins.spend_refresh("once", now, Duration::ZERO).is_some());
        assert!(logins.spend_refresh("once", now, Duration::ZERO).is_none());
        assert!(logins.spend_refresh("twice", now, Duration::from_secs(2)).is_some());
        assert!(logins.spend_refresh("twice", later, Duration::from_secs(2)).is_some());
        assert!(logins.spend_refresh("twice", time(3), Duration::from_secs(2)).is_none(), "not longer");
    }
}
