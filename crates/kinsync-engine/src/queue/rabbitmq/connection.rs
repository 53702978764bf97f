//! Connections to RabbitMQ, the declared queues, and errors in terms of the queue.

use std::{collections::HashMap, sync::Arc, time::Duration};

use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind,
    options::QueueDeclareOptions,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
    types::{AMQPValue, FieldTable},
    uri::AMQPUri,
};
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Config;
use crate::queue::{CERTIFICATE, Error, apart};

/// Longest time to wait for a connection to one host and for the declaration of the queues there.
const CONNECT: Duration = Duration::from_secs(3);
/// Age of an attempt to connect at which another one to the same host begins. Doubles with each up to [`MAX_PATIENCE`]: the library
/// keeps the thread of an attempt until the host answers.
const PATIENCE: Duration = Duration::from_mins(5);
const MAX_PATIENCE: Duration = Duration::from_hours(1);
/// Pause after no host could be reached; calls meanwhile fail at once.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest time for an answer of the server.
pub(super) const RESPONSE: Duration = Duration::from_secs(5);
/// Longest time to close a connection.
const CLOSE: Duration = Duration::from_secs(1);

/// The queues on the server.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    /// Holds the entries.
    pub(super) queue: String,
    /// Receives entries that the server removed from the queue: after a limit of deliveries or a time to live of a policy.
    pub(super) returned: String,
    /// Deliveries of one entry after which the server moves it.
    pub(super) delivery_limit: u32,
}

impl Topology {
    pub(super) fn of(Config { prefix, delivery_limit, .. }: &Config) -> Self {
        let name = |name: &str| format!("{prefix}.{name}");
        Self { queue: name("queue"), returned: name("returned"), delivery_limit: *delivery_limit }
    }
}

/// A connection that is opened when it is first used, and again after it was lost, to any of the hosts.
pub(super) struct Link {
    hosts: Vec<AMQPUri>,
    topology: Topology,
    /// Whether each new connection declares the queues.
    declares: bool,
    state: Mutex<State>,
    /// Opens connections, and closes those that were given up.
    tasks: TaskTracker,
    /// Ends the attempts to connect.
    closed: CancellationToken,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    generation: u64,
    /// The host that is tried first.
    first: usize,
    /// The last failure, and until when calls fail with it.
    failed: Option<(Instant, Failure)>,
    /// Attempts to connect, by the position of the host. The library has a thread for each, which a cancellation does not end, so an
    /// attempt that takes too long goes on, and the next call waits for it again.
    attempts: HashMap<usize, Attempt>,
}

type Opened = (Arc<Connection>, Channel);

struct Attempt {
    began: Instant,
    patience: Duration,
    /// `None` if the queue was closed.
    connecting: JoinHandle<Option<lapin::Result<Opened>>>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.connecting.abort();
    }
}

/// An open connection with one channel.
#[derive(Clone)]
pub(super) struct Live {
    connection: Arc<Connection>,
    pub(super) channel: Channel,
    /// Increases with each connection.
    pub(super) generation: u64,
    /// Host and port, for messages.
    pub(super) address: Arc<str>,
    pub(super) opened: Instant,
}

impl Live {
    fn is_usable(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Whether the server stopped reading from publishers.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(super) fn failure(&self, error: &lapin::Error) -> Failure {
        Failure::of(&self.address, error)
    }

    pub(super) fn unavailable(&self, hint: &'static str, text: impl Into<String>) -> Failure {
        Failure { address: Arc::clone(&self.address), kind: Kind::Unavailable(hint), text: text.into() }
    }

    pub(super) fn rejected(&self, hint: &'static str) -> Failure {
        Failure { address: Arc::clone(&self.address), kind: Kind::Rejected(hint), text: "basic.nack".into() }
    }

    /// Waits for an answer of the server, for a limited time.
    pub(super) async fn within<T>(
        &self,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout(RESPONSE, answer).await {
            Ok(answer) => answer.map_err(|error| self.failure(&error)),
            Err(elapsed) => Err(self.unavailable(SILENT, elapsed.to_string())),
        }
    }
}

impl Link {
    /// Cancelling `closed` ends the attempts to connect; there are no further ones then.
    pub(super) fn new(
        hosts: Vec<AMQPUri>,
        topology: Topology,
        tasks: TaskTracker,
        closed: CancellationToken,
    ) -> Self {
        Self { hosts, topology, declares: true, state: Mutex::default(), tasks, closed }
    }

    /// A connection that declares nothing.
    pub(super) fn examining(hosts: Vec<AMQPUri>, topology: Topology) -> Self {
        let (tasks, closed) = (TaskTracker::new(), CancellationToken::new());
        Self { declares: false, ..Self::new(hosts, topology, tasks, closed) }
    }

