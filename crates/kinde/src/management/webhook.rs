//! Webhooks and event types in the Management API.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use url::Url;

use crate::event::Error;
use crate::event::reader::Reader;

/// A webhook. The API does not return whether Kinde has disabled it.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Webhook {
    /// `webhook_…`; opaque.
    pub id: String,
    /// Name in the dashboard.
    pub name: Option<String>,
    /// URL of the deliveries.
    pub endpoint: Option<String>,
    /// Description in the dashboard.
    pub description: Option<String>,
    /// Codes of the delivered events, for example `user.created`.
    pub event_types: Vec<String>,
    /// Time of creation.
    pub created_on: Option<Timestamp>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// The parameters of a new webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewWebhook {
    /// URL of the deliveries, with `https`.
    pub endpoint: Url,
    /// Codes of the events to deliver.
    pub event_types: Vec<String>,
    /// Name in the dashboard.
    pub name: String,
    /// Description in the dashboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Changes of a webhook. `None` does not change the field. The endpoint cannot be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WebhookUpdate {
    /// Codes of the events to deliver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<String>>,
    /// Name in the dashboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Description in the dashboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// An event type that the tenant can deliver.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct EventType {
    /// Id; opaque.
    pub id: Option<String>,
    /// The `type` of the events, for example `user.created`.
    pub code: String,
    /// Name in the dashboard.
    pub name: Option<String>,
    /// Origin of the events.
    pub origin: Option<String>,
    /// JSON Schema of the events.
    pub schema: Option<Value>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

impl Webhook {
    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            name: reader.text("name")?.into_value(),
            endpoint: reader.text("endpoint")?.into_value(),
            description: reader.text("description")?.into_value(),
            event_types: reader.texts("event_types")?.into_value().unwrap_or_default(),
            created_on: reader.time("created_on")?,
            extra: reader.into_rest(),
        })
    }
}

impl EventType {
    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        let code = reader.required_id("code")?;
        let id = reader.text("id")?.into_value();
        let name = reader.text("name")?.into_value();
        let origin = reader.text("origin")?.into_value();
        let mut extra = reader.into_rest();
        let schema = extra.remove("schema").filter(|schema| !schema.is_null());
        Ok(Self { id, code, name, origin, schema, extra })
    }
}
