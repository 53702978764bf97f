//! Everything that kinsync stores about one user.

use std::collections::BTreeMap;

use kinsync_engine::internal::queue::Found;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Time, audit::AuditRecord, dead_letters::DeadLetter, events::Event, payload, users::User};

/// Which part of an export to return.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// Return only the entries of the log after this one: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Everything that kinsync stores about one user. Fields of the application are not part of it. A page with further entries of
/// the log contains nothing else.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserExport {
    /// The user.
    pub user: String,
    /// When it was exported.
    pub exported_at: Time,
    /// The user as an application reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<User>,
    /// The stored state, with the version of each value. Internal: each version of kinsync may change its form.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub state: Option<serde_json::Value>,
    /// Whether a record of a deletion or a suspension exists beside the document. The state includes it.
    pub has_lockout_record: bool,
    /// Other records of kinsync about this user alone, by key. Internal: each version of kinsync may change their form.
    #[schema(value_type = Object)]
    pub records: BTreeMap<String, serde_json::Value>,
    /// Keys of records about several users that name this user.
    pub mentioned_in: Vec<String>,
    /// Dead letters. In the data folder: those of this server.
    pub dead_letters: Vec<DeadLetter>,
    /// Deliveries in the data folder of this server and in the shared queue. RabbitMQ does not show deliveries: while some wait there,
    /// no user can be exported.
    pub queued: Vec<QueuedDelivery>,
    /// Requests of operators about this user.
    pub audit: Vec<AuditRecord>,
    /// Entries of the log, newest received first.
    pub entries: Vec<Event>,
    /// Ids of damaged entries: their content was changed after kinsync wrote them.
    pub damaged_entries: Vec<String>,
    /// Where the next page of entries starts; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A delivery in the queue.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueuedDelivery {
    /// The id of the event.
    pub event_id: String,
    /// The verification scheme that accepted it; `login` for an authenticated request.
    pub scheme: String,
    /// When kinsync received it.
    pub received_at: Time,
    /// The event as it was sent; a text where it is not valid JSON.
    pub payload: serde_json::Value,
}

impl From<Found> for QueuedDelivery {
    fn from(found: Found) -> Self {
        Self {
            event_id: found.event_id,
            scheme: found.scheme,
            received_at: found.received_at.into(),
            payload: payload(&found.payload),
        }
    }
}

impl UserExport {
    /// Creates the export of a user about which nothing is known.
    pub fn empty(user: String, exported_at: Time) -> Self {
        Self {
            user,
            exported_at,
            document: None,
            state: None,
            has_lockout_record: false,
            records: BTreeMap::new(),
            mentioned_in: Vec::new(),
            dead_letters: Vec::new(),
            queued: Vec::new(),
            audit: Vec::new(),
            entries: Vec::new(),
            damaged_entries: Vec::new(),
            next: None,
        }
    }

    /// Returns whether nothing is known of the user. Requests of operators do not count.
    pub fn is_empty(&self) -> bool {
        let has_entries = !self.entries.is_empty() || !self.damaged_entries.is_empty();
        let is_queued = !self.queued.is_empty() || !self.dead_letters.is_empty();
        let is_stored = self.state.is_some() || !self.records.is_empty() || !self.mentioned_in.is_empty();
        !has_entries && !is_queued && !is_stored
    }
}
