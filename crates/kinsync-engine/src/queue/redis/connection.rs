//! Connections to Redis, and its errors in terms of the queue.

use std::time::Duration;

use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError, ServerErrorKind,
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

/// A connection that is opened when it is first used, and again after it was lost. Clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    manager: ConnectionManager,
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
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE))
            .set_connection_timeout(Some(CONNECT))
            .set_max_delay(RECONNECT)
            .set_number_of_retries(1);
        let client = Client::open(info).map_err(wrong)?;
        let manager = ConnectionManager::new_lazy_with_config(client, config).map_err(wrong)?;
        Ok(Self { manager, address })
    }

    /// Runs a command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        command.query_async(&mut self.manager.clone()).await.map_err(|error| self.failure(&error))
    }

    /// Runs several commands in one round trip.
    pub(super) async fn run_all<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Failure> {
        commands.query_async(&mut self.manager.clone()).await.map_err(|error| self.failure(&error))
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
            ("NOAUTH" | "WRONGPASS" | "NOPERM", _) | (_, ErrorKind::AuthenticationFailed) => Kind::Refused(
                "it refuses the user: check user and password in the address, and the permissions of the user",
            ),
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
