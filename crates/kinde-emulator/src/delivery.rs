//! What is known of deliveries: records, counters, and the errors of webhook endpoints.
//!
//! The engine that sends them is in `delivery/engine.rs`, its queue per endpoint in `delivery/queue.rs`.

pub(crate) mod engine;
mod queue;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::webhook::WebhookSpec;

/// What can go wrong with webhook endpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such endpoint.
    #[error("there is no webhook `{0}`")]
    UnknownWebhook(String),
    /// Deliveries are still waiting or being tried.
    #[error("{pending} deliveries are still pending: look at their last error, or wait longer")]
    StillPending {
        /// How many.
        pending: u64,
    },
}

/// A webhook endpoint and how it fares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Webhook {
    /// `webhook_` and 32 hex digits.
    pub id: String,
    /// What was asked for.
    #[serde(flatten)]
    pub spec: WebhookSpec,
    /// When it was made.
    pub created_on: Timestamp,
    /// Whether it was disabled, by hand or after failing for too long. Kinde's API does not show this.
    pub disabled: bool,
    /// Deliveries that wait for an attempt.
    pub waiting: usize,
}

/// Counters since the start or the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Events that happened, silenced ones not counted.
    pub events: u64,
    /// Changes that made no event because of a fault.
    pub silenced: u64,
    /// Deliveries queued: events times endpoints, and extra copies.
    pub queued: u64,
    /// Attempts made.
    pub attempts: u64,
    /// Attempts that were not answered with exactly 200.
    pub failures: u64,
    /// Deliveries answered with 200.
    pub delivered: u64,
    /// Deliveries that wait or are being tried.
    pub pending: u64,
    /// Deliveries given up at the end of the schedule.
    pub given_up: u64,
    /// Deliveries not sent because their endpoint was disabled or removed.
    pub abandoned: u64,
    /// Deliveries never sent because of a fault.
    pub dropped: u64,
    /// Extra copies queued because of a fault.
    pub duplicated: u64,
    /// Deliveries held back because of a fault.
    pub reordered: u64,
    /// Deliveries delayed because of a fault.
    pub delayed: u64,
    /// Endpoints disabled after failing for too long.
    pub disabled: u64,
}

/// What became of one delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Delivery {
    /// Counts up from 1 in the order of queueing.
    pub number: u64,
    /// The `webhook-id` header.
    pub delivery_id: String,
    /// The endpoint's id.
    pub webhook: String,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// The user that it is about.
    pub user_id: Option<String>,
    /// Whether it is an extra copy.
    pub copy: bool,
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    /// Status of the last answer.
    pub last_status: Option<u16>,
    /// Why the last attempt had no answer.
    pub last_error: Option<String>,
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Waits or is being tried.
    Pending,
    /// Answered with 200.
    Delivered,
    /// Not answered with 200 until the end of the schedule.
    GivenUp,
    /// Never sent: a fault.
    Dropped,
    /// Its endpoint was disabled or removed.
    Abandoned,
}
