//! `server`: the main port, its connections, and how it ends.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::settings::Settings;

/// What a duration may be: shorter ones would keep the processor busy, longer ones are for ever.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// The main port and its drain.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Where to listen; the default is every address of both families.
    pub address: SocketAddr,
    /// How long to go on serving after a stop was asked for, until load balancers have noticed.
    pub drain_delay: Duration,
    /// How long calls may take to finish after that.
    pub drain_grace: Duration,
    /// How long a `Converse` stream may have nothing to tell before it says that it is alive.
    pub heartbeat_interval: Duration,
    /// Whether the reflection service is offered.
    pub reflection: bool,
    /// The life of a connection.
    pub connections: Connections,
}

/// How many connections there may be, and how long each may live. No limit depends on what the peer
/// does.
#[derive(Debug, Clone, PartialEq)]
pub struct Connections {
    /// Connections at a time; `None`: as many as the file descriptors allow.
    pub max: Option<u32>,
    /// Connections at a time from one address (of IPv6, one /64).
    pub max_per_peer: u32,
    /// Addresses that the limit by peer does not hold for, such as those of a proxy.
    pub exempt_peers: Vec<IpNet>,
    /// A connection without a call for this long is closed. Health and reflection are no calls.
    pub idle_timeout: Duration,
    /// A connection older than this, give or take a tenth, is replaced.
    pub max_age: Duration,
    /// How long the calls of a connection that is too old may take to finish.
    pub age_grace: Duration,
    /// Time for a new connection to begin to speak HTTP/2, and before that for its TLS handshake.
    pub preface_timeout: Duration,
    /// Time for a request to arrive; of a stream, for its next message.
    pub receive_timeout: Duration,
    /// Time for a peer to take what it asked for.
    pub stall_timeout: Duration,
    /// A peer that has been silent for this long is asked whether it is alive.
    pub keepalive_interval: Duration,
    /// Time for its answer.
    pub keepalive_timeout: Duration,
}

impl Server {
    pub(super) fn check(settings: &mut Settings) -> Self {
        let heartbeat_interval =
            positive(settings, "server.heartbeat_interval", Duration::from_secs(25));
        Self {
            address: settings.take("server.address", any_address(8980)),
            drain_delay: settings.take("server.drain_delay", Duration::from_secs(5)),
            drain_grace: settings.take("server.drain_grace", Duration::from_secs(25)),
            heartbeat_interval,
            reflection: settings.take("server.reflection", true),
            connections: Connections::check(settings),
        }
    }
}

impl Connections {
    fn check(settings: &mut Settings) -> Self {
        let mut positive = |key, seconds| positive(settings, key, Duration::from_secs(seconds));
        let idle_timeout = positive("server.idle_timeout", 300);
        let max_age = positive("server.max_age", 1800);
        let preface_timeout = positive("server.preface_timeout", 10);
        let receive_timeout = positive("server.receive_timeout", 30);
        let stall_timeout = positive("server.stall_timeout", 30);
        let keepalive_interval = positive("server.keepalive_interval", 60);
        let keepalive_timeout = positive("server.keepalive_timeout", 20);
        let max = settings.take("server.max_connections", 0_u32);
        let max_per_peer = settings.take("server.max_connections_per_peer", 256_u32);
        if max_per_peer == 0 {
            settings.problem("server.max_connections_per_peer", "must be at least 1");
        }
        Self {
            max: (max > 0).then_some(max),
            max_per_peer,
            exempt_peers: networks(settings),
            idle_timeout,
            max_age,
            age_grace: settings.take("server.age_grace", Duration::from_secs(30)),
            preface_timeout,
            receive_timeout,
            stall_timeout,
            keepalive_interval,
            keepalive_timeout,
        }
    }
}

/// A duration that is neither nothing nor for ever.
fn positive(settings: &mut Settings, key: &'static str, default: Duration) -> Duration {
    let duration = settings.take(key, default);
    if !(SHORTEST..=LONGEST).contains(&duration) {
        settings.problem(key, "must be between 10ms and 365d");
    }
    duration
}

fn networks(settings: &mut Settings) -> Vec<IpNet> {
    const KEY: &str = "server.exempt_peers";
    let list = settings.take(KEY, String::new());
    let mut networks = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item.parse().or_else(|_| item.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(network),
            Err(_) => settings.problem(
                KEY,
                format!(
                    "must be addresses or networks such as \"10.0.0.7, 10.1.0.0/16\", is {item:?}"
                ),
            ),
        }
    }
    networks
}

/// `[::]` with a port: every address of both families.
pub(super) fn any_address(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}
