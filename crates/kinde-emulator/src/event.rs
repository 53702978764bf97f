//! Events: what happened to the tenant, in the exact shape of Kinde's webhook payloads.
//!
//! Source: <https://docs.kinde.com/integrate/webhooks/about-webhooks/> and the types of `@kinde/webhooks`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::webhook_time;
use crate::config::Unknowns;

/// Codes and names of every event type in Kinde's documentation.
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

/// Who caused an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Someone in Kinde's dashboard.
    Admin,
    /// A call of the Management API.
    Api,
    /// The user.
    User,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// `event_` and 32 hex digits that sort by time.
    pub id: String,
    /// E.g. `user.created`.
    pub kind: String,
    /// Who caused it.
    pub source: Source,
    /// When; no two events of one emulator have the same instant (unless `precision` makes them look so).
    pub at: Timestamp,
    /// The payload's `data`.
    pub data: Value,
    /// Address of a sign-in.
    pub ip_address: Option<String>,
}

impl Event {
    /// The payload of the webhook, with `timestamp` at `at`.
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

    /// The id of the user that the event is about, when there is one.
    #[must_use]
    pub fn user_id(&self) -> Option<&str> {
        self.data["user"]["id"].as_str()
    }
}
