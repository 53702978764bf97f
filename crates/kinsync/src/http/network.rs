//! Addresses of clients, and networks such as `10.0.0.0/8`.

use std::{
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use http::{Extensions, HeaderMap};

/// The address at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer(pub IpAddr);

impl Peer {
    /// Returns the peer that the server stored with the request.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or(Self(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
    }

    /// Returns the address of the client. For a trusted proxy this is the last address in `X-Forwarded-For` that is not a
    /// trusted proxy: proxies append, so a client can forge only the addresses before it.
    pub fn client(self, headers: &HeaderMap, proxies: &[Network]) -> IpAddr {
        let is_trusted = |address: IpAddr| proxies.iter().any(|network| network.contains(address));
        let peer = self.0.to_canonical();
        if !is_trusted(peer) {
            return peer;
        }
        let lines = headers.get_all("x-forwarded-for").iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        let mut last = peer;
        for hop in hops {
            let Ok(address) = hop.trim().parse::<IpAddr>() else { return last };
            last = address.to_canonical();
            if !is_trusted(last) {
                return last;
            }
        }
        last
    }
}

/// The addresses that share a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    base: IpAddr,
    prefix: u32,
}

/// The text is neither an address nor an address with a prefix length.
#[derive(Debug, PartialEq, Eq)]
pub struct NotANetwork;

impl Network {
    /// Returns whether the address belongs to the network. An IPv4 address belongs to no IPv6 network.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.base.is_ipv4() && masked(address, self.prefix) == self.base
    }
}

/// Returns the address that identifies one client: an IPv6 host has a whole /64.
pub fn client_of(address: IpAddr) -> IpAddr {
    if address.is_ipv6() { masked(address, 64) } else { address }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), |text| text.parse().map_err(|_| NotANetwork))?;
        if prefix > longest {
            return Err(NotANetwork);
        }
        Ok(Self { base: masked(address, prefix), prefix })
    }
}

/// Clears the bits after the prefix.
fn masked(address: IpAddr, prefix: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_behind_a_trusted_proxy_is_the_last_address_that_the_proxies_added() {
        let proxies = ["10.0.0.0/8".parse().unwrap()];
        let check = |peer: &str, lines: &[&str], expected: &str| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", line.parse().unwrap());
            }
            let client = Peer(peer.parse().unwrap()).client(&headers, &proxies);
            assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{peer} {lines:?}");
        };
        check("203.0.113.1", &["198.51.100.7"], "203.0.113.1");
        check("10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("::ffff:10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &["127.0.0.1, 198.51.100.7, 10.0.0.2"], "198.51.100.7");
        check("10.0.0.1", &["127.0.0.1", "2001:db8::1"], "2001:db8::1");
        check("10.0.0.1", &["127.0.0.1, forged, 10.0.0.2"], "10.0.0.2");
        check("10.0.0.1", &[], "10.0.0.1");
    }

    #[test]
    fn a_network_contains_the_addresses_of_its_prefix() {
        let check = |network: &str, inside: &[&str], outside: &[&str]| {
            let network: Network = network.parse().unwrap();
            for text in inside {
                assert!(network.contains(text.parse().unwrap()), "{text} in {network:?}");
            }
            for text in outside {
                assert!(!network.contains(text.parse().unwrap()), "{text} not in {network:?}");
            }
        };
        check("10.0.0.0/8", &["10.0.0.0", "10.255.1.2"], &["11.0.0.0", "9.255.255.255", "::1"]);
        check("192.168.7.9/24", &["192.168.7.1"], &["192.168.8.1"]);
        check("192.0.2.7", &["192.0.2.7"], &["192.0.2.8"]);
        check("0.0.0.0/0", &["8.8.8.8"], &["2001:db8::1"]);
        check("2001:db8::/32", &["2001:db8:1::5"], &["2001:db9::"]);
        for text in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/-1", "x"] {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork), "{text}");
        }
    }
}
