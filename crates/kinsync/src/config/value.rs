//! Texts parsed into types. An error message continues the name of the setting and never repeats the text, which may be a
//! secret in the wrong place.

mod queue;

use std::{net::SocketAddr, time::Duration};

use http::HeaderValue;
use jiff::SignedDuration;
use kinde::management::MAX_PAGE_SIZE;
use kinsync_engine::{
    config::{LinkByEmail, Retention, TombstoneEmail},
    internal::retention::MIN_AGE as MIN_RETENTION,
};
use kinsync_tower::authenticator::{RefusedUsers, UnknownRoles};
use secrecy::SecretString;
use tracing_subscriber::filter::{LevelFilter, Targets};
use url::Url;

pub use self::queue::{queue_kind, queue_prefix, roles};
use super::{AdminToken, LogFormat, Scope};
use crate::http::network::Network;

/// The value, or what is wrong with the text.
pub type Result<T> = std::result::Result<T, String>;

/// The parts of a comma-separated list, trimmed, without empty ones.
pub fn list(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// A text in the syntax of the type's own parser.
pub fn parsed<T: std::str::FromStr>(text: &str, what: &str) -> Result<T> {
    text.parse().map_err(|_| format!("is not {what}"))
}

/// `true` or `false`.
pub fn flag(text: &str) -> Result<bool> {
    parsed(text, "`true` or `false`")
}

/// A number greater than zero.
pub fn count(text: &str) -> Result<u64> {
    parsed::<u64>(text, "a whole number")
        .and_then(|n| if n > 0 { Ok(n) } else { Err("must be more than 0".into()) })
}

/// A time greater than zero, such as `15s`, `500ms` or `2m`.
pub fn duration(text: &str) -> Result<Duration> {
    let wrong = || "is not a time such as `15s`, `500ms` or `2m`".to_owned();
    let span: SignedDuration = text.parse().map_err(|_| wrong())?;
    let time = Duration::try_from(span).map_err(|_| wrong())?;
    if time.is_zero() { Err("must be more than 0".into()) } else { Ok(time) }
}

/// An interval such as `1h`, or `off`.
pub fn interval(text: &str) -> Result<Option<Duration>> {
    if text == "off" {
        Ok(None)
    } else {
        duration(text).map(Some).map_err(|problem| format!("{problem}, or `off`"))
    }
}

/// A time in days, such as `30d`, or one as in [`duration`].
fn age_of(text: &str) -> Result<Duration> {
    let Some(days) = text.strip_suffix('d').map(str::trim) else { return duration(text) };
    let days = count(days).map_err(|problem| format!("{problem}, such as `30d`"))?;
    Ok(Duration::from_secs(days.saturating_mul(24 * 60 * 60)))
}

/// An age of a week or more, such as `30d`, or `off`.
pub fn age(text: &str) -> Result<Option<Duration>> {
    match text {
        "off" => Ok(None),
        // One pass is enough only when nothing about the user arrives any more.
        _ => match age_of(text)? {
            age if age < MIN_RETENTION => Err("must be at least 7d".into()),
            age => Ok(Some(age)),
        },
    }
}

/// How long entries of the event log are kept, such as `user.updated=90d,*=365d`, or `off`.
pub fn retention(text: &str) -> Result<Retention> {
    let mut rules = Retention::default();
    if text == "off" {
        return Ok(rules);
    }
    for rule in list(text) {
        let (kind, age) = rule.split_once('=').ok_or("must be like `user.updated=90d,*=365d`, or `off`")?;
        let age = age_of(age.trim())?;
        if age < MIN_RETENTION {
            return Err("must keep entries for at least 7d".into());
        }
        let known = match kind.trim() {
            "*" => rules.others.replace(age),
            kind => rules.by_kind.insert(kind.to_owned(), age),
        };
        if known.is_some() {
            return Err("names a type twice".into());
        }
    }
    Ok(rules)
}

/// A whole number, zero included.
pub fn whole(text: &str) -> Result<u64> {
    parsed(text, "a whole number")
}

/// A share such as `5%` or `0.05`.
pub fn share(text: &str) -> Result<f64> {
    let (digits, whole) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 100.0));
    let share = parsed::<f64>(digits.trim(), "a share such as `5%`")? / whole;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("must be 0% to 100%".into()) }
}

/// Users in one page of the Management API.
pub fn page_size(text: &str) -> Result<u32> {
    let size: u32 = parsed(text, "a whole number")?;
    if (1..=MAX_PAGE_SIZE).contains(&size) { Ok(size) } else { Err(format!("must be 1 to {MAX_PAGE_SIZE}")) }
}

