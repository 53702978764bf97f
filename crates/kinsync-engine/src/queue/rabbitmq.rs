//! The queue in RabbitMQ, for any number of processes. Needs RabbitMQ 3.10 or later.
//!
//! - `address`: hosts, user and virtual host
//! - `connection`: connections, the declared queues, and errors in terms of the queue
//! - `rows`: entries as messages
//! - `publisher`: entries that are published together, and their confirms
//! - `held`: what the server has delivered and what is not acked: leases and pauses
//! - `dead_letters`: dead letters, in the store of users
//! - `unreadable`: messages of a newer version of kinsync, and damaged ones
//! - `examine`: what a server shows of the queue
//!
//! Entries are persistent messages in a quorum queue; an entry is accepted when a majority of its members confirmed it. A process
//! publishes on one connection and consumes on another: a server without memory stops reading from publishers, and acks have to
//! reach it then. It consumes from its first claim on.
//!
//! What AMQP cannot do: it detects no duplicates (applying an event again changes nothing), and it counts only the messages that no
//! process holds.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use lapin::{
    message::DeliveryResult,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use secrecy::SecretString;
use tokio::{
    runtime::Handle,
    sync::Mutex,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    address::check_address,
    examine::{Examined, Remainder},
};
use self::{
    connection::{Failure, Link, Live, RESPONSE, Topology},
    dead_letters::DeadLetters,
    examine::Backlog,
    held::{Held, Returning, Taken},
    rows::Content,
};
use super::{
    Claimed, DeadLetter, Enqueued, Entry, EntryId, Error, MAX_LISTED, Matched, Matcher, Queue, SHARED_TASK,
    Search, Stats, batches::Batches, embedded::DeadLetterBounds, unanswered, unreadable::Left,
};
use crate::{clock::Clock, random, store::Store, supervisor::Supervisor};

mod address;
mod connection;
mod dead_letters;
mod examine;
mod held;
mod publisher;
mod rows;
mod unreadable;

/// Largest event id and payload together. A dead letter has to fit into a document of MongoDB.
pub const MAX_ENTRY: usize = 7 << 20;
/// Entries that the server delivers to a process before it acks one.
const PREFETCH: u16 = 1024;
/// Longest wait before leases and the connection are looked at again.
const POLL: Duration = Duration::from_secs(1);

/// Address and bounds of the queue.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address, such as `amqp://user:password@host,host/vhost`; `amqps://` for TLS.
    pub url: SecretString,
    /// Start of the names of the queues. Processes with the same prefix share a queue.
    pub prefix: String,
    /// Entries at which more are refused with [`Error::Full`]; sightings are refused at half of it. Entries that a process holds
    /// do not count.
    pub max_entries: u64,
    /// Bounds of the dead letters. Those of bytes do not apply.
    pub dead_letters: DeadLetterBounds,
    /// Deliveries of one entry after which RabbitMQ moves it to a second queue, from which it is published again. It is never
    /// dropped. Fixed when the queue is declared first.
    pub delivery_limit: u32,
    /// Time without a claim after which a process gives back what RabbitMQ delivered to it.
    pub give_back_after: Duration,
}

impl Config {
    /// Usual bounds at this address.
    pub fn new(url: SecretString) -> Self {
        Self {
            url,
            prefix: "kinsync".into(),
            max_entries: 1_000_000,
            dead_letters: DeadLetterBounds::default(),
            delivery_limit: 1_000_000,
            give_back_after: Duration::from_secs(30),
        }
    }
}

/// A queue in RabbitMQ.
pub struct RabbitmqQueue {
    shared: Arc<Shared>,
}

impl fmt::Debug for RabbitmqQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqQueue")
            .field("queue", &self.shared.publishing.topology().queue)
            .finish_non_exhaustive()
    }
}

impl Drop for RabbitmqQueue {
    /// Ends the tasks, and with them the connections: RabbitMQ delivers what was held to another process.
    fn drop(&mut self) {
        self.shared.closed.cancel();
        self.shared.working.cancel();
        // The library keeps a connection that consumes until it is closed.
        if let Ok(runtime) = Handle::try_current() {
            let shared = Arc::clone(&self.shared);
            let close = async move { shared.close_connections().await };
            self.shared.tasks.spawn_on(close, &runtime);
        }
    }
}

