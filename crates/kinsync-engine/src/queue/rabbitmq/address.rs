//! The address of the servers: one user and virtual host, several hosts.

use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret, SecretString};

use crate::queue::{Error, Source};

/// Time without a frame after which a connection counts as lost, in seconds, unless the address sets `heartbeat`.
const HEARTBEAT: u16 = 10;

/// Checks the address of a [`Config`](super::Config) as [`RabbitmqQueue::new`](super::RabbitmqQueue::new) does.
///
/// # Errors
/// [`Error::Refused`] if it cannot be understood.
pub fn check_address(url: &SecretString) -> Result<(), Error> {
    hosts(url).map(drop)
}

/// Returns one address per host of `amqp://user:password@host,host/vhost`.
///
/// # Errors
/// [`Error::Refused`] if the address cannot be understood.
pub(super) fn hosts(url: &SecretString) -> Result<Vec<AMQPUri>, Error> {
    let wrong = |source: Source| {
        Error::Refused {
        hint: "the address of RabbitMQ cannot be understood; write amqp://USER:PASSWORD@HOST:PORT/VHOST, amqps:// for TLS, and \
               further hosts after commas"
            .into(),
        source: Some(source),
    }
    };
    let (scheme, rest) =
        url.expose_secret().split_once("://").ok_or_else(|| wrong("there is no scheme".into()))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    // To the library, an empty path is the virtual host `/`, and the path `/` one without a name.
    let tail = if tail == "/" { "" } else { tail };
    let separator = if user.is_empty() { "" } else { "@" };
    let parse = |host: &str| {
        // To the library, no host is this machine.
        if host.is_empty() {
            return Err(wrong("a host is missing".into()));
        }
        let mut uri: AMQPUri =
            format!("{scheme}://{user}{separator}{host}{tail}").parse().map_err(|error: String| {
                // The message may repeat the address with its password.
                drop(error);
                wrong("it is not a URL".into())
            })?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        Ok(uri)
    };
    hosts.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn parsed(url: &str) -> Vec<(String, u16, String, String)> {
        let uris = hosts(&url.into()).expect("the address is valid");
        let parts = uris
            .into_iter()
            .map(|uri| (uri.authority.host, uri.authority.port, uri.authority.userinfo.username, uri.vhost));
        parts.collect()
    }

    #[test]
    fn several_hosts_share_the_user_and_the_virtual_host() {
        let of = |host: &str, port, user: &str, vhost: &str| (host.into(), port, user.into(), vhost.into());
        assert_eq!(
            parsed("amqps://ada:se%40cret@a.internal,b.internal:5673/users?heartbeat=3"),
            [of("a.internal", 5671, "ada", "users"), of("b.internal", 5673, "ada", "users")]
        );
        for usual in ["amqp://a", "amqp://a/", "amqp://a:5672/%2f"] {
            assert_eq!(parsed(usual), [of("a", 5672, "guest", "/")], "{usual}");
        }
    }

    #[test]
    fn a_wrong_address_is_refused_without_its_password() {
        for wrong in
            ["amqp", "amqp://", "http://a:secret@b", "amqp://u:secret@a:notaport", "amqp://u:secret@a,,b"]
        {
            let error = hosts(&wrong.into()).expect_err(wrong);
            assert!(!crate::breaker::error_chain(&error).contains("secret"), "{error}");
        }
    }
}
