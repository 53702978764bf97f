//! What a server shows of the queue.

use std::sync::{Arc, PoisonError};

use kinsync_core::Micros;
use lapin::{
    options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};

use super::{
    Config, RabbitmqQueue, Shared, address,
    connection::{Failure, Link, Live, Topology},
    dead_letters::DeadLetters,
};
use crate::{
    clock::Clock,
    queue::{Error, embedded::DeadLetterBounds, unanswered},
    random,
    store::Store,
};

/// Consumers of a process: of the queue, and of what the server moved out of it.
const CONSUMERS: u64 = 2;
/// Time without use after which RabbitMQ deletes a queue that only identifies the server, in milliseconds.
const EXPIRES: i32 = 60_000;

/// What a server shows of the queue.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Address of the host that answered.
    pub address: String,
    /// Entries that no process holds; `None` if the queue does not exist yet: the first process declares it.
    pub entries: Option<u64>,
}

/// What is left in a queue that is to be deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remainder {
    /// Consumers of other processes, which may hold any number of entries.
    pub consumers: u64,
    /// Entries that no other process holds.
    pub entries: u64,
}

impl RabbitmqQueue {
    /// Counts what is left. Relies on the leader of the queue alone, unlike [`Stats`](crate::queue::Stats). Consumes from the queue.
    ///
    /// # Errors
    /// [`Error::Unavailable`] also if the leader does not answer.
    pub async fn remainder(&self) -> Result<Remainder, Error> {
        let shared = &self.shared;
        shared.open()?;
        shared.consume().await?;
        let live = shared.consuming.live().await?;
        // Before the entries: what a consumer gives back later is counted with them.
        let consumers = count_ready(&live, shared.consuming.topology()).await?.consumers;
        let Some(consumers) = consumers.checked_sub(CONSUMERS) else {
            return Err(live
                .unavailable("the leader of the queue does not answer", "no consumer counted")
                .into());
        };
        let waiting = shared.waiting().await?;
        Ok(Remainder { consumers, entries: waiting + shared.held.depth().0 })
    }

    /// Returns whether both are the same queue, however their addresses are written. Declares a queue for it, for a moment.
    ///
    /// # Errors
    /// As [`Self::examine`].
    pub async fn is_same_as(&self, other: &Self) -> Result<bool, Error> {
        let (one, other) = (&self.shared.config, &other.shared.config);
        if one.prefix != other.prefix {
            return Ok(false);
        }
        let link = |config: &Config| -> Result<Link, Error> {
            Ok(Link::examining(address::hosts(&config.url)?, Topology::of(config)))
        };
        let (one, other) = (link(one)?, link(other)?);
        let is_same = is_seen(&one, &other).await;
        tokio::join!(one.close(), other.close());
        Ok(is_same?)
    }

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
            Ok(ready) => link.declare(&live).await.map(|()| Some(ready.entries)),
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

impl Shared {
    /// Counts on the connection that delivers, if there is one: its answer comes after what was delivered before it.
    pub(super) async fn depth(self: &Arc<Self>) -> Result<(u64, Option<Micros>), Error> {
        // Not cancelled with a caller that does not wait as long as it takes to connect.
        let shared = Arc::clone(self);
        let connecting = self.tasks.spawn(async move { shared.consuming.live().await });
        let live = connecting.await.map_err(|_| unanswered())??;
        let ready = match count_ready(&live, self.publishing.topology()).await {
            Ok(ready) => ready,
            Err(failure) => {
                self.give_up(live.generation).await;
                return Err(failure.into());
            }
        };
        let waits_since = self.backlog(ready);
        let (held, oldest) = self.held.depth();
        Ok((ready.entries + held, [oldest, waits_since].into_iter().flatten().min()))
    }

    /// Adds a count of what no process holds. Returns since when an entry waits.
    pub(super) fn backlog(&self, ready: Ready) -> Option<Micros> {
        let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        backlog.observe(ready, self.clock.now())
    }

    /// Counts the entries that no process holds, and those that this process puts back into the queue. What the server delivered to this
    /// process before is held when 0 is returned.
    pub(super) async fn waiting(self: &Arc<Self>) -> Result<u64, Error> {
        let ended = self.returning.ended();
        let shared = Arc::clone(self);
        let counted = self.tasks.spawn(async move {
            let live = shared.consuming.live().await?;
            let count = count_waiting(&live, shared.consuming.topology());
            let waiting = shared.closed.run_until_cancelled(count).await;
            // Without the connection, the server has again what an attempt took.
            if !matches!(waiting, Some(Ok(_))) {
                shared.give_up(live.generation).await;
            }
            waiting.transpose()
        });
        let waiting = counted.await.map_err(|_| unanswered())??.ok_or(Error::Closed)?;
        // None was on its way at any time since the beginning: one that came meanwhile may not be counted in the queue.
        Ok(waiting + self.returning.begun_beyond(ended))
    }
}

/// Whether a queue that is declared on one connection exists on the other: the client does not show what identifies the server, and
/// a virtual host may have many addresses.
async fn is_seen(one: &Link, other: &Link) -> Result<bool, Failure> {
    let (declaring, looking) = (one.live().await?, other.live().await?);
    let name = format!("{}.{:032x}", one.topology().queue, random::number::<u128>());
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES));
    let durable = QueueDeclareOptions::durable();
    declaring.within(declaring.channel.queue_declare(name.as_str().into(), durable, arguments)).await?;
    let look = looking.channel.queue_declare(name.as_str().into(), durable.passive(), FieldTable::default());
    let is_seen = match looking.within(look).await {
        Err(failure) if failure.is_missing() => Ok(false),
        seen => seen.map(|_| true),
    };
    let delete = declaring.channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
    declaring.within(delete).await?;
    is_seen
}