struct Shared {
    config: Config,
    clock: Clock,
    publishing: Link,
    consuming: Link,
    /// Locked while a connection starts to consume.
    start: Mutex<()>,
    held: Arc<Held>,
    /// Messages of a newer version of kinsync.
    left: Left,
    returning: Arc<Returning>,
    dead_letters: DeadLetters,
    /// The last known number of dead letters, for while the store does not answer.
    dead_letter_count: AtomicU64,
    /// Number of the next message of this process.
    next_message: AtomicU32,
    /// Entries that no process holds, and when they were counted.
    ready: Mutex<Option<(Instant, u64)>>,
    /// What the counts show.
    backlog: std::sync::Mutex<Backlog>,
    batches: Batches,
    /// Ends the task that publishes entries and gives back what nothing claims.
    working: CancellationToken,
    closed: CancellationToken,
    tasks: TaskTracker,
}

impl RabbitmqQueue {
    /// Creates the queue, with dead letters in this store. Connects when it is first used, and again whenever the connection is lost.
    ///
    /// Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] if the address cannot be understood.
    pub fn new(config: Config, store: Arc<dyn Store>, clock: Clock) -> Result<Self, Error> {
        Self::supervised(config, store, clock, &Supervisor::default())
    }

    /// Creates the queue as [`Self::new`] does. This supervisor runs the task that publishes entries and gives back what nothing
    /// claims.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn supervised(
        config: Config,
        store: Arc<dyn Store>,
        clock: Clock,
        supervisor: &Supervisor,
    ) -> Result<Self, Error> {
        let hosts = address::hosts(&config.url)?;
        let topology = Topology::of(&config);
        let (tasks, closed) = (TaskTracker::new(), CancellationToken::new());
        let shared = Arc::new(Shared {
            publishing: Link::new(hosts.clone(), topology.clone(), tasks.clone(), closed.clone()),
            consuming: Link::new(hosts, topology, tasks.clone(), closed.clone()),
            start: Mutex::default(),
            held: Arc::default(),
            left: Left::default(),
            returning: Arc::default(),
            dead_letters: DeadLetters::new(store, clock.clone(), config.dead_letters),
            dead_letter_count: AtomicU64::new(0),
            next_message: AtomicU32::new(0),
            ready: Mutex::default(),
            backlog: std::sync::Mutex::default(),
            batches: Batches::default(),
            working: supervisor.child_token(),
            closed,
            tasks,
            config,
            clock,
        });
        let (working, reported) = (Arc::clone(&shared), supervisor.clone());
        supervisor.spawn_until(SHARED_TASK, shared.working.clone(), move |stop| {
            let (shared, reported) = (Arc::clone(&working), reported.clone());
            async move {
                _ = tokio::join!(shared.publish_all(&stop, &reported), shared.give_back_regularly(&stop));
            }
        });
        Ok(Self { shared })
    }
}

