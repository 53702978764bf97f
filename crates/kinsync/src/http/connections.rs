//! Limits the open connections: in total, and per client address.
//!
//! When all slots are taken, the connection that has been idle for longest is closed for a new one, so that clients
//! that open connections and send nothing cannot keep others out. Without an idle connection, it is the one with the
//! request body that has been arriving for longest, if for more than a second. A connection with a complete request is
//! never closed for another.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::network::{Network, client_of};

/// Time after which a request with an incomplete body may be cut off for a new connection. Deliveries arrive at once.
const SLOW_BODY: Duration = Duration::from_secs(1);

/// The open connections of one server.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    max_per_client: usize,
    /// Networks without a limit per client: reverse proxies carry the requests of many users.
    proxies: Vec<Network>,
    /// Ends all connections.
    stop: CancellationToken,
    started: Instant,
    open: Mutex<Open>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    by_id: HashMap<u64, Arc<Connection>>,
    by_client: HashMap<IpAddr, usize>,
    next_id: u64,
}

#[derive(Debug)]
struct Connection {
    peer: IpAddr,
    /// The counted address; `None` for a proxy.
    client: Option<IpAddr>,
    requests: AtomicUsize,
    /// Requests with an incomplete body.
    receiving: AtomicUsize,
    /// Milliseconds from the start of the server to the begin of the last of them.
    receiving_since: AtomicU64,
    /// Milliseconds from the start of the server.
    idle_since: AtomicU64,
    /// A child of the stop: all connections would contend for the lock of a shared one.
    ended: CancellationToken,
}

/// Why a connection has to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Another one needs its slot.
    Evicted,
    /// The server stops.
    Stopped,
}

/// One open connection. Dropping it frees the slot.
#[derive(Debug)]
pub struct Slot(Arc<Held>);

#[derive(Debug)]
struct Held {
    id: u64,
    connection: Arc<Connection>,
    connections: Arc<Connections>,
}

/// A request in progress. Dropping it makes the connection idle.
#[derive(Debug)]
pub struct InProgress(Arc<Held>);

/// A request with an incomplete body.
#[derive(Debug)]
pub struct Receiving(Arc<Held>);

/// The client has as many connections as one client may have.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyOfClient;

impl Connections {
    /// Creates the limits: in total, per client, and the networks without a limit per client. `stop` ends all connections.
    pub fn new(
        max: usize,
        max_per_client: usize,
        proxies: Vec<Network>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let (started, open, freed) = (Instant::now(), Mutex::default(), Notify::new());
        Arc::new(Self { max: max.max(1), max_per_client, proxies, stop, started, open, freed })
    }

    /// Takes a slot for a connection from this address. Closes another connection for it, or waits until one can be closed.
    /// Cancel safe.
    pub async fn open(self: &Arc<Self>, address: IpAddr) -> Result<Slot, TooManyOfClient> {
        let address = address.to_canonical();
        let is_proxy = address.is_loopback() || self.proxies.iter().any(|network| network.contains(address));
        let client = (!is_proxy).then(|| client_of(address));
        loop {
            let freed = self.freed.notified();
            if let Some(outcome) = self.try_open(address, client) {
                return outcome;
            }
            // A body becomes slow without a notification.
            _ = timeout(SLOW_BODY, freed).await;
        }
    }

    /// `None` while no connection may be closed.
    fn try_open(
        self: &Arc<Self>,
        peer: IpAddr,
        client: Option<IpAddr>,
    ) -> Option<Result<Slot, TooManyOfClient>> {
        let mut open = self.lock();
        if client.is_some_and(|client| open.by_client.get(&client) >= Some(&self.max_per_client)) {
            return Some(Err(TooManyOfClient));
        }
        if open.by_id.len() >= self.max {
            let slow_since =
                millis(self.started).checked_sub(u64::try_from(SLOW_BODY.as_millis()).unwrap_or(u64::MAX));
            let id = open.longest_idle().or_else(|| open.slowest_body(slow_since?))?;
            open.remove(id).ended.cancel();
        }
        let connection = Arc::new(Connection {
            peer,
            client,
            requests: AtomicUsize::new(0),
            receiving: AtomicUsize::new(0),
            receiving_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(millis(self.started)),
            ended: self.stop.child_token(),
        });
        let id = open.next_id;
        open.next_id += 1;
        open.by_id.insert(id, Arc::clone(&connection));
        if let Some(client) = client {
            *open.by_client.entry(client).or_default() += 1;
        }
        Some(Ok(Slot(Arc::new(Held { id, connection, connections: Arc::clone(self) }))))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Other clients before proxies, which reuse their connections.
    fn longest_idle(&self) -> Option<u64> {
        let idle = self.by_id.iter().filter(|(_, connection)| connection.requests.load(Relaxed) == 0);
        let order =
            |connection: &Connection| (connection.client.is_none(), connection.idle_since.load(Relaxed));
        idle.min_by_key(|(id, connection)| (order(connection), **id)).map(|(id, _)| *id)
    }

    /// A body that has been arriving since before this time.
    fn slowest_body(&self, since: u64) -> Option<u64> {
        let receiving = self.by_id.iter().filter(|(_, connection)| connection.receiving.load(Relaxed) > 0);
        let with_since = receiving.map(|(id, connection)| (connection.receiving_since.load(Relaxed), *id));
        with_since.filter(|(began, _)| *began <= since).min().map(|(_, id)| id)
    }

    fn remove(&mut self, id: u64) -> Arc<Connection> {
        let connection = self.by_id.remove(&id).expect("the id was found under the same lock");
        if let Some(client) = connection.client
            && let Some(count) = self.by_client.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&client);
            }
        }
        connection
    }
}