/// What a server counts. A leader that does not answer in time counts as 0 of both.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    /// Entries that no process holds.
    pub(super) entries: u64,
    pub(super) consumers: u64,
}

/// Since when an entry waits that no process holds, as far as counts show it: RabbitMQ delivers the oldest first, so when there were
/// some, and their number has not decreased since, one of them waits since then.
#[derive(Default)]
pub(super) struct Backlog {
    last: u64,
    since: Option<Micros>,
}

impl Backlog {
    /// Adds a count. Returns since when an entry waits.
    pub(super) fn observe(&mut self, Ready { entries, consumers }: Ready, now: Micros) -> Option<Micros> {
        let was_taken = consumers > 0 && entries < self.last;
        match entries {
            // RabbitMQ 3.10 counts 0 while the leader of the queue does not answer: one count proves nothing.
            0 if self.last > 0 => {}
            0 => self.since = None,
            _ if was_taken || self.since.is_none() => self.since = Some(now),
            _ => {}
        }
        self.last = entries;
        self.since.filter(|_| entries > 0)
    }
}

/// Counts the entries that no process holds, and the consumers.
pub(super) async fn count_ready(live: &Live, topology: &Topology) -> Result<Ready, Failure> {
    let count = |queue: &str| {
        let options = QueueDeclareOptions::durable().passive();
        live.channel.queue_declare(queue.into(), options, FieldTable::default())
    };
    let both = (live.within(count(&topology.queue)), live.within(count(&topology.returned)));
    let (ready, moved) = tokio::join!(both.0, both.1);
    let (ready, moved) = (ready?, moved?);
    let sum = |one: u32, other: u32| u64::from(one) + u64::from(other);
    Ok(Ready {
        entries: sum(ready.message_count(), moved.message_count()),
        consumers: sum(ready.consumer_count(), moved.consumer_count()),
    })
}

/// Counts the entries that no process holds. What the server delivered to this process before is held when 0 is returned.
///
/// RabbitMQ 3.10 counts no message in a quorum queue with a leader that does not answer within 250 ms. Only the leader gives out a
/// message, so an attempt to take one shows whether there is none. Not cancel safe: what is taken goes back.
async fn count_waiting(live: &Live, topology: &Topology) -> Result<u64, Failure> {
    match count_ready(live, topology).await?.entries {
        // The server answers a channel before it sends what waits there, so only the next answer comes after that.
        0 if is_empty(live, topology).await? => Ok(count_ready(live, topology).await?.entries),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kinsync_testing::rabbitmq::TestRabbitmq;
    use lapin::{BasicProperties, options::BasicPublishOptions};
    use tokio::time::timeout;

    use super::*;

    /// What a count of 0 hides is seen by an attempt to take it, and goes back.
    #[tokio::test]
    async fn an_entry_that_an_attempt_takes_is_in_the_queue_again() {
        let url = TestRabbitmq::shared().url();
        let config = Config { prefix: TestRabbitmq::prefix(), ..Config::new(url.into()) };
        let hosts = address::hosts(&config.url).expect("it is an address");
        let link = Link::examining(hosts, Topology::of(&config));
        let live = link.live().await.expect("the server answers");
        link.declare(&live).await.expect("the queues are declared");
        let topology = link.topology();
        assert_eq!(count_waiting(&live, topology).await.expect("it counts"), 0);
        for (entries, queue) in [(1, &topology.queue), (2, &topology.returned)] {
            let options = BasicPublishOptions::default();
            let published = live.channel.basic_publish(
                "".into(),
                queue.as_str().into(),
                options,
                b"{}",
                BasicProperties::default(),
            );
            published.await.expect("it is sent").await.expect("it is confirmed");
            if entries == 2 {
                // So that only the second queue has one to take.
                let get = live.channel.basic_get(topology.queue.as_str().into(), BasicGetOptions::default());
                let taken = live.within(get).await.expect("the server answers").expect("there is one");
                taken
                    .delivery
                    .acker
                    .ack(lapin::options::BasicAckOptions::default())
                    .await
                    .expect("it is sent");
            }
            assert!(!is_empty(&live, topology).await.expect("the server answers"), "{queue}");
            let is_back = async {
                while count_ready(&live, topology).await.expect("it counts").entries != 1 {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(30), is_back).await.expect("it is in the queue again");
        }
        link.close().await;
    }

    /// Counts of entries with the time of each, and since when one waits after each count.
    fn check(consumers: u64, counts: &[(u64, i64, Option<i64>)]) {
        let mut backlog = Backlog::default();
        for (entries, now, since) in counts {
            let shown = backlog.observe(Ready { entries: *entries, consumers }, Micros(*now));
            assert_eq!(shown, since.map(Micros), "{entries} at {now}");
        }
    }

    #[test]
    fn without_a_consumer_an_entry_waits_since_the_first_count() {
        check(0, &[(0, 1, None), (3, 2, Some(2)), (3, 3, Some(2)), (9, 4, Some(2)), (8, 5, Some(2))]);
    }

    #[test]
    fn with_a_consumer_an_entry_waits_since_the_last_decrease() {
        check(1, &[(3, 1, Some(1)), (5, 2, Some(1)), (4, 3, Some(3)), (4, 4, Some(3)), (1, 5, Some(5))]);
    }

    #[test]
    fn only_a_second_zero_shows_that_nothing_waits() {
        check(
            0,
            &[(3, 1, Some(1)), (0, 2, None), (3, 3, Some(1)), (0, 4, None), (0, 5, None), (1, 6, Some(6))],
        );
    }
}
