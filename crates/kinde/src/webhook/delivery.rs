//! A verified webhook request.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::event::{self, Event};
use crate::json::is_id;
use crate::sign::hex;

/// How a delivery was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scheme {
    /// Kinde's own: the body is a JWT, signed with the tenant's RSA key.
    KindeJwt,
    /// HMAC-SHA256 of the raw body in `x-kinde-signature`.
    Hmac,
    /// <https://www.standardwebhooks.com>.
    StandardWebhooks,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::KindeJwt, Self::Hmac, Self::StandardWebhooks];

    /// The stable name for metrics, logs and storage.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KindeJwt => "kinde_jwt",
            Self::Hmac => "hmac_sha256",
            Self::StandardWebhooks => "standard_webhooks",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A name that is none of [`Scheme::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a webhook scheme: `kinde_jwt`, `hmac_sha256` or `standard_webhooks`")]
pub struct UnknownScheme;

impl FromStr for Scheme {
    type Err = UnknownScheme;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|scheme| scheme.as_str() == text).ok_or(UnknownScheme)
    }
}

/// A request whose signature is right, with the JSON that was signed. What the JSON means is still open: it may be of
/// an unknown type or not JSON at all, for a verified delivery is not to be lost.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    event_id: String,
    event_type: String,
    scheme: Scheme,
    payload: Bytes,
    signed_at: Option<Timestamp>,
}

impl Delivery {
    /// Puts together a delivery that was verified before: for a durable queue that reads back what it stored.
    ///
    /// Nothing is checked. Never call it with what a request says.
    pub fn from_verified_parts(
        event_id: String,
        event_type: String,
        scheme: Scheme,
        payload: Bytes,
        signed_at: Option<Timestamp>,
    ) -> Self {
        Self { event_id, event_type, scheme, payload, signed_at }
    }

    /// Reads id and type from a JSON body whose HMAC is right. `or_id` names the delivery when the body does not.
    pub(super) fn from_body(
        scheme: Scheme,
        payload: Bytes,
        or_id: impl FnOnce(&[u8]) -> String,
        signed_at: Option<Timestamp>,
    ) -> Self {
        let envelope: Envelope<'_> = serde_json::from_slice(&payload).unwrap_or_default();
        let event_type = envelope.event_type.and_then(text).unwrap_or_default();
        let event_id = envelope.event_id.and_then(text).unwrap_or_else(|| or_id(&payload));
        Self { event_id, event_type, scheme, payload, signed_at }
    }

    /// What tells this event from others: the signed `event_id`.
    ///
    /// Where the body has none: the signed `webhook-id` (Standard Webhooks), else `sha256:` and the hex digest of the
    /// body. 1 to 256 bytes without control characters.
    pub fn event_id(&self) -> &str {
        &self.event_id
    }

    /// The signed `type`, for example `user.created`; empty when the body has none that can be read.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// How it was signed.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The signed bytes: the payload of the JWT, or the raw body.
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The signed time of sending; only Standard Webhooks has one.
    pub const fn signed_at(&self) -> Option<Timestamp> {
        self.signed_at
    }

    /// Decodes the payload; see [`event::decode`].
    pub fn decode(&self) -> Result<Event, event::Error> {
        event::decode(&self.payload)
    }
}

/// The payload is personal data and stays out of it.
impl fmt::Debug for Delivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Delivery")
            .field("event_id", &self.event_id)
            .field("event_type", &self.event_type)
            .field("scheme", &self.scheme)
            .field("payload_bytes", &self.payload.len())
            .field("signed_at", &self.signed_at)
            .finish()
    }
}

/// The digest of a body, as an id.
pub(super) fn digest_id(body: &[u8]) -> String {
    format!("sha256:{}", hex(digest::digest(&digest::SHA256, body).as_ref()))
}

#[derive(Default, Deserialize)]
#[serde(expecting = "an object")]
struct Envelope<'a> {
    #[serde(borrow, default, rename = "type")]
    event_type: Option<Member<'a>>,
    #[serde(borrow, default)]
    event_id: Option<Member<'a>>,
}

/// A string, or anything else: a number in the one member does not take the other away.
#[derive(Deserialize)]
#[serde(untagged)]
enum Member<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Other(#[expect(dead_code, reason = "only its being no text counts")] Value),
}

fn text(member: Member<'_>) -> Option<String> {
    match member {
        Member::Text(text) if is_id(&text) => Some(text.into_owned()),
        Member::Text(_) | Member::Other(_) => None,
    }
}