impl Slot {
    /// The address at the other end.
    pub fn peer(&self) -> IpAddr {
        self.0.connection.peer
    }

    /// Marks a request as in progress until the returned value is dropped.
    pub fn begin_request(&self) -> InProgress {
        self.0.connection.requests.fetch_add(1, Relaxed);
        InProgress(Arc::clone(&self.0))
    }

    /// Marks the body of a request as arriving until the returned value is dropped.
    pub fn begin_body(&self) -> Receiving {
        let Held { connection, connections, .. } = &*self.0;
        connection.receiving_since.store(millis(connections.started), Relaxed);
        connection.receiving.fetch_add(1, Relaxed);
        Receiving(Arc::clone(&self.0))
    }

    /// Completes when the connection has to end.
    pub async fn ended(&self) -> End {
        let Held { connection, connections, .. } = &*self.0;
        connection.ended.cancelled().await;
        if connections.stop.is_cancelled() { End::Stopped } else { End::Evicted }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        if open.by_id.contains_key(&self.id) {
            open.remove(self.id);
        }
        drop(open);
        self.connections.freed.notify_one();
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let Held { connection, connections, .. } = &*self.0;
        connection.idle_since.store(millis(connections.started), Relaxed);
        connection.requests.fetch_sub(1, Relaxed);
        connections.freed.notify_one();
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.connection.receiving.fetch_sub(1, Relaxed);
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_client_cannot_have_more_connections_than_its_limit() {
        let proxies = vec!["10.1.0.0/16".parse().unwrap()];
        let connections = Connections::new(100, 2, proxies, CancellationToken::new());
        let open = async |text| connections.open(address(text)).await;
        let first = open("203.0.113.1").await.unwrap();
        let _second = open("::ffff:203.0.113.1").await.unwrap();
        assert_eq!(open("203.0.113.1").await.unwrap_err(), TooManyOfClient);
        let _others = [open("203.0.113.2").await.unwrap(), open("2001:db8::1").await.unwrap()];
        let _same_network = open("2001:db8::2").await.unwrap();
        assert_eq!(open("2001:db8::3").await.unwrap_err(), TooManyOfClient, "a host has a /64");
        let mut exempt = Vec::new();
        for text in ["127.0.0.1", "10.1.2.3", "::1"].into_iter().cycle().take(12) {
            exempt.push(open(text).await.unwrap());
        }
        drop(first);
        assert!(open("203.0.113.1").await.is_ok(), "the slot is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_is_closed_for_a_new_one() {
        let connections = Connections::new(2, 9, Vec::new(), CancellationToken::new());
        let (busy, idle) = (
            connections.open(address("203.0.113.1")).await.unwrap(),
            connections.open(address("203.0.113.2")).await.unwrap(),
        );
        let request = busy.begin_request();
        let third = connections.open(address("203.0.113.3")).await.unwrap();
        assert_eq!(idle.ended().await, End::Evicted);
        let second = Duration::from_secs(1);
        assert!(timeout(second, busy.ended()).await.is_err(), "a request is in progress");
        drop(request);
        tokio::time::sleep(second).await;
        drop(third.begin_request());
        let _fourth = connections.open(address("203.0.113.4")).await.unwrap();
        busy.ended().await;
        assert!(timeout(second, third.ended()).await.is_err(), "its request ended later");
    }

    #[tokio::test(start_paused = true)]
    async fn the_stop_ends_every_connection_without_the_haste_of_an_eviction() {
        let stop = CancellationToken::new();
        let connections = Connections::new(1, 9, Vec::new(), stop.clone());
        let open = connections.open(address("203.0.113.1")).await.unwrap();
        assert!(timeout(Duration::from_secs(1), open.ended()).await.is_err());
        stop.cancel();
        assert_eq!(open.ended().await, End::Stopped);
        let late = Connections::new(1, 9, Vec::new(), stop).open(address("203.0.113.1")).await.unwrap();
        assert_eq!(late.ended().await, End::Stopped, "accepted after the stop");
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_idle_connection_the_slowest_body_is_cut_off_and_no_request_that_has_arrived() {
        let connections = Connections::new(3, 9, Vec::new(), CancellationToken::new());
        let open = async || connections.open(address("203.0.113.1")).await.unwrap();
        let (arrived, slow, slower) = (open().await, open().await, open().await);
        let _requests = [&arrived, &slow, &slower].map(Slot::begin_request);
        drop(arrived.begin_body());
        let _slower_body = slower.begin_body();
        tokio::time::sleep(SLOW_BODY / 2).await;
        let _slow_body = slow.begin_body();
        let began = Instant::now();
        let _fourth = timeout(10 * SLOW_BODY, open()).await.expect("a slot is freed");
        slower.ended().await;
        assert!(began.elapsed() <= SLOW_BODY, "{:?}", began.elapsed());
        for kept in [&arrived, &slow] {
            assert!(timeout(Duration::from_millis(1), kept.ended()).await.is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_waits_while_every_slot_has_a_request_in_progress() {
        let connections = Connections::new(1, 9, Vec::new(), CancellationToken::new());
        let slot = connections.open(address("203.0.113.1")).await.unwrap();
        let request = slot.begin_request();
        let next = connections.open(address("203.0.113.2"));
        let mut next = std::pin::pin!(next);
        assert!(timeout(Duration::from_secs(1), next.as_mut()).await.is_err());
        drop(request);
        assert!(timeout(Duration::from_secs(1), next).await.unwrap().is_ok());
        slot.ended().await;
    }
}
