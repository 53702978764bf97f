//! The event log.

use kinsync_engine::internal::store::LoggedEvent;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Time, payload};

/// Which events to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, clap::Args)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// List only events of this user.
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// List only events of this type, such as `user.updated`.
    #[arg(long = "type", value_name = "TYPE")]
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[param(rename = "type")]
    pub event_type: Option<String>,
    /// Continue after this event: `next` of the page before.
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// List at most this many, 1 to 1000; larger numbers count as 1000. Default: 100.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A page of the event log, newest received first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// The events, without their payload.
    pub events: Vec<EventSummary>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Ids of documents on this page that kinsync wrote and cannot decode any more.
    pub undecodable: Vec<String>,
}

/// A verified event, without its payload.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventSummary {
    /// The id that Kinde signed. Unique in the log.
    pub event_id: String,
    /// The type, such as `user.updated`; empty when the event could not be decoded.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The user that the event is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// When it happened, by Kinde's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// When kinsync received it.
    pub received_at: Time,
    /// The verification scheme that accepted it.
    pub scheme: String,
}

/// A verified event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    #[serde(flatten)]
    #[expect(missing_docs, reason = "its fields are those of the document")]
    pub summary: EventSummary,
    /// The event as Kinde sent it; a text where it is not valid JSON.
    pub payload: serde_json::Value,
}

impl From<&LoggedEvent> for EventSummary {
    fn from(event: &LoggedEvent) -> Self {
        Self {
            event_id: event.event_id.clone(),
            event_type: event.event_type.clone(),
            user: event.user.clone(),
            at: event.at.map(Time::from),
            received_at: event.received_at.into(),
            scheme: event.scheme.clone(),
        }
    }
}

impl From<&LoggedEvent> for Event {
    fn from(event: &LoggedEvent) -> Self {
        Self { summary: event.into(), payload: payload(&event.payload) }
    }
}