    /// Declares the queues.
    pub(super) async fn declare(&self, live: &Live) -> Result<(), Failure> {
        live.within(declare(&self.topology, &live.channel)).await
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Returns the open connection, or opens one: to the last host that answered, then to the others.
    pub(super) async fn live(&self) -> Result<Live, Failure> {
        let mut state = self.state.lock().await;
        if let Some(live) = state.live.as_ref().filter(|live| live.is_usable()) {
            return Ok(live.clone());
        }
        if let Some((until, failure)) = &state.failed
            && Instant::now() < *until
        {
            return Err(failure.clone());
        }
        state.live = None;
        let mut failures = Vec::with_capacity(self.hosts.len());
        for offset in 0..self.hosts.len() {
            let at = (state.first + offset) % self.hosts.len();
            match self.open(at, &mut state).await {
                Ok(live) => {
                    state.generation = live.generation;
                    (state.first, state.failed) = (at, None);
                    // They would become connections that nothing uses, and that may be lost when one is needed.
                    state.attempts.clear();
                    return Ok(state.live.insert(live).clone());
                }
                Err(failure) => failures.push(failure),
            }
        }
        // A host that answers and refuses says more than those that do not answer.
        let refused = failures.iter().position(Failure::is_refusal).unwrap_or(failures.len() - 1);
        let failure = failures.swap_remove(refused);
        state.failed = Some((Instant::now() + apart(PAUSE), failure.clone()));
        Err(failure)
    }

    /// Returns the number of the open connection.
    pub(super) async fn generation(&self) -> Option<u64> {
        let state = self.state.lock().await;
        state.live.as_ref().filter(|live| live.is_usable()).map(|live| live.generation)
    }

    /// Gives up the connection of this generation; the next call opens another one.
    pub(super) async fn replace(&self, generation: u64) {
        let mut state = self.state.lock().await;
        if let Some(live) = state.live.take_if(|live| live.generation == generation) {
            self.tasks.spawn(close(live));
        }
    }

    /// Closes the connection, if one is open.
    pub(super) async fn close(&self) {
        let live = self.state.lock().await.live.take();
        if let Some(live) = live {
            close(live).await;
        }
    }

    /// Waits for an attempt to connect to the host at this position. Cancel safe.
    async fn open(&self, at: usize, state: &mut State) -> Result<Live, Failure> {
        let host = &self.hosts[at];
        let address = Arc::from(format!("{}:{}", host.authority.host, host.authority.port));
        let generation = state.generation + 1;
        let attempt = state.attempts.entry(at).or_insert_with(|| self.attempt(host, PATIENCE));
        if attempt.began.elapsed() >= attempt.patience {
            *attempt = self.attempt(host, (attempt.patience * 2).min(MAX_PATIENCE));
        }
        let opened = timeout(CONNECT, &mut attempt.connecting).await;
        if opened.is_ok() {
            state.attempts.remove(&at);
        }
        match opened {
            Ok(Ok(Some(Ok((connection, channel))))) => {
                let opened = Instant::now();
                let live = Live { connection, channel, generation, address: Arc::clone(&address), opened };
                // It may have been lost since it was opened, while nothing waited for it.
                if live.is_usable() { Ok(live) } else { Err(Failure::silent(address, &"connection lost")) }
            }
            Ok(Ok(Some(Err(error)))) => Err(Failure::of(&address, &error)),
            Ok(Ok(None)) => Err(Failure::silent(address, &Error::Closed)),
            Ok(Err(ended)) => Err(Failure::silent(address, &ended)),
            Err(elapsed) => Err(Failure::silent(address, &elapsed)),
        }
    }

    fn attempt(&self, host: &AMQPUri, patience: Duration) -> Attempt {
        let connect = connect(host.clone(), self.declares.then(|| self.topology.clone()));
        let connecting = self.tasks.spawn(self.closed.clone().run_until_cancelled_owned(connect));
        Attempt { began: Instant::now(), patience, connecting }
    }
}

async fn connect(mut host: AMQPUri, declared: Option<Topology>) -> lapin::Result<Opened> {
    host.query.connection_timeout.get_or_insert(CONNECT.as_millis().try_into().unwrap_or(u64::MAX));
    let named = ConnectionProperties::default().with_connection_name("kinsync".into());
    let connection = Connection::connect_uri(host, named).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await?;
    if let Some(topology) = declared {
        declare(&topology, &channel).await?;
    }
    Ok((Arc::new(connection), channel))
}

/// Declares the queues. Changes nothing where they exist.
async fn declare(topology: &Topology, channel: &Channel) -> lapin::Result<()> {
    let Topology { queue, returned, delivery_limit } = topology;
    let limit = i64::from(*delivery_limit);
    let mut arguments = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    arguments.insert("x-queue-type".into(), text("quorum"));
    // Without a limit RabbitMQ 4 removes an entry after 20 deliveries.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
    // A policy may bound the queue: new entries are refused then, never the oldest dropped.
    arguments.insert("x-overflow".into(), text("reject-publish"));
    let options = QueueDeclareOptions::durable();
    let mut unlimited = arguments.clone();
    unlimited.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(i64::from(u32::MAX)));
    channel.queue_declare(returned.as_str().into(), options, unlimited).await?;
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(returned));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    channel.queue_declare(queue.as_str().into(), options, arguments).await?;
    Ok(())
}

async fn close(live: Live) {
    // What the server does not answer in time ends with the heartbeat.
    _ = timeout(CLOSE, live.connection.close(200, "closed".into())).await;
}

