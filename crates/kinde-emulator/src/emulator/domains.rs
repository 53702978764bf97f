//! The domains of the tenant: its own domain, and custom domains with their own issuer.
//!
//! Source: <https://docs.kinde.com/build/domains/pointing-your-domain/>.

use std::net::SocketAddr;

use axum::http::{HeaderMap, header};

/// The issuers of the tenant by the `Host` of a request.
pub(super) struct Domains {
    main: String,
    custom: Vec<(String, String)>,
}

impl Domains {
    pub(super) fn new(address: SocketAddr, custom: &[String]) -> Self {
        let domain = |text: &String| {
            let text = text.trim_end_matches('/');
            match text.split_once("://") {
                Some((_, host)) => (host.to_lowercase(), text.to_owned()),
                None if text.contains(':') => (text.to_lowercase(), format!("http://{text}")),
                None => {
                    let host = format!("{text}:{}", address.port());
                    (host.to_lowercase(), format!("http://{host}"))
                }
            }
        };
        Self { main: format!("http://{address}"), custom: custom.iter().map(domain).collect() }
    }

    pub(super) fn main(&self) -> &str {
        &self.main
    }

    pub(super) fn custom(&self) -> impl Iterator<Item = &str> {
        self.custom.iter().map(|(_, issuer)| issuer.as_str())
    }

    /// Returns the issuer for the `Host` of a request; the tenant's own issuer for an unknown host.
    pub(super) fn of(&self, headers: &HeaderMap) -> &str {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let custom = self.custom.iter().find(|(known, _)| known.eq_ignore_ascii_case(host));
        custom.map_or(&self.main, |(_, issuer)| issuer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_domain_is_recognized_by_its_host() {
        let address = "127.0.0.1:4620".parse().unwrap();
        let custom = ["localhost", "auth.x.org:81", "https://login.x.org/"].map(str::to_owned);
        let domains = Domains::new(address, &custom);
        let of = |host: &str| {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            domains.of(&headers).to_owned()
        };
        assert_eq!(of("localhost:4620"), "http://localhost:4620");
        assert_eq!(of("AUTH.x.org:81"), "http://auth.x.org:81");
        assert_eq!(of("login.x.org"), "https://login.x.org");
        assert_eq!(of("elsewhere"), "http://127.0.0.1:4620");
        assert_eq!(domains.of(&HeaderMap::new()), domains.main());
    }
}
