//! Webhooks and the types of their events, as the Management API tells them.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use url::Url;

use crate::event::Error;
use crate::event::reader::Reader;

/// A webhook. Whether Kinde has disabled it is not to be seen.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Webhook {
    /// `webhook_…`; opaque.
    pub id: String,
    /// Name in the dashboard.
    pub name: Option<String>,
    /// Where Kinde delivers to.
    pub endpoint: Option<String>,
    /// Description in the dashboard.
    pub description: Option<String>,
    /// Codes of the events that it delivers, for example `user.created`.
    pub event_types: Vec<String>,
    /// When it was made.
    pub created_on: Option<Timestamp>,
    /// Members that are not known here.
    pub extra: Map<String, Value>,
}

/// A webhook to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewWebhook {
    /// Where Kinde shall deliver to: `https`.
    pub endpoint: Url,
    /// Codes of the events that it shall deliver.
    pub event_types: Vec<String>,
    /// Name in the dashboard.
    pub name: String,
    /// Description in the dashboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What to change of a webhook; `None` is left as it is. The endpoint cannot be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WebhookUpdate {
    /// Codes of the events that it shall deliver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<String>>,
    /// Name in the dashboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Description in the dashboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A type of event that the tenant can deliver.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct EventType {
    /// Opaque.
    pub id: Option<String>,
    /// What an event has as its `type`, for example `user.created`.
    pub code: String,
    /// Name in the dashboard.
    pub name: Option<String>,
    /// Who raises it.
    pub origin: Option<String>,
    /// JSON Schema of the event.
    pub schema: Option<Value>,
    /// Members that are not known here.
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