impl Shared {
    fn open(&self) -> Result<(), Error> {
        if self.closed.is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Returns the id of a new message, which sorts after those before it.
    fn message_id(&self) -> String {
        let (now, number) = (self.clock.now().0, self.next_message.fetch_add(1, Relaxed));
        format!("{now:016x}-{number:08x}-{:08x}", random::number::<u32>())
    }

    /// Makes the server deliver to this process, if it does not.
    async fn consume(self: &Arc<Self>) -> Result<(), Error> {
        if let Some(generation) = self.consuming.generation().await
            && self.held.is_consuming(generation)
        {
            return Ok(());
        }
        // Not cancelled with the caller: what has begun is completed or undone.
        let shared = Arc::clone(self);
        let started = self.tasks.spawn(async move { shared.consumer().await });
        Ok(started.await.map_err(|_| unanswered())??)
    }

    async fn consumer(self: &Arc<Self>) -> Result<(), Failure> {
        let _start = self.start.lock().await;
        let mut live = self.consuming.live().await?;
        if self.held.is_consuming(live.generation) {
            return Ok(());
        }
        if self.held.has_begun(live.generation) {
            // The server ended the delivery: a queue was deleted, for example. Only a new connection declares it again.
            self.consuming.replace(live.generation).await;
            live = self.consuming.live().await?;
        }
        self.held.begin(live.generation);
        let started = self.start_consuming(&live).await;
        if started.is_err() {
            self.give_up(live.generation).await;
        }
        started
    }

    async fn start_consuming(self: &Arc<Self>, live: &Live) -> Result<(), Failure> {
        let Topology { queue, returned, .. } = self.consuming.topology();
        let consume = |queue: &str| {
            let options = BasicConsumeOptions::default();
            live.channel.basic_consume(queue.into(), queue.into(), options, FieldTable::default())
        };
        live.within(live.channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        let (held, generation) = (Arc::clone(&self.held), live.generation);
        // The library calls it in the order of the frames. So what was delivered before an answer is held when the answer is there.
        live.within(consume(queue)).await?.set_delegate(move |delivery: DeliveryResult| {
            held.receive(generation, delivery);
            std::future::ready(())
        });
        let shared = Arc::clone(self);
        live.within(consume(returned)).await?.set_delegate(move |delivery: DeliveryResult| {
            let shared = Arc::clone(&shared);
            let returned = shared.returning.begin();
            async move {
                shared.publish_again(generation, delivery).await;
                drop(returned);
            }
        });
        Ok(())
    }

    /// Gives back what the server delivered while nothing claims it, so that another process gets it.
    async fn give_back_regularly(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(sleep(POLL)).await.is_some() {
            let after = self.config.give_back_after;
            if let Some(generation) = self.held.neglected(after) {
                tracing::warn!(
                    "no entry was claimed for {after:?}; those that RabbitMQ delivered are given back"
                );
                self.give_up(generation).await;
            }
        }
    }

    /// Gives up the connection that delivers, with what it delivered.
    async fn give_up(&self, generation: u64) {
        self.held.lose(generation);
        self.consuming.replace(generation).await;
    }

    /// Leaves messages of a newer version to its processes, makes dead letters of damaged ones, and returns the others.
    fn decode(self: &Arc<Self>, taken: Vec<Taken>) -> Vec<Claimed> {
        let mut claimed = Vec::with_capacity(taken.len());
        let (mut newer, mut damaged) = (Vec::new(), Vec::new());
        for Taken { id, attempts, message } in taken {
            match message.content {
                Content::Entry(entry) => claimed.push(Claimed { id, attempts, entry }),
                Content::Newer(_) => newer.push((id, message.id)),
                Content::Damaged => damaged.push(id),
            }
        }
        // Not a part of the claim: cancelled or failed with it, the others would wait for the end of their lease.
        if !(newer.is_empty() && damaged.is_empty()) {
            let shared = Arc::clone(self);
            self.tasks.spawn(async move { shared.leave(newer, damaged).await });
        }
        claimed
    }

    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<(), Error> {
        for (id, reason) in entries {
            if let Some(message) = self.held.message(id) {
                let name = if message.id.is_empty() { self.message_id() } else { message.id.clone() };
                self.dead_letters.add(&name, message.entry(), &message.body, reason).await?;
            }
        }
        let ids: Vec<EntryId> = entries.iter().map(|(id, _)| id.clone()).collect();
        self.ack(&ids).await?;
        if let Err(error) = self.dead_letters.limit().await {
            tracing::warn!(
                error = crate::breaker::error_chain(&error),
                "old dead letters could not be removed"
            );
        }
        Ok(())
    }

    async fn ack(&self, ids: &[EntryId]) -> Result<(), Error> {
        let acks = self.held.remove(ids);
        let sent = join_all(acks.iter().map(|acker| acker.ack(BasicAckOptions::default())));
        // An ack that does not reach the server lets the entry come again, which changes nothing.
        let Ok(sent) = timeout(RESPONSE, sent).await else { return Ok(()) };
        if let Some(error) = sent.into_iter().find_map(Result::err) {
            tracing::warn!(%error, "acked entries come again: the connection to RabbitMQ was lost");
        }
        Ok(())
    }

    async fn search(self: &Arc<Self>, matcher: &Matcher, search: Search) -> Result<Matched, Error> {
        self.fail_while_some_wait().await?;
        let (ids, mut entries): (Vec<EntryId>, Vec<_>) = self.held.matching(matcher).into_iter().unzip();
        let queued = ids.len() as u64;
        if search == Search::Remove {
            self.ack(&ids).await?;
        }
        if search != Search::List {
            entries.clear();
        }
        Ok(Matched { queued, dead_letters: self.dead_letters.search(matcher, search).await?, entries })
    }

    async fn fail_while_some_wait(self: &Arc<Self>) -> Result<(), Error> {
        match self.waiting().await? {
            0 => Ok(()),
            waiting => Err(Error::Unavailable {
                hint: "RabbitMQ does not show queued deliveries: try again when they are applied".into(),
                source: format!("number of queued deliveries: {waiting}").into(),
            }),
        }
    }

    async fn close_connections(&self) {
        tokio::join!(self.publishing.close(), self.consuming.close());
    }

    async fn count_dead_letters(&self) -> u64 {
        if let Ok(Ok(count)) = timeout(dead_letters::COUNT, self.dead_letters.count()).await {
            self.dead_letter_count.store(count, Relaxed);
        }
        self.dead_letter_count.load(Relaxed)
    }
}

#[async_trait]
impl Queue for RabbitmqQueue {
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error> {
        self.shared.open()?;
        let bytes = entry.event_id.len() + entry.payload.bytes().len();
        if bytes > MAX_ENTRY {
            return Err(Error::TooLarge { bytes, max: MAX_ENTRY });
        }
        self.shared.batches.enqueue(entry).await
    }

    async fn claim(&self, max: usize, lease: Duration) -> Result<Vec<Claimed>, Error> {
        let shared = &self.shared;
        loop {
            shared.open()?;
            shared.closed.run_until_cancelled(shared.consume()).await.ok_or(Error::Closed)??;
            let mut changed = std::pin::pin!(shared.held.changed.notified());
            changed.as_mut().enable();
            let claims = shared.held.claim(max, lease);
            let claimed = shared.decode(claims.taken);
            if !claimed.is_empty() {
                return Ok(claimed);
            }
            let poll = Instant::now() + POLL;
            tokio::select! {
                () = changed => {}
                () = sleep_until(claims.next.map_or(poll, |next| next.min(poll))) => {}
                () = shared.closed.cancelled() => {}
            }
        }
    }

    async fn ack(&self, ids: &[EntryId]) -> Result<(), Error> {
        self.shared.open()?;
        self.shared.ack(ids).await
    }

    async fn retry(&self, ids: &[EntryId], after: Duration) -> Result<(), Error> {
        self.shared.open()?;
        self.shared.held.retry(ids, after);
        Ok(())
    }

    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<(), Error> {
        self.shared.open()?;
        self.shared.dead_letter(entries).await
    }

    async fn stats(&self) -> Result<Stats, Error> {
        self.shared.open()?;
        let (depth, dead_letters) = tokio::join!(self.shared.depth(), self.shared.count_dead_letters());
        let (depth, oldest_received_at) = depth?;
        let newer_version = self.shared.left.count();
        Ok(Stats { depth, oldest_received_at, dead_letters, newer_version, ..Stats::default() })
    }

    async fn dead_letters(&self, after: Option<&EntryId>, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        self.shared.open()?;
        self.shared.dead_letters.list(after, limit.min(MAX_LISTED)).await
    }

    async fn find_dead_letter(&self, id: &EntryId) -> Result<DeadLetter, Error> {
        self.shared.open()?;
        self.shared.dead_letters.find(id).await
    }

    async fn retry_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        self.shared.open()?;
        let (entry, revision) = self.shared.dead_letters.entry(id).await?;
        let properties = rows::properties(&entry, &self.shared.message_id());
        let published = self.shared.publish(&[(properties, entry.payload.bytes())]).await.pop();
        published.unwrap_or(Ok(()))?;
        // Last: an entry that is in both for a moment is applied and changes nothing.
        self.shared.dead_letters.remove_revision(id, revision).await
    }

    async fn drop_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        self.shared.open()?;
        self.shared.dead_letters.remove(id).await
    }

    /// Searches what this process holds and the dead letters. Fails while other entries are queued, which RabbitMQ does not show: they
    /// become observations or dead letters first.
    async fn search(&self, matcher: Matcher, search: Search) -> Result<Matched, Error> {
        self.shared.open()?;
        self.shared.search(&matcher, search).await
    }

    async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.working.cancel();
        self.shared.tasks.close();
        self.shared.batches.close().await;
        self.shared.tasks.wait().await;
        self.shared.close_connections().await;
    }
}
