//! The shared queue: whether the server answers, what of an accepted delivery survives, and whether it may evict entries.

#[cfg(any(feature = "rabbitmq", feature = "redis"))]
use kinsync_engine::{QueueError, config::SharedQueue};

use super::Finding;
use crate::{app::start::shared_queue, config::Config};

#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;

const REACHABLE: &str = "queue.reachable";
const DURABLE: &str = "queue.durable";
const EVICTION: &str = "queue.eviction";

pub(super) const IDS: [&str; 3] = [REACHABLE, DURABLE, EVICTION];

#[cfg_attr(
    not(any(feature = "rabbitmq", feature = "redis")),
    expect(clippy::unused_async, reason = "the clients of shared queues are asynchronous")
)]
pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    match shared_queue(config) {
        #[cfg(feature = "redis")]
        Some(SharedQueue::Redis(redis)) => redis::examine(redis, config.queue.replicas).await,
        #[cfg(feature = "rabbitmq")]
        Some(SharedQueue::Rabbitmq(rabbitmq)) => rabbitmq::examine(rabbitmq).await,
        _ => {
            let found = "the queue is a file in the data folder, which other processes cannot use";
            IDS.map(|id| Finding::ok(id, found)).to_vec()
        }
    }
}

#[cfg(any(feature = "rabbitmq", feature = "redis"))]
fn unreachable(error: &QueueError) -> Vec<Finding> {
    let fix = "until it answers, deliveries wait in the data folder of each process and change no user";
    let failed = Finding::failed(REACHABLE, kinsync_tower::problem::chain(error), fix);
    vec![failed, Finding::needs(DURABLE, REACHABLE), Finding::needs(EVICTION, REACHABLE)]
}
