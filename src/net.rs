//! The network: descriptors, listeners, and the life of connections.
//!
//! This is what the service exists for. The usual server stack leaks here, hangs there and spins
//! elsewhere (each was measured), so accepting, limiting and ending connections is written by hand,
//! over hyper's HTTP/2. Nothing in here waits for a peer without a deadline, and nothing grows with
//! what a peer does.

mod budget;
mod call;
mod clock;
mod coalesce;
mod connection;
pub mod fds;
mod governor;
mod listen;
mod metrics;
mod peer;
mod serve;
mod tls;
mod validity;
mod wire;

pub use self::{
    budget::{Budget, TooLow},
    call::{Ending, RequestBody, Routes},
    listen::listen,
    serve::Server,
    tls::{Error as TlsError, Tls},
};
