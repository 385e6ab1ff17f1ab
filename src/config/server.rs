//! `server`: the main port and how it ends.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::settings::Settings;

/// The main port and its drain.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Where to listen; the default is every address of both families.
    pub address: SocketAddr,
    /// How long to go on serving after a stop was asked for, until load balancers have noticed.
    pub drain_delay: Duration,
    /// How long calls may take to finish after that.
    pub drain_grace: Duration,
    /// Whether the reflection service is offered.
    pub reflection: bool,
}

impl Server {
    pub(super) fn check(settings: &mut Settings) -> Self {
        Self {
            address: settings.take("server.address", any_address(8980)),
            drain_delay: settings.take("server.drain_delay", Duration::from_secs(5)),
            drain_grace: settings.take("server.drain_grace", Duration::from_secs(25)),
            reflection: settings.take("server.reflection", true),
        }
    }
}

/// `[::]` with a port: every address of both families.
pub(super) fn any_address(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}