/// A size such as `1GiB`, `256MiB` or a number of bytes.
pub fn bytes(text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("is not a size such as `1GiB`, `256MiB` or `1048576`".into()),
    };
    let size = count(&text[..digits])?;
    size.checked_mul(unit).ok_or_else(|| "is too large".into())
}

/// A size in memory, or a number of things: as [`bytes`].
pub fn size(text: &str) -> Result<usize> {
    usize::try_from(bytes(text)?).map_err(|_| "is too large".into())
}

/// Addresses and networks such as `10.0.0.0/8`, comma separated.
pub fn networks(text: &str) -> Result<Vec<Network>> {
    list(text)
        .into_iter()
        .map(|network| parsed(network, "a list of addresses such as `10.0.0.0/8`"))
        .collect()
}

/// Origins as browsers send them, comma separated.
pub fn origins(text: &str) -> Result<Vec<HeaderValue>> {
    list(text).into_iter().map(origin).collect()
}

fn origin(text: &str) -> Result<HeaderValue> {
    let wrong = || "is not a list of origins such as `https://app.example.com`, without a path".to_owned();
    let url: Url = text.parse().map_err(|_| wrong())?;
    let is_web = matches!(url.scheme(), "http" | "https");
    let origin = url.origin().ascii_serialization();
    if !is_web || origin != text.to_ascii_lowercase() {
        return Err(wrong());
    }
    HeaderValue::try_from(origin).map_err(|_| wrong())
}

/// The name of a cookie: a token of RFC 9110 section 5.6.2.
pub fn cookie_name(text: &str) -> Result<String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.bytes().all(is_token) { Ok(text.to_owned()) } else { Err("is not the name of a cookie".into()) }
}

/// An address and a port.
pub fn socket(text: &str) -> Result<SocketAddr> {
    parsed(text, "an address and a port")
}

/// The address of a tenant: `https`, or `http` to this machine.
pub fn domain(text: &str) -> Result<Url> {
    kinde::parse_domain(text).map_err(|error| error.to_string())
}

/// The base address of a kinsync server. Errors name it, so it holds no password.
pub fn server(text: &str) -> Result<Url> {
    let url: Url = parsed(text, "a URL")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must be without a user and a password: the server authenticates the admin token".into());
    }
    match url.scheme() {
        "http" | "https" if url.host().is_some() => Ok(url),
        _ => Err("must start with `http://` or `https://`".into()),
    }
}

/// An address that Kinde delivers to: `https`, or `http` to this machine for an emulator.
pub fn public_url(text: &str) -> Result<Url> {
    let url: Url = parsed(text, "a URL such as `https://app.example.com`")?;
    let has_no_kinde_fields = url.query().is_none() && url.fragment().is_none();
    if !has_no_kinde_fields || !url.username().is_empty() || url.password().is_some() {
        return Err("must be without a user, a query and a fragment".into());
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if kinde::domain::is_loopback(&url) => Ok(url),
        "http" => {
            Err("must start with `https://`: Kinde delivers to no other address, and without TLS the data of your \
                       users could be read on the way (`http://` is accepted for this machine only)"
                .into())
        }
        _ => Err("must start with `https://`".into()),
    }
}

/// The base URL of a collector.
pub fn otlp_endpoint(text: &str) -> Result<Url> {
    let url: Url = parsed(text, "a URL such as `http://127.0.0.1:4318`")?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(url)
    } else {
        Err("must start with `http://` or `https://`".into())
    }
}

/// A comma list of `name=value`. The error repeats no value.
pub fn header_list(text: &str) -> Result<SecretString> {
    let is_header = |pair: &&str| {
        pair.split_once('=').is_some_and(|(name, value)| {
            http::HeaderName::try_from(name.trim()).is_ok() && HeaderValue::from_str(value.trim()).is_ok()
        })
    };
    if list(text).iter().all(is_header) { Ok(text.into()) } else { Err("is no list of `name=value`".into()) }
}

/// A secret without spaces around it.
pub fn secret(text: &str) -> Result<SecretString> {
    if text.trim() == text { Ok(text.into()) } else { Err("starts or ends with a space".into()) }
}

/// A comma list of secrets.
pub fn secrets(text: &str) -> Result<Vec<SecretString>> {
    let secrets: Vec<_> = list(text).into_iter().map(SecretString::from).collect();
    if secrets.is_empty() { Err("holds no secret".into()) } else { Ok(secrets) }
}

/// A comma list of admin tokens, each as `NAME:SCOPE:TOKEN`. The error repeats no part of the text.
pub fn admin_tokens(text: &str) -> Result<Vec<AdminToken>> {
    list(text).into_iter().map(admin_token).collect()
}

