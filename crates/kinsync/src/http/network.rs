//! Networks of client addresses, such as `10.0.0.0/8`.

use std::{net::IpAddr, str::FromStr};

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

/// Returns the address that stands for one client: an IPv6 host has a whole /64.
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
