//! Records and counters of deliveries, and errors of webhook endpoints.
//!
//! `delivery/engine.rs` sends deliveries; `delivery/queue.rs` is the queue of one endpoint.

pub(crate) mod engine;
mod queue;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::webhook::WebhookSpec;

/// Errors of webhook endpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The endpoint does not exist.
    #[error("there is no webhook `{0}`")]
    UnknownWebhook(String),
    /// Deliveries are still pending.
    #[error("{pending} deliveries are still pending: check their last error or wait longer")]
    StillPending {
        /// Number of pending deliveries.
        pending: u64,
    },
}

/// A webhook endpoint and its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Webhook {
    /// `webhook_` and 32 hex digits.
    pub id: String,
    /// Its settings.
    #[serde(flatten)]
    pub spec: WebhookSpec,
    /// When it was created.
    pub created_on: Timestamp,
    /// Whether it was disabled, manually or after failing for too long. Kinde's API does not show this.
    pub disabled: bool,
    /// Deliveries that are queued for an attempt.
    pub waiting: usize,
}

/// Counters since the start or the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Events, without suppressed ones.
    pub events: u64,
    /// Events that the fault `silent` suppressed.
    pub silenced: u64,
    /// Deliveries, including extra copies.
    pub queued: u64,
    /// Attempts.
    pub attempts: u64,
    /// Attempts without a response with status 200.
    pub failures: u64,
    /// Deliveries with a response with status 200.
    pub delivered: u64,
    /// Deliveries that are queued or being sent.
    pub pending: u64,
    /// Deliveries that failed until the end of the schedule.
    pub given_up: u64,
    /// Deliveries that were not sent because their endpoint was disabled or removed.
    pub abandoned: u64,
    /// Deliveries that were not sent because of the fault `drop`.
    pub dropped: u64,
    /// Extra copies because of the fault `duplicate`.
    pub duplicated: u64,
    /// Deliveries that were held back because of the fault `reorder`.
    pub reordered: u64,
    /// Deliveries that were delayed because of the fault `delay`.
    pub delayed: u64,
    /// Endpoints disabled after failing for too long.
    pub disabled: u64,
}

/// The record of one delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Delivery {
    /// Sequence number from 1, in the order of queueing.
    pub number: u64,
    /// The `webhook-id` header.
    pub delivery_id: String,
    /// The endpoint's id.
    pub webhook: String,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// The id of the user in the event.
    pub user_id: Option<String>,
    /// Whether it is an extra copy.
    pub copy: bool,
    /// Its state.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    /// Status of the last response.
    pub last_status: Option<u16>,
    /// Why the last attempt had no response.
    pub last_error: Option<String>,
}

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Queued or being sent.
    Pending,
    /// The response had status 200.
    Delivered,
    /// No response with status 200 until the end of the schedule.
    GivenUp,
    /// Not sent because of the fault `drop`.
    Dropped,
    /// Its endpoint was disabled or removed.
    Abandoned,
}
