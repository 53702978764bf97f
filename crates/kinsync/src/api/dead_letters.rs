//! Dead letters: deliveries that could not be processed.

use kinsync_engine::internal::queue;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Time, payload};

/// Which dead letters to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, clap::Args)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeadLettersQuery {
    /// Continue after this dead letter: `next` of the page before.
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// List at most this many, 1 to 1000; larger numbers count as 1000. Default: 100.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A page of dead letters, oldest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterPage {
    /// The dead letters, without their payload.
    pub dead_letters: Vec<DeadLetterSummary>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A dead letter, without its payload.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterSummary {
    /// Identifies the dead letter.
    pub id: String,
    /// The id of the event.
    pub event_id: String,
    /// The verification scheme that accepted the delivery.
    pub scheme: String,
    /// When kinsync received the delivery.
    pub received_at: Time,
    /// When it became a dead letter.
    pub dead_at: Time,
    /// Why it became a dead letter.
    pub reason: String,
}

/// A dead letter.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeadLetter {
    #[serde(flatten)]
    #[expect(missing_docs, reason = "its fields are those of the document")]
    pub summary: DeadLetterSummary,
    /// The event as it was sent; a text where it is not valid JSON. Absent after it was removed to limit the size of the
    /// dead letters: then `retry` is refused, and the event log may still have the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<serde_json::Value>,
}

/// What was done with a dead letter.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterChanged {
    /// Identifies the dead letter.
    pub id: String,
    /// What was done with it.
    pub status: DeadLetterStatus,
}

/// What was done with a dead letter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeadLetterStatus {
    /// It is in the queue again.
    Queued,
    /// It was removed.
    Dropped,
}

impl From<&queue::DeadLetter> for DeadLetterSummary {
    fn from(letter: &queue::DeadLetter) -> Self {
        Self {
            id: letter.id.to_string(),
            event_id: letter.event_id.clone(),
            scheme: letter.scheme.clone(),
            received_at: letter.received_at.into(),
            dead_at: letter.dead_at.into(),
            reason: letter.reason.clone(),
        }
    }
}

impl From<&queue::DeadLetter> for DeadLetter {
    fn from(letter: &queue::DeadLetter) -> Self {
        Self { summary: letter.into(), payload: letter.payload.as_deref().map(payload) }
    }
}
