//! A verified access token.

use std::fmt;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A verified access token of a user. The user may have been suspended or deleted since it was issued.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct AccessToken {
    /// `sub`: the id of the user, 1 to 256 bytes without control characters and outer white space.
    pub subject: String,
    /// `iss`: one of the configured issuers.
    pub issuer: String,
    /// `exp`.
    pub expires_at: Timestamp,
    /// `iat`: the time when the token was issued, which is not the time of the sign-in.
    pub issued_at: Option<Timestamp>,
    /// `azp`: the application.
    pub client_id: Option<String>,
    /// `org_code`: the organization of the sign-in. `None` also if the claim is no text.
    pub org_code: Option<String>,
    /// `email`: present only if the application is configured to add it to access tokens. It may be unverified.
    pub email: Option<String>,
    /// All claims.
    pub claims: Map<String, Value>,
}

/// A role in a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role<'a> {
    /// Kinde's id; `None` if the claim contains keys alone.
    pub id: Option<&'a str>,
    /// Key, such as `admin`.
    pub key: &'a str,
    /// Display name; `None` if the claim contains keys alone.
    pub name: Option<&'a str>,
}

/// The value of a feature flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagValue {
    /// A flag of type boolean.
    Bool(bool),
    /// A flag of type integer.
    Integer(i64),
    /// A flag of type string.
    Text(String),
}

impl AccessToken {
    /// Reads a claim, for example one that a workflow added. `None` if it is absent or null.
    ///
    /// # Errors
    /// The claim has another type.
    pub fn claim<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, serde_json::Error> {
        match self.claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some),
        }
    }

    /// Returns the roles in the organization [`Self::org_code`], from the claim `roles` or `x-hasura-roles`: objects with
    /// `id`, `key` and `name`, or keys alone. Tokens have roles only if the application adds them by token customization.
    ///
    /// `None` if the claim is absent, null, or has an entry that is neither: a part of a list would look complete. The roles
    /// are those of the time when Kinde computed the claims, which can be earlier than [`Self::issued_at`].
    ///
    /// <https://docs.kinde.com/build/tokens/token-customization/>
    pub fn roles(&self) -> Option<Vec<Role<'_>>> {
        self.list("roles", "x-hasura-roles", |entry| {
            let text = |name| entry.get(name).and_then(Value::as_str);
            let key = entry.as_str().or_else(|| text("key"))?;
            Some(Role { id: text("id"), key, name: text("name") })
        })
    }

    /// Returns the keys of the permissions in the organization [`Self::org_code`], from the claim `permissions` or
    /// `x-hasura-permissions`: keys, or objects with a `key`. `None`, and the age of the values, are as for [`Self::roles`].
    ///
    /// <https://docs.kinde.com/build/tokens/about-access-tokens/>
    pub fn permissions(&self) -> Option<Vec<&str>> {
        self.list("permissions", "x-hasura-permissions", |entry| {
            entry.as_str().or_else(|| entry.get("key")?.as_str())
        })
    }

    /// Returns the codes of all organizations of the user, from the claim `org_codes` or `x-hasura-org-codes`. A claim of ID
    /// tokens, which access tokens have only if a workflow adds it. `None` is as for [`Self::roles`].
    ///
    /// <https://docs.kinde.com/build/tokens/about-id-tokens/>
    pub fn org_codes(&self) -> Option<Vec<&str>> {
        self.list("org_codes", "x-hasura-org-codes", Value::as_str)
    }

    /// Reads a list under its usual name, else under the name that Kinde's format for Hasura has.
    fn list<'a, T>(
        &'a self,
        name: &str,
        hasura: &str,
        entry: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        let is_present = |value: &&Value| !value.is_null();
        let claim = [name, hasura].into_iter().find_map(|name| self.claims.get(name).filter(is_present))?;
        claim.as_array()?.iter().map(entry).collect()
    }

    /// Reads a feature flag from the claim `feature_flags`. `None` if the flag is absent or its type is unknown.
    ///
    /// The value is that of the time when the token was issued.
    ///
    /// <https://docs.kinde.com/build/tokens/about-access-tokens/>
    pub fn feature_flag(&self, key: &str) -> Option<FlagValue> {
        let flag = self.claims.get("feature_flags")?.get(key)?;
        let value = flag.get("v")?;
        match flag.get("t")?.as_str()? {
            "b" => value.as_bool().map(FlagValue::Bool),
            "i" => value.as_i64().map(FlagValue::Integer),
            "s" => value.as_str().map(|text| FlagValue::Text(text.to_owned())),
            _ => None,
        }
    }
}

/// Omits the other claims, which are personal data.
impl fmt::Debug for AccessToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AccessToken")
            .field("subject", &self.subject)
            .field("issuer", &self.issuer)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
