//! How much is stored and queued.

use kinsync_engine::internal::{queue, store};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Time;

/// How much is stored and queued.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// The store.
    pub store: StoreStats,
    /// The queue.
    pub queue: QueueStats,
}

/// How much is stored. Estimates.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreStats {
    /// Users that are not deleted.
    pub live_users: u64,
    /// Deleted users, kept as tombstones.
    pub deleted_users: u64,
    /// Events in the log.
    pub events: u64,
}

/// How much is queued.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStats {
    /// Deliveries that are accepted and not yet processed.
    pub depth: u64,
    /// When the oldest of them was received; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_received_at: Option<Time>,
    /// Bytes of these deliveries.
    pub bytes: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Bytes of their payloads.
    pub dead_letter_bytes: u64,
    /// Deliveries in the shared queue that this process cannot read and leaves to a newer version of kinsync, within the last minute.
    #[serde(default)]
    pub newer_version: u64,
    /// Deliveries of this process that wait for the shared queue, included in `depth`; absent without a shared queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spooled: Option<u64>,
    /// Whether the disk of this process accepts no delivery, so that only the shared queue does; absent without a shared queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool_failing: Option<bool>,
    /// Seconds since the shared queue answered last, if it does not answer now: the other values contain what it had then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_queue_age_seconds: Option<u64>,
}

impl From<store::Counts> for StoreStats {
    fn from(counts: store::Counts) -> Self {
        let store::Counts { live_users, deleted_users, events } = counts;
        Self { live_users, deleted_users, events }
    }
}

impl From<&queue::Stats> for QueueStats {
    fn from(stats: &queue::Stats) -> Self {
        Self {
            depth: stats.depth,
            oldest_received_at: stats.oldest_received_at.map(Time::from),
            bytes: stats.bytes,
            dead_letters: stats.dead_letters,
            dead_letter_bytes: stats.dead_letter_bytes,
            newer_version: stats.newer_version,
            spooled: stats.spool.map(|spool| spool.entries),
            spool_failing: stats.spool.map(|spool| spool.is_failing),
            shared_queue_age_seconds: stats
                .spool
                .and_then(|spool| spool.age_of_shared_values)
                .map(|age| age.as_secs()),
        }
    }
}
