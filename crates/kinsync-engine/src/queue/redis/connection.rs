//! Connections to Redis, and its errors in terms of the queue.

use std::{sync::Arc, time::Duration};

use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, ServerErrorKind,
    aio::{ConnectionManager, ConnectionManagerConfig},
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::address::{Address, Sentinels};
use crate::queue::{CERTIFICATE, Error, apart};

/// Longest time that a response takes, unless the command itself waits.
const RESPONSE: Duration = Duration::from_secs(5);
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest pause between two attempts to connect.
const RECONNECT: Duration = Duration::from_secs(1);
/// Longest time to ask the sentinels.
const ASK: Duration = Duration::from_secs(3);
/// Pause after the sentinels named no primary; calls meanwhile fail at once.
const PAUSE: Duration = Duration::from_millis(500);

/// A connection that is opened when it is first used, and again after it was lost.
///
/// The manager of the library opens a connection again after an error of the network only, and to the same server. After a timeout,
/// which may be the only sign of a lost connection, after a refused login and after the server became a replica this one replaces
/// the manager. With sentinels it asks them for the primary each time.
pub(super) struct Connection {
    /// Name of the primary that sentinels watch.
    watched: Option<String>,
    state: Mutex<State>,
}

struct State {
    source: Source,
    /// Increases with each manager.
    number: u64,
    live: Option<Live>,
    /// The last failure, and until when calls fail with it.
    failed: Option<(Instant, Failure)>,
}

enum Source {
    Server(Client),
    Sentinels { sentinel: Sentinel, name: String, login: SentinelNodeConnectionInfo },
}

/// A manager.
#[derive(Clone)]
struct Live {
    number: u64,
    manager: ConnectionManager,
    /// Host and port, for messages.
    address: Arc<str>,
}

impl Connection {
    /// # Errors
    /// [`Error::Refused`] if the address cannot be used.
    pub(super) fn new(address: Address) -> Result<Self, Error> {
        let wrong = |error: RedisError| Error::Refused {
            hint: "the address of Redis cannot be used".into(),
            source: Some(Box::new(error)),
        };
        let (source, watched) = match address {
            Address::Server(server) => (Source::Server(Client::open(server).map_err(wrong)?), None),
            Address::Sentinels(Sentinels { addresses, name, login, .. }) => {
                let sentinel = Sentinel::build(addresses).map_err(wrong)?;
                (Source::Sentinels { sentinel, name: name.clone(), login }, Some(name))
            }
        };
        let state = State { source, number: 0, live: None, failed: None };
        Ok(Self { watched, state: Mutex::new(state) })
    }

    /// Returns the name of the primary that sentinels watch, if they do.
    pub(super) fn watched(&self) -> Option<&str> {
        self.watched.as_deref()
    }

    /// Returns host and port of the server.
    pub(super) async fn address(&self) -> Result<Arc<str>, Failure> {
        Ok(self.live().await?.address)
    }

