//! The event log.

use clap::builder::PossibleValuesParser;
use kinsync_engine::internal::{
    replay,
    store::{LogEntry, LogSource},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Time, payload};

/// Which events to list. An index answers the time with `user`, `type` or `source`; `user` can be combined with the other two, and `type` not
/// with `source`.
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
    /// List only events from this source: `webhook`, `login`, `profile`, `reconcile`, `operator` or `kinsync`.
    #[arg(long, value_name = "SOURCE", value_parser = PossibleValuesParser::new(LogSource::ALL.map(LogSource::as_str)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// List only events received at this time or later, such as `2026-11-01T00:00:00Z`.
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub since: Option<Time>,
    /// List only events received before this time.
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub until: Option<Time>,
    /// Continue after this position: `next` of the page before.
    #[arg(long, value_name = "POSITION")]
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

/// An entry of the event log, without its payload.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventSummary {
    /// The id that Kinde signed, or one that kinsync derived from the content. Unique in the log.
    pub event_id: String,
    /// The type, such as `user.updated`, or `kinsync.scan.read` for an observation that is no event; empty when the event could
    /// not be decoded.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The user that the event is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where the observation comes from: `webhook`, `login`, `profile`, `reconcile`, `operator` or `kinsync`.
    #[schema(value_type = String)]
    pub source: LogSource,
    /// When it happened, by Kinde's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// When kinsync received it.
    pub received_at: Time,
    /// The verification scheme that accepted it; `kinsync.observation`, `kinsync.state` or `kinsync.action` for kinsync's own.
    pub scheme: String,
}

/// An entry of the event log.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    #[serde(flatten)]
    #[expect(missing_docs, reason = "its fields are those of the document")]
    pub summary: EventSummary,
    /// The event as Kinde sent it, or the observation; a text where it is not valid JSON.
    pub payload: serde_json::Value,
}

impl From<&LogEntry> for EventSummary {
    fn from(event: &LogEntry) -> Self {
        Self {
            event_id: event.id.clone(),
            event_type: event.kind.clone(),
            user: event.user.clone(),
            source: event.source,
            at: event.at.map(Time::from),
            received_at: event.received_at.into(),
            scheme: event.scheme.clone(),
        }
    }
}

impl From<&LogEntry> for Event {
    fn from(event: &LogEntry) -> Self {
        Self { summary: event.into(), payload: payload(&event.payload) }
    }
}

/// Which entries of the event log to apply again. At least one criterion is needed.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplayRequest {
    /// Only this entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Only entries of this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Only entries of this type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// Only entries that were received at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Only entries that were received before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// Continue after this entry: `next` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Report what would change, and change nothing.
    #[serde(default)]
    #[schema(required = false)]
    pub dry_run: bool,
}

/// Result of a replay of a page of entries, newest received first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Replayed {
    /// Entries on this page.
    pub entries: u64,
    /// Users that changed; in a dry run, that would change.
    pub changed: Vec<ChangedUser>,
    /// Entries that were not applied, and users that the store refuses.
    pub skipped: Vec<SkippedEntry>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A user that a replay changes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangedUser {
    /// The user.
    pub user: String,
    /// Keys of the changed fields in the user document. A field with an equal value and another version counts.
    pub fields: Vec<String>,
}

/// An entry that a replay does not apply.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SkippedEntry {
    /// Id of the entry, or of the user that the store refuses.
    pub id: String,
    /// Why.
    pub reason: String,
}

impl From<replay::Replayed> for Replayed {
    fn from(replayed: replay::Replayed) -> Self {
        let replay::Replayed { entries, changed, skipped, next } = replayed;
        let changed = changed.into_iter().map(|(user, fields)| ChangedUser {
            user: user.to_string(),
            fields: fields.into_iter().map(str::to_owned).collect(),
        });
        let skipped = skipped.into_iter().map(|(id, reason)| SkippedEntry { id, reason });
        Self { entries, changed: changed.collect(), skipped: skipped.collect(), next }
    }
}