fn admin_token(text: &str) -> Result<AdminToken> {
    let wrong =
        || "is not a list of NAME:SCOPE:TOKEN, such as `ada:operate:…`, with the scope `read` or `operate`";
    let [name, scope, token] = text.splitn(3, ':').collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
    let scope =
        [Scope::Read, Scope::Operate].into_iter().find(|known| known.as_str() == scope).ok_or_else(wrong)?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_name) || token.is_empty() {
        return Err(wrong().into());
    }
    Ok(AdminToken { name: name.to_owned(), scope, token: token.into() })
}

/// A comma list of host names, without ports.
pub fn hosts(text: &str) -> Result<Vec<String>> {
    let wrong = |_| "is not a list of host names such as `kinsync.internal`, without a port".to_owned();
    list(text)
        .into_iter()
        .map(|host| url::Host::parse(host).map(|host| host.to_string()).map_err(wrong))
        .collect()
}

/// A connection string of `MongoDB`. Its options are read by the driver, later.
pub fn mongodb_uri(text: &str) -> Result<SecretString> {
    let known = ["mongodb://", "mongodb+srv://"].iter().any(|scheme| text.starts_with(scheme));
    if known { secret(text) } else { Err("must start with `mongodb://` or `mongodb+srv://`".into()) }
}

/// A valid name of a MongoDB database or collection.
pub fn name(text: &str) -> Result<String> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "$\"\\/".contains(c);
    if text.contains(odd) || text.starts_with("system.") {
        return Err("is not a valid MongoDB name: use no spaces, `$`, `\"`, `/` or `\\`".into());
    }
    Ok(text.into())
}

/// A whole number, 0 included.
pub fn number(text: &str) -> Result<u32> {
    parsed(text, "a whole number")
}

/// `verified`, `verified-ignore-case` or `never`. There is no `always`: a user could enter the address of
/// another user and get that document.
pub fn link_by_email(text: &str) -> Result<LinkByEmail> {
    match text {
        "verified" => Ok(LinkByEmail::Verified),
        "verified-ignore-case" => Ok(LinkByEmail::VerifiedIgnoreCase),
        "never" => Ok(LinkByEmail::Never),
        _ => Err("is not `verified`, `verified-ignore-case` or `never`".into()),
    }
}

/// `keep` or `placeholder`.
pub fn tombstone_email(text: &str) -> Result<TombstoneEmail> {
    match text {
        "keep" => Ok(TombstoneEmail::Keep),
        "placeholder" => Ok(TombstoneEmail::Placeholder),
        _ => Err("is not `keep` or `placeholder`".into()),
    }
}

/// `refuse` or `pass`.
pub fn refused_users(text: &str) -> Result<RefusedUsers> {
    match text {
        "refuse" => Ok(RefusedUsers::Refuse),
        "pass" => Ok(RefusedUsers::Pass),
        _ => Err("is not `refuse` or `pass`".into()),
    }
}

/// `refuse` or `token`.
pub fn unknown_roles(text: &str) -> Result<UnknownRoles> {
    match text {
        "refuse" => Ok(UnknownRoles::Refuse),
        "token" => Ok(UnknownRoles::UseToken),
        _ => Err("is not `refuse` or `token`".into()),
    }
}

/// `json` or `text`.
pub fn log_format(text: &str) -> Result<LogFormat> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("is not `json` or `text`".into()),
    }
}

