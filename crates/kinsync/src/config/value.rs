//! Texts read into types. Each answers what is wrong in words that follow the name of the setting.
//! A message never repeats what was written: it may be a secret in the wrong place.

use std::{net::SocketAddr, time::Duration};

use jiff::SignedDuration;
use secrecy::SecretString;
use url::Url;

use super::{LogFormat, QueueKind};

/// What is wrong, for a person.
pub type Result<T> = std::result::Result<T, String>;

/// The parts of a comma list, trimmed; empty ones are left out.
pub fn list(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// Anything that the type's own parser takes.
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

/// An address and a port.
pub fn socket(text: &str) -> Result<SocketAddr> {
    parsed(text, "an address and a port")
}

/// A tenant's address: `https`, or `http` to this machine.
pub fn domain(text: &str) -> Result<Url> {
    kinde::parse_domain(text).map_err(|error| error.to_string())
}

/// The base address of a kinsync server.
pub fn server(text: &str) -> Result<Url> {
    let url: Url = parsed(text, "a URL")?;
    match url.scheme() {
        "http" | "https" if url.host().is_some() => Ok(url),
        _ => Err("must start with `http://` or `https://`".into()),
    }
}

/// A secret without spaces around it.
pub fn secret(text: &str) -> Result<SecretString> {
    if text.trim() == text { Ok(text.into()) } else { Err("starts or ends with a space".into()) }
}

/// A comma list of secrets.
pub fn secrets(text: &str) -> Result<Vec<SecretString>> {
    let secrets: Vec<_> = list(text).into_iter().map(SecretString::from).collect();
    if secrets.is_empty() { Err("holds only commas".into()) } else { Ok(secrets) }
}

/// A connection string of `MongoDB`. Its options are read by the driver, later.
pub fn mongodb_uri(text: &str) -> Result<SecretString> {
    let known = ["mongodb://", "mongodb+srv://"].iter().any(|scheme| text.starts_with(scheme));
    if known { secret(text) } else { Err("must start with `mongodb://` or `mongodb+srv://`".into()) }
}

/// A name of a database or collection that `MongoDB` takes.
pub fn name(text: &str) -> Result<String> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "$\"\\/".contains(c);
    if text.contains(odd) || text.starts_with("system.") {
        return Err("is not a name that MongoDB takes: no spaces, `$`, `\"`, `/` or `\\`".into());
    }
    Ok(text.into())
}

/// Which queue.
pub fn queue_kind(text: &str) -> Result<QueueKind> {
    match text {
        "embedded" => Ok(QueueKind::Embedded),
        _ => Err("is not a queue of this version; there is `embedded`".into()),
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
pub fn log_filter(text: &str) -> Result<String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.into()),
        Err(_) => Err("is not a log filter".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_comma_list_of_secrets_may_end_with_a_comma() {
        assert_eq!(secrets("new, old,").unwrap().len(), 2);
        assert!(secrets(",").is_err());
    }
}
