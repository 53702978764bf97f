//! Events of the tenant, in the exact shape of Kinde's webhook payloads.
//!
//! Source: <https://docs.kinde.com/integrate/webhooks/about-webhooks/> and the types of `@kinde/webhooks`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::webhook_time;
use crate::config::Unknowns;

/// Codes and names of the event types in Kinde's documentation.
pub const EVENT_TYPES: &[(&str, &str)] = &[
    ("user.created", "User created"),
    ("user.updated", "User updated"),
    ("user.deleted", "User deleted"),
    ("user.authenticated", "User authenticated"),
    ("user.authentication_failed", "User authentication failed"),
    ("access_request.created", "Access request created"),
    ("subscriber.created", "Subscriber created"),
    ("organization.created", "Organization created"),
    ("organization.updated", "Organization updated"),
    ("organization.deleted", "Organization deleted"),
    ("role.created", "Role created"),
    ("role.updated", "Role updated"),
    ("role.deleted", "Role deleted"),
    ("permission.created", "Permission created"),
    ("permission.updated", "Permission updated"),
    ("permission.deleted", "Permission deleted"),
    ("passkey.added", "Passkey added"),
    ("passkey.removed", "Passkey removed"),
    ("customer.agreement_created", "Customer agreement created"),
    ("customer.agreement_cancelled", "Customer agreement cancelled"),
    ("customer.plan_created", "Customer plan created"),
    ("customer.plan_assigned", "Customer plan assigned"),
    ("customer.plan_changed", "Customer plan changed"),
    ("customer.payment_succeeded", "Customer payment succeeded"),
    ("customer.payment_failed", "Customer payment failed"),
    ("customer.invoice_overdue", "Customer invoice overdue"),
    ("customer.meter_usage_updated", "Customer meter usage updated"),
];

/// The source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// An administrator in Kinde's dashboard.
    Admin,
    /// A call of the Management API.
    Api,
    /// The user.
    User,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// `event_` and 32 hex digits that sort by time.
    pub id: String,
    /// E.g. `user.created`.
    pub kind: String,
    /// Its source.
    pub source: Source,
    /// Its time. It is distinct for each event of an emulator; a coarse `precision` may hide that.
    pub at: Timestamp,
    /// `data` of the payload.
    pub data: Value,
    /// IP address of a sign-in.
    pub ip_address: Option<String>,
}

impl Event {
    /// Returns the payload of the webhook with `timestamp` set to `at`.
    pub(crate) fn payload(&self, at: Timestamp, unknowns: &Unknowns) -> Value {
        let time = |at| webhook_time(at, unknowns.offset, unknowns.precision);
        let mut payload = json!({
            "data": self.data,
            "event_id": self.id,
            "source": self.source,
            "timestamp": time(at),
            "type": self.kind,
        });
        if unknowns.event_timestamp {
            payload["event_timestamp"] = json!(time(self.at));
        }
        if let Some(address) = &self.ip_address {
            payload["ip_address"] = json!(address);
        }
        payload
    }

    /// The id of the user in the payload, if it has one.
    #[must_use]
    pub fn user_id(&self) -> Option<&str> {
        self.data["user"]["id"].as_str()
    }
}