/// A filter such as `info` or `info,kinsync_engine=debug`.
///
/// Targets without a level of their own log errors, so that `kinsync_engine=debug` hides none.
pub fn log_filter(text: &str) -> Result<Targets> {
    // `Targets` takes an empty part for a level of all targets, and a span for a part of the name.
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_simple = parts.iter().all(|part| !part.contains('['));
    let filter = Some(parts.join(",")).filter(|_| is_simple).and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.ok_or("is not a log filter")?;
    Ok(if filter.default_level().is_some() { filter } else { filter.with_default(LevelFilter::ERROR) })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use kinsync_engine::Roles;

    use super::*;
    #[cfg(all(feature = "rabbitmq", feature = "redis"))]
    use crate::config::QueueKind;

    #[test]
    fn a_log_filter_has_levels_by_target() {
        use tracing::Level;

        let engine = log_filter("kinsync_engine=debug").unwrap();
        assert!(engine.would_enable("kinsync_engine::queue", &Level::DEBUG));
        assert!(
            engine.would_enable("mongodb", &Level::ERROR) && !engine.would_enable("mongodb", &Level::WARN)
        );
        let quiet = log_filter("off,kinsync_engine=debug").unwrap();
        assert!(!quiet.would_enable("mongodb", &Level::ERROR));
        assert!(log_filter("INFO").unwrap().would_enable("mongodb", &Level::INFO));
        assert!(log_filter("info,").unwrap().would_enable("mongodb", &Level::INFO));
        for wrong in ["info,kinsync=loud", "kinsync[span]=debug", "kinsync[{user=1}]=debug"] {
            log_filter(wrong).unwrap_err();
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        assert_eq!(bytes("2MiB"), Ok(2 << 20));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        for wrong in ["", "GiB", "1GB", "-1", "0", "99999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units_and_are_more_than_nothing() {
        assert_eq!(duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "15", "-1s", "0s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_is_a_percentage_or_a_fraction() {
        assert_eq!(
            (share("5%"), share("0.05"), share("0"), share("100%")),
            (Ok(0.05), Ok(0.05), Ok(0.0), Ok(1.0))
        );
        for wrong in ["", "%", "5", "101%", "-1%", "NaN", "some"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn kinde_delivers_to_https_and_to_this_machine() {
        for right in
            ["https://app.example.com", "https://h:8443/sub", "http://127.0.0.1:5000", "http://[::1]"]
        {
            assert!(public_url(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "app.example.com",
            "http://app.example.com",
            "ftp://h",
            "https://u:p@h",
            "https://h/?a",
            "https://h/#a",
        ] {
            assert!(public_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn how_often_may_be_never_and_pages_have_bounds() {
        assert_eq!((interval("off"), interval("1h")), (Ok(None), Ok(Some(Duration::from_hours(1)))));
        assert!(interval("0s").is_err() && interval("often").is_err());
        assert_eq!((page_size("1"), page_size("500")), (Ok(1), Ok(500)));
        assert!(page_size("0").is_err() && page_size("501").is_err());
    }

    #[test]
    fn an_admin_token_has_a_name_and_a_scope_and_may_contain_colons() {
        let tokens = admin_tokens("ada:operate:new:1, ada:operate:old, grafana:read:t").unwrap();
        let shown: Vec<_> = tokens
            .iter()
            .map(|AdminToken { name, scope, token }| (name.as_str(), *scope, token.expose_secret()))
            .collect();
        let (operate, read) = (Scope::Operate, Scope::Read);
        assert_eq!(shown, [("ada", operate, "new:1"), ("ada", operate, "old"), ("grafana", read, "t")]);
        for wrong in ["t", "ada:t", "ada:admin:t", ":read:t", "a b:read:t", "ada:read:", "ada:READ:t"] {
            assert!(admin_tokens(wrong).is_err(), "{wrong}");
        }
    }

    #[cfg(all(feature = "rabbitmq", feature = "redis"))]
    #[test]
    fn a_queue_has_one_address_of_a_supported_server() {
        assert!(matches!(queue_kind("embedded"), Ok(QueueKind::Embedded)));
        for redis in ["redis://a", "rediss://u:p,w@a:1/0", "redis+sentinel://a,b/main"] {
            assert!(matches!(queue_kind(redis), Ok(QueueKind::Redis(_))), "{redis}");
        }
        for rabbitmq in ["amqp://a", "amqps://u:p@a,b:5673/vhost"] {
            assert!(matches!(queue_kind(rabbitmq), Ok(QueueKind::Rabbitmq(_))), "{rabbitmq}");
        }
        for several in ["redis://a,b", "redis-sentinel://a/main", "redis+cluster://a"] {
            assert!(queue_kind(several).is_err_and(|error| error.contains("redis+sentinel://")), "{several}");
        }
        assert!(queue_kind("kafka://a").is_err());
    }

    #[test]
    fn roles_are_a_list_of_known_names() {
        assert_eq!(roles("all"), Ok(Roles::ALL));
        assert_eq!(roles("api, ingest"), Ok(Roles { api: true, ingest: true, ..Roles::NONE }));
        assert_eq!(roles("ingest,project,reconcile,api"), Ok(Roles::ALL));
        for wrong in ["", ",", "projector", "Ingest"] {
            assert!(roles(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_have_no_port_and_no_scheme() {
        assert_eq!(hosts("Kinsync.Internal,admin"), Ok(vec!["kinsync.internal".into(), "admin".into()]));
        for wrong in ["https://a", "a:80", "a/b", "a b"] {
            assert!(hosts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_comma_list_of_secrets_may_end_with_a_comma() {
        assert_eq!(secrets("new, old,").unwrap().len(), 2);
        assert!(secrets(",").is_err());
    }
}
