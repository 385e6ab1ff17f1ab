//! Who is at the other end, as far as limits are concerned.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// One customer of an address: of IPv4 the address, of IPv6 its /64, which is what a site gets and
/// can fill with addresses as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Peer(IpAddr);

impl Peer {
    pub(super) fn of(address: SocketAddr) -> Self {
        // A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d.
        match address.ip().to_canonical() {
            IpAddr::V4(address) => Self(IpAddr::V4(address)),
            IpAddr::V6(address) => {
                let network = u128::from(address) & (u128::MAX << 64);
                Self(IpAddr::V6(Ipv6Addr::from(network)))
            }
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> String {
        Peer::of(address.parse().expect("an address")).to_string()
    }

    #[test]
    fn addresses_of_one_site_are_one_peer() {
        assert_eq!(peer("10.0.0.1:5"), "10.0.0.1");
        assert_eq!(peer("[::ffff:10.0.0.1]:6"), "10.0.0.1");
        assert_eq!(peer("[2001:db8:1:2:3::4]:5"), "2001:db8:1:2::/64");
        assert_eq!(peer("[2001:db8:1:2:9::9]:5"), "2001:db8:1:2::/64");
    }
}
