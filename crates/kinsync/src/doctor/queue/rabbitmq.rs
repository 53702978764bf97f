//! RabbitMQ: whether it answers, and what AMQP shows of the queue.

use kinsync_engine::{
    config::Rabbitmq,
    internal::queue::rabbitmq::{Examined, RabbitmqQueue},
};

use super::{DURABLE, EVICTION, Finding, REACHABLE, unreachable};

const NO_QUEUE: &str = "the queue does not exist yet";

/// Accepted arguments of the queue prove what AMQP can show: another kind of queue of the same name is refused.
pub(super) async fn examine(rabbitmq: Rabbitmq) -> Vec<Finding> {
    match RabbitmqQueue::examine(rabbitmq).await {
        Ok(Examined { address, entries: None }) => vec![
            Finding::ok(
                REACHABLE,
                format!(
                    "RabbitMQ at {address} answers; the queue does not exist yet, `kinsync serve` declares it"
                ),
            ),
            Finding::skipped(DURABLE, NO_QUEUE, "start `kinsync serve` and run this again"),
            Finding::skipped(EVICTION, NO_QUEUE, "start `kinsync serve` and run this again"),
        ],
        Ok(Examined { address, .. }) => vec![
            Finding::ok(REACHABLE, format!("RabbitMQ at {address} answers, and its queue exists")),
            Finding::ok(
                DURABLE,
                "each delivery is on the disks of a majority of the members of a quorum queue before it is answered 200; AMQP does \
                 not show the number of members, which may be one: see `rabbitmq-queues quorum_status`",
            ),
            Finding::skipped(
                EVICTION,
                "the queue is declared to refuse deliveries when it is full; AMQP does not show the policies, which outweigh that",
                "see `rabbitmqctl list_policies`: none with `overflow: drop-head`, `message-ttl` or `expires` may match the queue",
            ),
        ],
        Err(error) => unreachable(&error),
    }
}
