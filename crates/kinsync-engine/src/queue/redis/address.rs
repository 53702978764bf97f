//! The address of the server: its own, or those of its sentinels.

use redis::{ConnectionInfo, IntoConnectionInfo, TlsMode, sentinel::SentinelNodeConnectionInfo};
use secrecy::{ExposeSecret, SecretString};

use crate::queue::{Error, Source};

/// Port of a sentinel, unless the address names one.
const PORT: &str = "26379";

/// Where the server is.
#[derive(Clone)]
pub(super) enum Address {
    Server(ConnectionInfo),
    Sentinels(Sentinels),
}

/// Sentinels, which return the address of the primary.
#[derive(Clone)]
pub(super) struct Sentinels {
    pub(super) addresses: Vec<ConnectionInfo>,
    /// Name of the primary.
    pub(super) name: String,
    /// How to log in to it.
    pub(super) login: SentinelNodeConnectionInfo,
    /// Number of the database.
    db: i64,
}

impl Address {
    /// Returns the number of the database.
    pub(super) fn db(&self) -> i64 {
        match self {
            Self::Server(server) => server.redis_settings().db(),
            Self::Sentinels(sentinels) => sentinels.db,
        }
    }
}

/// Checks the address of a [`Config`](super::Config) as [`RedisQueue::new`](super::RedisQueue::new) does.
///
/// # Errors
/// [`Error::Refused`] if it cannot be understood.
pub fn check_address(url: &SecretString) -> Result<(), Error> {
    parse(url).map(drop)
}

/// Reads `redis://USER:PASSWORD@HOST:PORT/DB` or `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/NAME/DB`, with `rediss` for TLS.
///
/// # Errors
/// [`Error::Refused`] if it cannot be understood.
pub(super) fn parse(url: &SecretString) -> Result<Address, Error> {
    let wrong = |source| {
        Error::Refused {
        hint: "the address of Redis cannot be understood; write redis://HOST:PORT, or redis+sentinel://HOST:PORT,HOST:PORT/NAME with \
               the name of the primary, and rediss for TLS; Redis Cluster is not supported"
            .into(),
        source: Some(source),
    }
    };
    let url = url.expose_secret();
    let parsed = match url.split_once("://") {
        Some(("redis+sentinel", rest)) => sentinels("redis", rest).map(Address::Sentinels),
        Some(("rediss+sentinel", rest)) => sentinels("rediss", rest).map(Address::Sentinels),
        Some(("redis" | "rediss", rest)) => server(url, rest).map(Address::Server),
        _ => Err("the scheme is none of these".into()),
    };
    parsed.map_err(wrong)
}

fn server(url: &str, rest: &str) -> Result<ConnectionInfo, Source> {
    let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
    // To the library, a list is the name of one host.
    if hosts.contains(',') {
        return Err("it names several servers".into());
    }
    Ok(url.into_connection_info()?)
}

fn sentinels(scheme: &str, rest: &str) -> Result<Sentinels, Source> {
    let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
    let (user, place) =
        place.rsplit_once('@').map_or((String::new(), place), |(user, place)| (format!("{user}@"), place));
    let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
    let (name, db) = path.split_once('/').unwrap_or((path, ""));
    if name.is_empty() {
        return Err("the name of the primary is missing".into());
    }
    let sentinel_user = sentinel_user(options)?;
    let sentinel = |host: &str| {
        if host.is_empty() {
            return Err(Source::from("a host is missing"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = if has_port { String::new() } else { format!(":{PORT}") };
        Ok(format!("{scheme}://{sentinel_user}{host}{port}").into_connection_info()?)
    };
    let addresses = hosts.split(',').map(sentinel).collect::<Result<_, _>>()?;
    // Only its login is used: the sentinels return the host.
    let server = format!("{scheme}://{user}127.0.0.1/{db}").into_connection_info()?;
    let login =
        SentinelNodeConnectionInfo::default().set_redis_connection_info(server.redis_settings().clone());
    let login = if scheme == "rediss" { login.set_tls_mode(TlsMode::Secure) } else { login };
    Ok(Sentinels { addresses, name: name.into(), login, db: server.redis_settings().db() })
}

/// User and password of the sentinels as in an address, from the options of it.
fn sentinel_user(options: &str) -> Result<String, Source> {
    let (mut user, mut password) = ("", "");
    for option in options.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("sentinel_username", value)) => user = value,
            Some(("sentinel_password", value)) => password = value,
            _ => return Err("the only options are sentinel_username and sentinel_password".into()),
        }
    }
    Ok(if password.is_empty() { String::new() } else { format!("{user}:{password}@") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<Address, Error> {
        parse(&url.into())
    }

    #[test]
    fn sentinels_share_one_login_and_the_primary_has_another() {
        let url = "rediss+sentinel://ada:se%40cret@a.internal,[::1]:5000/main/3?sentinel_username=eve&sentinel_password=ot%2Fher";
        let Ok(Address::Sentinels(Sentinels { addresses, name, login, .. })) = parsed(url) else {
            panic!("{url} is understood")
        };
        let (sentinels, login) = (format!("{addresses:?}"), format!("{login:?}"));
        for part in ["\"a.internal\"", "26379", "\"::1\"", "5000", "\"eve\"", "TcpTls"] {
            assert!(sentinels.contains(part), "{part} in {sentinels}");
        }
        for part in ["Secure", "\"ada\"", "db: 3"] {
            assert!(login.contains(part), "{part} in {login}");
        }
        assert_eq!(name, "main");
    }

    #[test]
    fn a_wrong_address_is_refused_without_its_password() {
        for wrong in [
            "redis",
            "redis://u:secret@",
            "redis://u:secret@a:port",
            "redis://u:secret@a/first",
            "redis://u:secret@a,b",
            "redis+cluster://u:secret@a",
            "redis-sentinel://u:secret@a/main",
            "redis+sentinel://u:secret@a",
            "redis+sentinel://u:secret@a/",
            "redis+sentinel://u:secret@a,,b/main",
            "redis+sentinel://u:secret@/main",
            "redis+sentinel://u:secret@a:port/main",
            "redis+sentinel://u:secret@a/main/first",
            "redis+sentinel://u:secret@a/main?other=secret",
            "http+sentinel://u:secret@a/main",
        ] {
            let Err(error) = parsed(wrong) else { panic!("{wrong} is refused") };
            assert!(!crate::breaker::error_chain(&error).contains("secret"), "{error}");
        }
    }
}
