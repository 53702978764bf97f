//! A verified webhook request.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use jiff::Timestamp;

use crate::event::{self, Event};
use crate::json::{self, Members, is_id};

/// The scheme that signed a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scheme {
    /// The scheme of Kinde: the body is a JWT, signed with the RSA key of the tenant.
    KindeJwt,
    /// HMAC-SHA256 of the raw body in `x-kinde-signature`.
    Hmac,
    /// Standard Webhooks, <https://www.standardwebhooks.com>.
    StandardWebhooks,
}

impl Scheme {
    /// All schemes.
    pub const ALL: [Self; 3] = [Self::KindeJwt, Self::Hmac, Self::StandardWebhooks];

    /// Returns the stable name for metrics, logs and storage.
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

/// The error of a name that is not in [`Scheme::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a webhook scheme: use `kinde_jwt`, `hmac_sha256` or `standard_webhooks`")]
pub struct UnknownScheme;

impl FromStr for Scheme {
    type Err = UnknownScheme;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|scheme| scheme.as_str() == text).ok_or(UnknownScheme)
    }
}

/// A request with a valid signature, and its signed payload.
///
/// The payload may be an event of an unknown type, or not JSON at all: store a verified delivery in any case and answer
/// 200, because Kinde disables a webhook that fails for 72 hours.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    event_id: Option<String>,
    event_type: String,
    scheme: Scheme,
    payload: Bytes,
    has_event_time: bool,
    signed_at: Option<Timestamp>,
}

impl Delivery {
    /// Restores a delivery that was verified before, for a durable queue that reads its entries.
    ///
    /// Nothing is verified; the payload is read only for [`Self::has_event_time`]. Never call it with the content of a request.
    pub fn from_verified_parts(
        event_id: Option<String>,
        event_type: String,
        scheme: Scheme,
        payload: Bytes,
        signed_at: Option<Timestamp>,
    ) -> Self {
        let has_event_time = has_event_time(&json::members_with_duplicates(&json::text(&payload)));
        Self { event_id, event_type, scheme, payload, has_event_time, signed_at }
    }

    /// Reads id, type and time from a verified payload. Without a usable `event_id` the delivery gets the signed `message_id`.
    pub(super) fn from_payload(
        scheme: Scheme,
        payload: Bytes,
        message_id: Option<String>,
        signed_at: Option<Timestamp>,
    ) -> Self {
        let envelope = Envelope::of(&json::members_with_duplicates(&json::text(&payload)));
        let Envelope { event_id, event_type, has_event_time } = envelope;
        Self { event_id: event_id.or(message_id), event_type, scheme, payload, has_event_time, signed_at }
    }

    /// Creates a delivery of Kinde from a verified payload and what was read from it.
    pub(super) fn of_kinde(payload: Bytes, envelope: Envelope) -> Self {
        let Envelope { event_id, event_type, has_event_time } = envelope;
        Self { event_id, event_type, scheme: Scheme::KindeJwt, payload, has_event_time, signed_at: None }
    }

    /// Returns the id that identifies the event: the signed `event_id`, else the signed `webhook-id` (Standard Webhooks).
    /// 1 to 256 bytes without control characters.
    ///
    /// `None` if the sender signed no usable id. Then nothing distinguishes a repeated request from a new event with the
    /// same content, so do not use a digest of the payload in its place: a user that is renamed from A to B and back to A
    /// has two equal events.
    pub fn event_id(&self) -> Option<&str> {
        self.event_id.as_deref()
    }

    /// Returns the signed `type`, for example `user.created`; empty if the payload has no usable one.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the scheme that signed it.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the signed bytes: the payload of the JWT, or the raw body.
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Returns true if the payload has a time of the event, `event_timestamp` or `timestamp`, valid or not. Events of Kinde
    /// always have one.
    pub const fn has_event_time(&self) -> bool {
        self.has_event_time
    }

    /// Returns the signed time of sending. Only Standard Webhooks has one.
    pub const fn signed_at(&self) -> Option<Timestamp> {
        self.signed_at
    }

    /// Decodes the payload with [`event::decode_jwt`] if Kinde signed it, else with [`event::decode`].
    pub fn decode(&self) -> Result<Event, event::Error> {
        match self.scheme {
            Scheme::KindeJwt => event::decode_jwt(&self.payload),
            Scheme::Hmac | Scheme::StandardWebhooks => event::decode(&self.payload),
        }
    }
}

/// Omits the payload, which is personal data.
impl fmt::Debug for Delivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Delivery")
            .field("event_id", &self.event_id)
            .field("event_type", &self.event_type)
            .field("scheme", &self.scheme)
            .field("payload_bytes", &self.payload.len())
            .field("has_event_time", &self.has_event_time)
            .field("signed_at", &self.signed_at)
            .finish()
    }
}

/// What a delivery needs of its payload.
pub(super) struct Envelope {
    event_id: Option<String>,
    event_type: String,
    has_event_time: bool,
}

impl Envelope {
    /// Reads the id and the type, each if it is a usable identifier. A payload with duplicate members has neither: a sender that
    /// is not Kinde could otherwise take the id of a genuine event.
    pub(super) fn of(members: &Members<'_>) -> Self {
        let is_unique = !members.has_duplicates();
        let is_usable = |id: &String| is_id(id) && (id.is_ascii() || !id.contains('\u{fffd}'));
        let id = |name| members.text(name).map(Cow::into_owned).filter(|id| is_unique && is_usable(id));
        Self {
            event_id: id("event_id"),
            event_type: id("type").unwrap_or_default(),
            has_event_time: has_event_time(members),
        }
    }
}

fn has_event_time(members: &Members<'_>) -> bool {
    ["event_timestamp", "timestamp"].iter().any(|name| members.get(name).is_some_and(|time| time != "null"))
}
