//! `ops`: the port of probes and scrapers.

use std::net::SocketAddr;

use super::{server::any_address, settings::Settings};

/// The ops port. It has no TLS and no credentials, ever: the kubelet brings neither.
#[derive(Debug, Clone, PartialEq)]
pub struct Ops {
    /// Where to listen. Not a loopback address in Kubernetes: the kubelet dials the pod's address.
    pub address: SocketAddr,
}

impl Ops {
    pub(super) fn check(settings: &mut Settings) -> Self {
        Self { address: settings.take("ops.address", any_address(8981)) }
    }
}
