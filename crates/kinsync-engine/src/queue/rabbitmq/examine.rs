//! What a server shows of the queue.

use std::sync::Arc;

use lapin::{
    options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::FieldTable,
};

use super::{
    Config, RabbitmqQueue, address,
    connection::{Failure, Link, Live, Topology},
    dead_letters::DeadLetters,
};
use crate::{
    clock::Clock,
    queue::{Error, embedded::DeadLetterBounds},
    store::Store,
};

/// What a server shows of the queue.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Address of the host that answered.
    pub address: String,
    /// Entries that no process holds; `None` if the queue does not exist yet: the first process declares it.
    pub entries: Option<u64>,
}

impl RabbitmqQueue {
    /// Connects and counts what no process holds. Changes nothing on the server.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no host answers, [`Error::Refused`] if one refuses the user, or if a queue of this name has other
    /// properties.
    pub async fn examine(config: Config) -> Result<Examined, Error> {
        let link = Link::examining(address::hosts(&config.url)?, Topology::of(&config));
        let live = link.live().await?;
        let address = live.address.to_string();
        let entries = match count_ready(&live, link.topology()).await {
            // A declaration changes nothing where the queues exist, and is refused where they have other properties.
            Ok(ready) => link.declare(&live).await.map(|()| Some(ready)),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(failure),
        };
        link.close().await;
        Ok(Examined { address, entries: entries? })
    }

    /// Counts the dead letters in this store.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the store fails.
    pub async fn dead_letters_in(store: Arc<dyn Store>) -> Result<u64, Error> {
        DeadLetters::new(store, Clock::system(), DeadLetterBounds::default()).count().await
    }
}

/// Counts the entries that no process holds.
pub(super) async fn count_ready(live: &Live, topology: &Topology) -> Result<u64, Failure> {
    let count = |queue: &str| {
        let options = QueueDeclareOptions::durable().passive();
        live.channel.queue_declare(queue.into(), options, FieldTable::default())
    };
    let both = (live.within(count(&topology.queue)), live.within(count(&topology.returned)));
    let (ready, moved) = tokio::join!(both.0, both.1);
    Ok(u64::from(ready?.message_count()) + u64::from(moved?.message_count()))
}

/// Counts the entries that no process holds. What the server delivered to this process before is held when 0 is returned.
///
/// RabbitMQ 3.10 counts no message in a quorum queue with a leader that does not answer within 250 ms. Only the leader gives out a
/// message, so an attempt to take one shows whether there is none. Not cancel safe: what is taken goes back.
pub(super) async fn count_waiting(live: &Live, topology: &Topology) -> Result<u64, Failure> {
    match count_ready(live, topology).await? {
        // The server answers a channel before it sends what waits there, so only the next answer comes after that.
        0 if is_empty(live, topology).await? => count_ready(live, topology).await,
        count => Ok(count.max(1)),
    }
}

async fn is_empty(live: &Live, topology: &Topology) -> Result<bool, Failure> {
    for queue in [&topology.queue, &topology.returned] {
        let get = live.channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
        if let Some(taken) = live.within(get).await? {
            let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            live.within(taken.delivery.acker.nack(back)).await?;
            return Ok(false);
        }
    }
    Ok(true)
}
