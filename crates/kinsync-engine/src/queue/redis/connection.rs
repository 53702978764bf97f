//! Connections to Redis, and its errors in terms of the queue.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError, RedisResult,
    ServerErrorKind,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use secrecy::{ExposeSecret, SecretString};

use crate::queue::Error;

/// Longest time that a response takes, unless the command itself waits.
const RESPONSE: Duration = Duration::from_secs(5);
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest pause between two attempts to connect.
const RECONNECT: Duration = Duration::from_secs(1);

/// A connection that is opened when it is first used, and again after it was lost.
///
/// The manager of the library opens a connection again after an error of the network only. After a timeout, which may be the only
/// sign of a lost connection, and after a refused login this one replaces the manager.
pub(super) struct Connection {
    client: Client,
    /// The number increases with each manager.
    manager: Mutex<(u64, ConnectionManager)>,
    /// Host and port, for messages.
    address: String,
}

impl Connection {
    /// # Errors
    /// [`Error::Refused`] if the address cannot be understood.
    pub(super) fn new(url: &SecretString) -> Result<Self, Error> {
        let wrong = |error: RedisError| {
            Error::Refused {
            hint: "the address of the Redis server cannot be understood; write redis://HOST:PORT, rediss:// for TLS".into(),
            source: Some(Box::new(error)),
        }
        };
        let info = url.expose_secret().into_connection_info().map_err(wrong)?;
        let address = info.addr().to_string();
        let client = Client::open(info).map_err(wrong)?;
        let manager = Mutex::new((0, manager(&client).map_err(wrong)?));
        Ok(Self { client, manager, address })
    }

    /// Runs a command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let (number, mut manager) = self.manager().clone();
        command.query_async(&mut manager).await.map_err(|error| self.failed(number, &error))
    }

    /// Runs several commands in one round trip.
    pub(super) async fn run_all<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Failure> {
        let (number, mut manager) = self.manager().clone();
        commands.query_async(&mut manager).await.map_err(|error| self.failed(number, &error))
    }

    fn failed(&self, number: u64, error: &RedisError) -> Failure {
        let is_usable = matches!(error.kind(), ErrorKind::Server(kind) if kind != ServerErrorKind::ReadOnly)
            && !LOGIN.contains(&error.code().unwrap_or_default());
        let mut current = self.manager();
        // Other calls may have failed with the same manager.
        if !is_usable
            && current.0 == number
            && let Ok(manager) = manager(&self.client)
        {
            *current = (number + 1, manager);
        }
        self.failure(error)
    }

    fn manager(&self) -> MutexGuard<'_, (u64, ConnectionManager)> {
        self.manager.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, error: &RedisError) -> Failure {
        let text = error.to_string();
        let code = error.code().unwrap_or_default();
        let kind = match (code, error.kind()) {
            ("NOGROUP", _) => Kind::NoGroup,
            ("OOM", _) => Kind::Unavailable("it has no memory left: raise `maxmemory`"),
            ("MISCONF", _) => Kind::Unavailable("it cannot write its file: see its log"),
            ("WRONGTYPE", _) => {
                Kind::Refused("a key of another program has the name of the queue: set another prefix")
            }
            ("CLUSTERDOWN" | "MOVED" | "ASK", _) => {
                Kind::Refused("it is a node of a Redis Cluster, which is not supported: use a single server")
            }
            ("NOPERM", _) | (_, ErrorKind::AuthenticationFailed) => Kind::Refused(USER),
            (code, _) if LOGIN.contains(&code) => Kind::Refused(USER),
            (_, ErrorKind::Server(ServerErrorKind::ReadOnly)) => Kind::Unavailable("it is a replica"),
            // A large command without the password.
            _ if text.contains("unauthenticated") => {
                Kind::Refused("it requires a password: write it into the address")
            }
            _ => Kind::Unavailable("see its log, and whether this machine reaches it"),
        };
        Failure { address: self.address.clone(), kind, text }
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
    address: String,
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
