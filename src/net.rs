//! The network: descriptors, listeners, and the server that drives connections.

pub mod fds;
mod listen;
mod serve;

pub use self::{listen::listen, serve::serve};
