//! Webhook endpoints, and the body and signature of deliveries: Kinde's signed JWT, or HMAC for relays.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use crate::keys::{Key, hex, hmac_sha256, sign_rs256};

/// An endpoint that receives webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSpec {
    /// URL of the endpoint. Kinde requires https; the emulator does not.
    pub endpoint: Url,
    /// Name in the dashboard.
    #[serde(default = "default_name")]
    pub name: String,
    /// Description in the dashboard.
    #[serde(default)]
    pub description: Option<String>,
    /// Event types to send; empty means all types.
    #[serde(default)]
    pub event_types: Vec<String>,
    /// Signature of deliveries.
    #[serde(default)]
    pub scheme: Scheme,
}

fn default_name() -> String {
    "emulator".to_owned()
}

impl WebhookSpec {
    /// Creates an endpoint that receives all events, signed as by Kinde.
    #[must_use]
    pub fn new(endpoint: Url) -> Self {
        Self {
            endpoint,
            name: default_name(),
            description: None,
            event_types: Vec::new(),
            scheme: Scheme::KindeJwt,
        }
    }

    /// Sets the signature scheme.
    #[must_use]
    pub fn with_scheme(self, scheme: Scheme) -> Self {
        Self { scheme, ..self }
    }

    pub(crate) fn is_subscribed_to(&self, kind: &str) -> bool {
        self.event_types.is_empty() || self.event_types.iter().any(|known| known == kind)
    }
}

/// The signature scheme of deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scheme {
    /// The scheme of Kinde: the body is an RS256 JWT without registered claims, `Content-Type: application/jwt`.
    #[default]
    KindeJwt,
    /// JSON with a hexadecimal HMAC-SHA256 of the body in `x-kinde-signature`, as many relays send it.
    Hmac {
        /// The shared secret.
        secret: String,
    },
    /// The scheme of <https://www.standardwebhooks.com>: JSON with `webhook-timestamp` and `webhook-signature`.
    StandardWebhooks {
        /// `whsec_` and base64, or any other text, which is used unchanged.
        secret: String,
    },
}

/// Body and headers of an attempt.
pub(crate) struct SignedRequest {
    pub(crate) body: Bytes,
    pub(crate) headers: HeaderMap,
}

impl Scheme {
    /// Creates the body, which is the same on each attempt.
    pub(crate) fn body(&self, payload: &Value, key: &Key) -> Bytes {
        match self {
            Self::KindeJwt => sign_rs256(key, payload).into(),
            Self::Hmac { .. } | Self::StandardWebhooks { .. } => payload.to_string().into(),
        }
    }

    /// Adds the headers to a body. `id` is the `webhook-id`, `now` the time of the attempt.
    pub(crate) fn sign(&self, body: Bytes, id: &str, now: Timestamp) -> SignedRequest {
        let mut headers = HeaderMap::new();
        let mut add = |name: &'static str, text: &str| {
            let value = HeaderValue::from_str(text).expect("ids and signatures are ASCII");
            headers.insert(HeaderName::from_static(name), value);
        };
        add("webhook-id", id);
        match self {
            Self::KindeJwt => add(header::CONTENT_TYPE.as_str(), "application/jwt"),
            Self::Hmac { secret } => {
                add(header::CONTENT_TYPE.as_str(), "application/json");
                add("x-kinde-signature", &hex(&hmac_sha256(secret.as_bytes(), &body)));
            }
            Self::StandardWebhooks { secret } => {
                let seconds = now.as_second().to_string();
                let message = [id.as_bytes(), b".", seconds.as_bytes(), b".", body.as_ref()].concat();
                let signature = STANDARD.encode(hmac_sha256(&standard_secret(secret), &message));
                add(header::CONTENT_TYPE.as_str(), "application/json");
                add("webhook-timestamp", &seconds);
                add("webhook-signature", &format!("v1,{signature}"));
            }
        }
        SignedRequest { body, headers }
    }
}

/// The `webhook-id` of an event at an endpoint. It is the same for each attempt and each extra copy.
pub(crate) fn delivery_id(endpoint_id: &str, event_id: &str) -> String {
    let hash = digest::digest(&digest::SHA256, format!("{endpoint_id}/{event_id}").as_bytes());
    hex(&hash.as_ref()[..16])
}

fn standard_secret(secret: &str) -> Vec<u8> {
    let encoded = secret.strip_prefix("whsec_");
    encoded.and_then(|text| STANDARD.decode(text).ok()).unwrap_or_else(|| secret.as_bytes().to_vec())
}
