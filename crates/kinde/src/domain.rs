//! Parses the address of a Kinde tenant from a setting.

use std::net::IpAddr;

use url::{Host, Url};

/// The reason why a text is not the address of a Kinde tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not an absolute URL with a host.
    #[error("not a URL: write it like `https://acme.kinde.com`")]
    Url,
    /// The scheme is `http` and the host is not this machine.
    #[error("must start with `https://` (`http://` is accepted only for localhost, 127.0.0.0/8 and [::1])")]
    Insecure,
    /// The URL contains a user name or password.
    #[error("must not contain a user name or password")]
    Credentials,
    /// The URL contains a path, query or fragment.
    #[error("must end after the host: no path, query or fragment")]
    NotAnOrigin,
}

/// Parses the address of a tenant: `https://<host>[:port]`, with or without a trailing slash.
///
/// `http` is accepted for loopback hosts only: a local emulator works, and no key is sent unencrypted by mistake.
///
/// ```
/// let domain = kinde::parse_domain("https://acme.kinde.com/")?;
/// assert_eq!(kinde::domain::issuer_of(&domain), "https://acme.kinde.com");
/// assert!(kinde::parse_domain("http://acme.kinde.com").is_err());
/// # Ok::<(), kinde::domain::Error>(())
/// ```
pub fn parse_domain(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|_| Error::Url)?;
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => return Err(Error::Insecure),
        _ => return Err(Error::Url),
    }
    if url.host().is_none() {
        return Err(Error::Url);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::Credentials);
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(Error::NotAnOrigin);
    }
    Ok(url)
}

/// Returns the issuer in the tokens of this domain: the origin without a trailing slash.
pub fn issuer_of(domain: &Url) -> String {
    domain.as_str().trim_end_matches('/').to_owned()
}

/// Returns true for `localhost`, 127.0.0.0/8 and `[::1]`.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_accepted_or_rejected_with_a_reason() {
        for (text, expect) in [
            ("https://acme.kinde.com", Ok("https://acme.kinde.com")),
            ("https://acme.kinde.com/", Ok("https://acme.kinde.com")),
            ("https://ACME.kinde.com:443/", Ok("https://acme.kinde.com")),
            ("http://localhost:4000", Ok("http://localhost:4000")),
            ("http://127.9.9.9:4000", Ok("http://127.9.9.9:4000")),
            ("http://[::1]:4000", Ok("http://[::1]:4000")),
            ("http://acme.kinde.com", Err(Error::Insecure)),
            ("http://localhost.evil.example", Err(Error::Insecure)),
            ("http://128.0.0.1", Err(Error::Insecure)),
            ("acme.kinde.com", Err(Error::Url)),
            ("", Err(Error::Url)),
            ("ftp://acme.kinde.com", Err(Error::Url)),
            ("file:///etc/passwd", Err(Error::Url)),
            ("localhost:4000", Err(Error::Url)),
            ("https://u:p@acme.kinde.com", Err(Error::Credentials)),
            ("https://acme.kinde.com/api", Err(Error::NotAnOrigin)),
            ("https://acme.kinde.com//", Err(Error::NotAnOrigin)),
            ("https://acme.kinde.com/?a", Err(Error::NotAnOrigin)),
            ("https://acme.kinde.com/#a", Err(Error::NotAnOrigin)),
        ] {
            let found = parse_domain(text).map(|url| issuer_of(&url));
            assert_eq!(found, expect.map(str::to_owned), "{text}");
        }
    }
}