const SILENT: &str = "it does not answer: see its log, and whether this machine reaches it";
const USER: &str = "it refuses the user: check user and password in the address, and the permissions of the user on the virtual \
                    host";

/// A failed call.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    address: Arc<str>,
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Unavailable(&'static str),
    /// The server rejected one entry, on a connection that works.
    Rejected(&'static str),
    Refused(&'static str),
    /// A queue does not exist.
    Missing,
}

impl Failure {
    fn of(address: &Arc<str>, error: &lapin::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::ProtocolError(error) => match error.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Kind::Refused(USER),
                AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Kind::Refused(
                    "a queue of this name exists with other properties: set another KINSYNC_QUEUE_PREFIX, or delete the queue \
                     when it is empty",
                ),
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Kind::Refused(
                    "the virtual host does not exist, or the user has no access to it: see the path of the address",
                ),
                AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Kind::Missing,
                _ => Kind::Unavailable("see its log"),
            },
            ErrorKind::AuthProviderError(_) => Kind::Refused(USER),
            _ if error.to_string().contains("certificate") => Kind::Refused(CERTIFICATE),
            _ => Kind::Unavailable("see its log, and whether this machine reaches it"),
        };
        Self { address: Arc::clone(address), kind, text: error.to_string() }
    }

    /// A host that did not answer in time.
    fn silent(address: Arc<str>, cause: &impl ToString) -> Self {
        Self { address, kind: Kind::Unavailable(SILENT), text: cause.to_string() }
    }

    /// Whether a new connection may succeed where this one failed.
    pub(super) fn ends_connection(&self) -> bool {
        !matches!(self.kind, Kind::Rejected(_))
    }

    /// Whether a queue does not exist.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.kind, Kind::Missing)
    }

    fn is_refusal(&self) -> bool {
        matches!(self.kind, Kind::Refused(_))
    }
}

impl From<Failure> for Error {
    fn from(Failure { address, kind, text }: Failure) -> Self {
        match kind {
            Kind::Missing => Self::Unavailable {
                hint: format!("a queue of RabbitMQ at {address} was deleted; it is declared again"),
                source: text.into(),
            },
            Kind::Refused(hint) => {
                Self::Refused { hint: format!("RabbitMQ at {address}: {hint}"), source: Some(text.into()) }
            }
            Kind::Unavailable(hint) | Kind::Rejected(hint) => Self::Unavailable {
                hint: format!("RabbitMQ at {address} failed; {hint}"),
                source: text.into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use kinsync_testing::rabbitmq::TestRabbitmq;
    use tokio::net::TcpListener;

    use super::*;

    /// A link to hosts at these ports.
    fn link(ports: &[u16]) -> Link {
        let host = |port| format!("amqp://127.0.0.1:{port}").parse().expect("it is an address");
        let hosts = ports.iter().map(host).collect();
        let topology = Topology::of(&Config::new("amqp://localhost".into()));
        Link::new(hosts, topology, TaskTracker::new(), CancellationToken::new())
    }

    // The clock of the test advances while the host does not answer.
    #[tokio::test(start_paused = true)]
    async fn attempts_to_connect_to_a_silent_host_are_few_and_end_when_the_queue_is_closed() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let link = link(&[silent.local_addr().expect("it is bound").port()]);
        for (after, patience) in [(Duration::ZERO, 5), (PATIENCE, 10), (PATIENCE, 10), (PATIENCE, 20)] {
            tokio::time::advance(after).await;
            assert!(link.live().await.is_err());
            assert_eq!(link.state.lock().await.attempts[&0].patience, Duration::from_mins(patience));
            tokio::task::yield_now().await;
            assert_eq!(link.tasks.len(), 1, "what was abandoned ended");
        }
        link.closed.cancel();
        link.tasks.close();
        timeout(CONNECT, link.tasks.wait()).await.expect("the attempts end");
        assert!(link.live().await.is_err());
        assert!(link.tasks.is_empty(), "no attempt begins when the queue is closed");
    }

    #[tokio::test]
    async fn a_connection_with_a_channel_that_the_server_closed_is_not_used_again() {
        let link = link(&[TestRabbitmq::shared().port()]);
        let live = link.live().await.expect("the server answers");
        let options = QueueDeclareOptions::durable().passive();
        let declared = live.channel.queue_declare("no queue".into(), options, FieldTable::default());
        assert!(live.within(declared).await.is_err_and(|failure| failure.is_missing()));
        assert_eq!(link.generation().await, None);
        let next = link.live().await.expect("the server answers");
        assert_eq!(next.generation, live.generation + 1);
        assert_eq!(link.generation().await, Some(next.generation), "it is used again");
        link.close().await;
    }

    #[tokio::test]
    async fn an_attempt_is_given_up_when_another_host_answers() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let silent_port = silent.local_addr().expect("it is bound").port();
        let link = link(&[silent_port, TestRabbitmq::shared().port()]);
        assert!(link.live().await.is_ok());
        assert!(link.state.lock().await.attempts.is_empty());
        timeout(CONNECT, async {
            while !link.tasks.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the attempt ends");
        link.close().await;
    }
}
