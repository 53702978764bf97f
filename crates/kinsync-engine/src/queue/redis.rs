//! The queue in Redis Streams, for any number of processes. Needs Redis 7 or a server that is compatible with it.
//!
//! - `address`: the server, or its sentinels
//! - `connection`: connections, and errors in terms of the queue
//! - `rows`: entries and dead letters as fields of a stream
//! - `storing`: entries that are stored together
//! - `search`: finds entries by their payload, to erase them
//! - `unreadable`: entries of a newer version of kinsync, and damaged ones
//! - `server`: what the configuration of the server means for accepted entries
//! - `*.lua`: each change of more than one key is one script, so a crash leaves no half of it
//!
//! The stream holds exactly the entries that are not acked: an ack deletes the entry, and nothing trims the stream. All
//! processes are one consumer: a claim ends with its lease, whether or not its process lives. The lease is kept in the idle time
//! of a pending entry, which a claim sets to `FAR` minus the lease; an entry with an idle time of `FAR` can be claimed again.
//! When the server loses its data, the group is made again from the start of the stream.
//!
//! How durable an accepted entry is depends on the server: see `docs/guides/redis.md`.

use std::{
    fmt,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use redis::{Cmd, Pipeline, Value, cmd};
use secrecy::SecretString;
use tokio::sync::{Mutex, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    address::check_address,
    server::{Durability, Server},
};
use self::{
    connection::{Connection, Failure},
    rows::Content,
};
use super::{
    Claimed, DeadLetter, Enqueued, Entry, EntryId, Error, MAX_ENTRY, MAX_LISTED, Matched, Matcher, Queue,
    SHARED_TASK, Search, Stats,
    batches::Batches,
    embedded::{DeadLetterBounds, report_bounded},
    unanswered,
    unreadable::Left,
};
use crate::{clock::Clock, supervisor::Supervisor};

mod address;
mod connection;
mod rows;
mod search;
mod server;
mod storing;
mod unreadable;

/// Name of the consumer group, and of its only consumer.
const GROUP: &str = "kinsync";
/// Idle time at which a claim has ended. Longer than any lease and any delay of a retry.
const FAR: Duration = Duration::from_hours(30 * 24);
/// Scripts that store entries at the same time.
const IN_FLIGHT: usize = 4;
/// Bytes after which a claim stops: larger responses would delay every other one.
const CLAIM_BYTES: usize = 8 << 20;
/// Longest wait for a new entry before leases and retries are looked at again.
const POLL: Duration = Duration::from_millis(200);

/// Address and bounds of the queue.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address, such as `redis://user:password@host:6379/0` or `redis+sentinel://host:26379,host:26379/primary/0`; `rediss` for TLS.
    pub url: SecretString,
    /// Start of the names of all keys. Processes with the same prefix share a queue.
    pub prefix: String,
    /// Entries at which more are refused with [`Error::Full`]; sightings are refused at half of it.
    pub max_entries: u64,
    /// Event ids that are remembered to detect duplicates.
    pub dedupe_window: usize,
    /// Bounds of the dead letters. That of bytes is for the memory that Redis needs for them; the oldest are deleted at it, as a stream
    /// cannot give up a payload alone.
    pub dead_letters: DeadLetterBounds,
    /// Replicas that must confirm an entry before it is accepted (`WAIT`).
    pub replicas: u32,
}

impl Config {
    /// Usual bounds at this address.
    pub fn new(url: SecretString) -> Self {
        Self {
            url,
            prefix: "kinsync".into(),
            max_entries: 1_000_000,
            dedupe_window: 131_072,
            dead_letters: DeadLetterBounds::default(),
            replicas: 0,
        }
    }
}

/// A queue in Redis.
pub struct RedisQueue {
    shared: Arc<Shared>,
}

impl Drop for RedisQueue {
    /// Ends the task that stores entries.
    fn drop(&mut self) {
        self.shared.storing.cancel();
    }
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue").field("keys", &self.shared.keys).finish_non_exhaustive()
    }
}

struct Shared {
    config: Config,
    keys: Keys,
    clock: Clock,
    commands: Connection,
    /// Stores entries. A separate connection, because a command that waits for replicas delays all others on its connection.
    entries: Connection,
    /// Waits for new entries. A separate connection, because a command that blocks delays all others on its connection.
    waiting: Mutex<Connection>,
    batches: Batches,
    /// Entries of a newer version of kinsync.
    left: Left,
    /// The pending entry at which the next claim begins.
    next_pending: std::sync::Mutex<String>,
    /// Ends the task that stores entries.
    storing: CancellationToken,
    closed: CancellationToken,
    /// Scripts in progress.
    tasks: TaskTracker,
}