    /// Runs a command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let mut live = self.live().await?;
        match command.query_async(&mut live.manager).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.failed(&live, &error).await),
        }
    }

    /// Runs several commands in one round trip.
    pub(super) async fn run_all<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Failure> {
        let mut live = self.live().await?;
        match commands.query_async(&mut live.manager).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.failed(&live, &error).await),
        }
    }

    async fn live(&self) -> Result<Live, Failure> {
        let mut state = self.state.lock().await;
        if let Some(live) = &state.live {
            return Ok(live.clone());
        }
        if let Some((until, failure)) = &state.failed
            && Instant::now() < *until
        {
            return Err(failure.clone());
        }
        let number = state.number + 1;
        match state.source.open(number).await {
            Ok(live) => {
                state.number = number;
                Ok(state.live.insert(live).clone())
            }
            Err(failure) => {
                state.failed = Some((Instant::now() + apart(PAUSE), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn failed(&self, live: &Live, error: &RedisError) -> Failure {
        let is_usable = matches!(error.kind(), ErrorKind::Server(kind) if kind != ServerErrorKind::ReadOnly)
            && !LOGIN.contains(&error.code().unwrap_or_default());
        if !is_usable {
            // Other calls may have failed with the same manager.
            _ = self.state.lock().await.live.take_if(|current| current.number == live.number);
        }
        Failure::of(&live.address, error)
    }
}

impl Source {
    async fn open(&mut self, number: u64) -> Result<Live, Failure> {
        let found;
        let client = match self {
            Self::Server(client) => client,
            Self::Sentinels { sentinel, name, login } => {
                let place = || Arc::from(format!("the primary `{name}`"));
                let asked = timeout(ASK, sentinel.async_master_for(name, Some(login))).await;
                found = match asked {
                    Ok(found) => found.map_err(|error| Failure::of(&place(), &error))?,
                    Err(elapsed) => return Err(Failure::silent(place(), elapsed.to_string())),
                };
                &found
            }
        };
        let address = Arc::from(client.get_connection_info().addr().to_string());
        let manager = manager(client).map_err(|error| Failure::of(&address, &error))?;
        Ok(Live { number, manager, address })
    }
}

/// Codes of a refused login.
const LOGIN: [&str; 2] = ["NOAUTH", "WRONGPASS"];
const USER: &str =
    "it refuses the user: check user and password in the address, and the permissions of the user";

fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(RESPONSE))
        .set_connection_timeout(Some(CONNECT))
        .set_max_delay(RECONNECT)
        .set_number_of_retries(1);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// A failed command.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    address: Arc<str>,
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The consumer group does not exist: the server lost its data, or the stream is new.
    NoGroup,
    Unavailable(&'static str),
    Refused(&'static str),
}

impl Failure {
    fn of(address: &Arc<str>, error: &RedisError) -> Self {
        let text = error.to_string();
        let code = error.code().unwrap_or_default();
        let kind = match (code, error.kind()) {
            ("NOGROUP", _) => Kind::NoGroup,
            ("OOM", _) => Kind::Unavailable("it has no memory left: raise `maxmemory`"),
            ("MISCONF", _) => Kind::Unavailable("it cannot write its file: see its log"),
            ("WRONGTYPE", _) => {
                Kind::Refused("a key of another program has the name of the queue: set another prefix")
            }
            ("NOREPLICAS", _) => Kind::Unavailable("it has fewer replicas than `min-replicas-to-write`"),
            (_, ErrorKind::MasterNameNotFoundBySentinel) => Kind::Unavailable(
                "the sentinels know none of this name that is up: check the name in the address",
            ),
            ("CLUSTERDOWN" | "MOVED" | "ASK", _) => {
                Kind::Refused("it is a node of a Redis Cluster, which is not supported: use a single server")
            }
            ("NOPERM", _) | (_, ErrorKind::AuthenticationFailed) => Kind::Refused(USER),
            // Redis 7.0 has no code for it.
            _ if text.contains("The user executing the script can't") => Kind::Refused(USER),
            (code, _) if LOGIN.contains(&code) => Kind::Refused(USER),
            (_, ErrorKind::Server(ServerErrorKind::ReadOnly)) => Kind::Unavailable("it is a replica"),
            // A large command without the password.
            _ if text.contains("unauthenticated") => {
                Kind::Refused("it requires a password: write it into the address")
            }
            _ if text.contains("certificate") => Kind::Refused(CERTIFICATE),
            _ => Kind::Unavailable("see its log, and whether this machine reaches it"),
        };
        Self { address: Arc::clone(address), kind, text }
    }

    fn silent(address: Arc<str>, text: String) -> Self {
        Self { address, kind: Kind::Unavailable("the sentinels do not answer"), text }
    }

    /// Whether the consumer group does not exist.
    pub(super) fn is_no_group(&self) -> bool {
        self.kind == Kind::NoGroup
    }

    /// Whether the consumer group to create exists: another process created it.
    pub(super) fn is_group_known(&self) -> bool {
        self.text.contains("BUSYGROUP")
    }

    /// The number of replicas that have the entry is too small.
    pub(super) fn too_few_replicas(wanted: u32, have: u32) -> Error {
        let hint = format!("{have} replicas of Redis confirmed the entry, {wanted} are required");
        let source = "see `INFO replication` of the server".into();
        Error::Unavailable { hint, source }
    }
}

impl From<Failure> for Error {
    fn from(Failure { address, kind, text }: Failure) -> Self {
        match kind {
            Kind::Refused(hint) => {
                Self::Refused { hint: format!("Redis at {address}: {hint}"), source: Some(text.into()) }
            }
            Kind::Unavailable(hint) => {
                Self::Unavailable { hint: format!("Redis at {address} failed; {hint}"), source: text.into() }
            }
            Kind::NoGroup => {
                let hint = format!("Redis at {address} lost the consumer group; it is made again");
                Self::Unavailable { hint, source: text.into() }
            }
        }
    }
}
