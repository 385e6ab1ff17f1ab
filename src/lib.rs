//! A gRPC chatbot service for Kubernetes: the connection dies every thirty minutes, the conversation
//! does not.
//!
//! The map of the house, top floor first. A module imports only from floors below its own; modules
//! of one floor do not know each other. `tests/it/layers.rs` keeps it true.
//!
//! | floor | modules | what they are for |
//! |---|---|---|
//! | 10 | [`cli`] | the commands of the binary |
//! | 9 | [`app`] | puts everything together, and takes it down again |
//! | 8 | [`rpc`] | the contract: requests in, messages and statuses out |
//! | 7 | [`turn`] | one request and its answer, from the claim of its id to its last event |
//! | 6 | [`engine`] | how a question becomes an answer |
//! | 5 | [`knowledge`] | what the bot knows, and the search for it |
//! | 4 | [`store`], [`net`], [`auth`] | the log; descriptors, listeners, connections; credentials |
//! | 3 | [`health`], [`lifecycle`], [`telemetry`]; [`client`] | who is ready, who has to end, who can be seen; the other end of the line |
//! | 2 | [`config`], [`domain`] | raw settings, checked; plain data and its rules |
//! | 1 | [`error`], [`pb`]; `grown` | error kinds; generated types; a count that wakes who waits |
//!
//! Libraries stay in their rooms too: tonic in `rpc`, `client`, `health`, `net` and `cli`; tantivy in
//! `knowledge`; redb and redis in `store`; jsonwebtoken in `auth`; OpenTelemetry in `telemetry`; reqwest
//! in `engine`.

#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod auth;
#[cfg(all(feature = "server", feature = "client"))]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod domain;
#[cfg(feature = "server")]
pub mod engine;
#[cfg(feature = "server")]
pub mod error;
#[cfg(feature = "server")]
pub(crate) mod grown;
#[cfg(feature = "server")]
pub mod health;
#[cfg(feature = "server")]
pub mod knowledge;
#[cfg(feature = "server")]
pub mod lifecycle;
#[cfg(feature = "server")]
pub mod net;
pub mod pb;
#[cfg(feature = "server")]
pub mod rpc;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod turn;