/// Names of the keys. The braces put all of them into one slot of a cluster.
#[derive(Debug)]
struct Keys {
    stream: String,
    seen: String,
    dead: String,
}

impl RedisQueue {
    /// Creates the queue. Connects when it is first used, and again whenever the connection is lost.
    ///
    /// Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] if the address cannot be understood.
    pub fn new(config: Config, clock: Clock) -> Result<Self, Error> {
        Self::supervised(config, clock, &Supervisor::default())
    }

    /// Creates the queue as [`Self::new`] does. This supervisor runs the task that stores entries.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn supervised(config: Config, clock: Clock, supervisor: &Supervisor) -> Result<Self, Error> {
        let key = |name: &str| format!("{{{}}}:{name}", config.prefix);
        let keys = Keys { stream: key("queue"), seen: key("seen"), dead: key("dead") };
        let address = address::parse(&config.url)?;
        let commands = Connection::new(address.clone())?;
        let entries = Connection::new(address.clone())?;
        let waiting = Mutex::new(Connection::new(address)?);
        let shared = Arc::new(Shared {
            config,
            keys,
            clock,
            commands,
            entries,
            waiting,
            batches: Batches::default(),
            left: Left::default(),
            next_pending: std::sync::Mutex::new("0-0".into()),
            storing: supervisor.child_token(),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let (storing, reported) = (Arc::clone(&shared), supervisor.clone());
        supervisor.spawn_until(SHARED_TASK, shared.storing.clone(), move |stop| {
            let (shared, reported) = (Arc::clone(&storing), reported.clone());
            async move {
                let Shared { batches, tasks, .. } = &*shared;
                let storing = Arc::clone(&shared);
                let store = move |entries: Arc<[Entry]>| {
                    let shared = Arc::clone(&storing);
                    async move { shared.store(&entries).await }
                };
                batches.run(IN_FLIGHT, tasks, &stop, &reported, store).await;
            }
        });
        Ok(Self { shared })
    }

    /// Reads what the configuration of the server means for accepted entries.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the server does not answer, [`Error::Refused`] if it refuses the user.
    pub async fn inspect(&self) -> Result<Server, Error> {
        server::inspect(&self.shared.commands).await
    }

    /// Returns whether both are the same queue, however their addresses are written.
    ///
    /// # Errors
    /// As [`Self::inspect`]; [`Error::Refused`] also if a server does not show its `run_id`.
    pub async fn is_same_as(&self, other: &Self) -> Result<bool, Error> {
        let db = |queue: &Self| Ok::<_, Error>(address::parse(&queue.shared.config.url)?.db());
        if self.shared.config.prefix != other.shared.config.prefix || db(self)? != db(other)? {
            return Ok(false);
        }
        Ok(server::run_id(&self.shared.commands).await? == server::run_id(&other.shared.commands).await?)
    }
}

impl Shared {
    fn open(&self) -> Result<(), Error> {
        if self.closed.is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Claims what can be claimed now. Returns also the newest id of the stream if there is nothing else to claim.
    async fn claim_now(&self, max: usize, lease: Duration) -> Result<(Option<String>, Vec<Claimed>), Error> {
        let idle = FAR.saturating_sub(lease.max(Duration::from_millis(1)));
        let mut script = script(include_str!("redis/claim.lua"), &[&self.keys.stream]);
        script.arg(GROUP).arg(max.max(1)).arg(CLAIM_BYTES).arg(millis(idle)).arg(millis(FAR));
        script.arg(self.next_pending().as_str());
        let claimed: (String, String, Vec<(String, i64, Value)>) = match self.commands.run(&script).await {
            Err(failure) if failure.is_no_group() => {
                self.make_group().await?;
                self.commands.run(&script).await?
            }
            claimed => claimed?,
        };
        let (newest, next_pending, entries) = claimed;
        *self.next_pending() = next_pending;
        let is_all = entries.is_empty();
        let mut decoded = Vec::with_capacity(entries.len());
        let (mut newer, mut damaged) = (Vec::new(), Vec::new());
        for (id, earlier, fields) in entries {
            let id = EntryId::new(id);
            match rows::entry(&fields) {
                Content::Entry(entry) => {
                    let attempts = u32::try_from(earlier).unwrap_or_default();
                    decoded.push(Claimed { id, attempts, entry });
                }
                Content::Newer => newer.push((id, earlier)),
                Content::Damaged => damaged.push(id),
            }
        }
        self.leave(newer, damaged).await;
        Ok((is_all.then_some(newest), decoded))
    }

    fn next_pending(&self) -> MutexGuard<'_, String> {
        self.next_pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the consumer group, from the first entry of the stream.
    async fn make_group(&self) -> Result<(), Error> {
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(&self.keys.stream).arg(GROUP).arg("0").arg("MKSTREAM");
        match self.commands.run::<Value>(&create).await {
            Err(failure) if !failure.is_group_known() => Err(failure.into()),
            _ => Ok(()),
        }
    }

    /// Waits for an entry that is newer than this id, for a limited time.
    async fn wait_beyond(&self, newest: &str) -> Result<(), Error> {
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(millis(POLL)).arg("STREAMS");
        read.arg(&self.keys.stream).arg(newest);
        let waiting = self.waiting.lock().await;
        waiting.run::<Value>(&read).await?;
        Ok(())
    }

    async fn release(&self, ids: &[EntryId], after: Duration) -> Result<(), Error> {
        let ids = rows::valid(ids);
        if ids.is_empty() {
            return Ok(());
        }
        let mut claim = cmd("XCLAIM");
        claim.arg(&self.keys.stream).arg(GROUP).arg(GROUP).arg(0).arg(ids);
        claim.arg("IDLE").arg(millis(FAR.saturating_sub(after))).arg("JUSTID");
        unless_lost(self.commands.run::<Value>(&claim).await)?;
        Ok(())
    }

    async fn release_or_log(&self, ids: &[EntryId], after: Duration) {
        if let Err(error) = self.release(ids, after).await {
            unreadable::log_unreleased(&error);
        }
    }

    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<(), Error> {
        let now = self.clock.now();
        let oldest =
            now.0 / 1000 - i64::try_from(self.config.dead_letters.max_age.as_millis()).unwrap_or(i64::MAX);
        let Keys { stream, seen, dead } = &self.keys;
        let mut script = script(include_str!("redis/dead_letter.lua"), &[stream, dead, seen]);
        let DeadLetterBounds { max_count, max_bytes, .. } = self.config.dead_letters;
        script.arg(GROUP).arg(now.0).arg(max_count).arg(oldest.max(0)).arg(max_bytes);
        for (id, reason) in entries.iter().filter(|(id, _)| rows::is_valid(id)) {
            script.arg(id.as_str()).arg(reason);
        }
        let removed = unless_lost(self.commands.run::<u64>(&script).await)?;
        report_bounded(removed.unwrap_or_default(), 0);
        Ok(())
    }

    async fn find(&self, id: &EntryId) -> Result<DeadLetter, Error> {
        let missing = || Error::NoSuchDeadLetter { id: id.clone() };
        if !rows::is_valid(id) {
            return Err(missing());
        }
        let mut range = cmd("XRANGE");
        range.arg(&self.keys.dead).arg(id.as_str()).arg(id.as_str());
        let found: Vec<(String, Value)> = self.commands.run(&range).await?;
        found.first().map(|(id, fields)| rows::dead_letter(id, fields)).ok_or_else(missing)
    }
}

/// Depth, oldest entry, bytes; the same without the entry for dead letters.
type StatsReply = (u64, Vec<(String, Value)>, Option<u64>, u64, Option<u64>);

fn script(text: &str, keys: &[&str]) -> Cmd {
    let mut script = cmd("EVAL");
    script.arg(text).arg(keys.len()).arg(keys);
    script
}

/// Without a group there is no claimed entry to act on.
fn unless_lost<T>(done: Result<T, Failure>) -> Result<Option<T>, Error> {
    match done {
        Err(failure) if failure.is_no_group() => Ok(None),
        done => Ok(Some(done?)),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Claimed entries on their way to a caller. They are released if the call was cancelled.
struct OnTheWay {
    shared: Arc<Shared>,
    claimed: Vec<Claimed>,
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        let claimed = std::mem::take(&mut self.claimed);
        if !claimed.is_empty() {
            let shared = Arc::clone(&self.shared);
            let ids: Vec<EntryId> = claimed.into_iter().map(|claimed| claimed.id).collect();
            self.shared.tasks.spawn(async move { shared.release_or_log(&ids, Duration::ZERO).await });
        }
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error> {
        self.shared.open()?;
        let bytes = entry.event_id.len() + entry.payload.bytes().len();
        if bytes > MAX_ENTRY {
            return Err(Error::TooLarge { bytes, max: MAX_ENTRY });
        }
        self.shared.batches.enqueue(entry).await
    }

    async fn claim(&self, max: usize, lease: Duration) -> Result<Vec<Claimed>, Error> {
        loop {
            self.shared.open()?;
            let (reply, claimed) = oneshot::channel();
            let shared = Arc::clone(&self.shared);
            // Not cancelled with this call: what Redis has claimed meanwhile is released.
            self.shared.tasks.spawn(async move {
                let claimed = shared.claim_now(max, lease).await;
                _ = reply.send(claimed.map(|(newest, claimed)| (newest, OnTheWay { shared, claimed })));
            });
            let (newest, mut claimed) = claimed.await.unwrap_or_else(|_| Err(unanswered()))?;
            if !claimed.claimed.is_empty() {
                return Ok(std::mem::take(&mut claimed.claimed));
            }
            // Without an id, entries that cannot be read came first.
            let Some(newest) = newest else { continue };
            let wait = self.shared.wait_beyond(&newest);
            self.shared.closed.run_until_cancelled(wait).await.unwrap_or(Err(Error::Closed))?;
        }
    }

    async fn ack(&self, ids: &[EntryId]) -> Result<(), Error> {
        self.shared.open()?;
        let ids = rows::valid(ids);
        if ids.is_empty() {
            return Ok(());
        }
        let mut both = Pipeline::new();
        both.atomic().cmd("XACK").arg(&self.shared.keys.stream).arg(GROUP).arg(&ids);
        both.cmd("XDEL").arg(&self.shared.keys.stream).arg(&ids);
        self.shared.commands.run_all::<Value>(&both).await?;
        Ok(())
    }

    async fn retry(&self, ids: &[EntryId], after: Duration) -> Result<(), Error> {
        self.shared.open()?;
        self.shared.release(ids, after).await
    }

    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<(), Error> {
        self.shared.open()?;
        self.shared.dead_letter(entries).await
    }

    async fn stats(&self) -> Result<Stats, Error> {
        let shared = &self.shared;
        shared.open()?;
        let Keys { stream, dead, .. } = &shared.keys;
        let mut reads = Pipeline::new();
        reads.cmd("XLEN").arg(stream).cmd("XRANGE").arg(stream).arg("-").arg("+").arg("COUNT").arg(1);
        reads
            .cmd("MEMORY")
            .arg("USAGE")
            .arg(stream)
            .cmd("XLEN")
            .arg(dead)
            .cmd("MEMORY")
            .arg("USAGE")
            .arg(dead);
        let (depth, oldest, bytes, dead_letters, dead_bytes): StatsReply =
            shared.commands.run_all(&reads).await?;
        let oldest = oldest.first().and_then(|(id, fields)| rows::received_at(id, fields));
        Ok(Stats {
            depth,
            oldest_received_at: oldest,
            bytes: bytes.filter(|_| depth > 0).unwrap_or_default(),
            dead_letters,
            dead_letter_bytes: dead_bytes.filter(|_| dead_letters > 0).unwrap_or_default(),
            newer_version: shared.left.count(),
            ..Stats::default()
        })
    }

    async fn dead_letters(&self, after: Option<&EntryId>, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        self.shared.open()?;
        let from = match after.filter(|id| rows::is_valid(id)) {
            Some(after) => format!("({after}"),
            None => "-".to_owned(),
        };
        let mut range = cmd("XRANGE");
        range.arg(&self.shared.keys.dead).arg(from).arg("+").arg("COUNT").arg(limit.min(MAX_LISTED));
        let found: Vec<(String, Value)> = self.shared.commands.run(&range).await?;
        Ok(found.iter().map(|(id, fields)| rows::dead_letter(id, fields)).collect())
    }

    async fn find_dead_letter(&self, id: &EntryId) -> Result<DeadLetter, Error> {
        self.shared.open()?;
        self.shared.find(id).await
    }

    async fn retry_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        self.shared.open()?;
        let Keys { stream, seen, dead } = &self.shared.keys;
        let mut script = script(include_str!("redis/retry_dead_letter.lua"), &[stream, dead, seen]);
        script.arg(id.as_str());
        let moved: u64 = if rows::is_valid(id) { self.shared.commands.run(&script).await? } else { 0 };
        if moved == 0 { Err(Error::NoSuchDeadLetter { id: id.clone() }) } else { Ok(()) }
    }

    async fn drop_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        self.shared.open()?;
        let mut delete = cmd("XDEL");
        delete.arg(&self.shared.keys.dead).arg(id.as_str());
        let deleted: u64 = if rows::is_valid(id) { self.shared.commands.run(&delete).await? } else { 0 };
        if deleted == 0 { Err(Error::NoSuchDeadLetter { id: id.clone() }) } else { Ok(()) }
    }

    async fn search(&self, matcher: Matcher, search: Search) -> Result<Matched, Error> {
        self.shared.open()?;
        self.shared.search(&matcher, search).await
    }

    async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.storing.cancel();
        self.shared.batches.close().await;
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}
