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
    /// `org_code`: the organization of the sign-in.
    pub org_code: Option<String>,
    /// `email`: present only if the application is configured to add it to access tokens. It may be unverified.
    pub email: Option<String>,
    /// All claims.
    pub claims: Map<String, Value>,
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
