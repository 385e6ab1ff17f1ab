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
//! | 3 | [`health`], [`lifecycle`], [`telemetry`] | who is ready, who has to end, who can be seen |
//! | 2 | [`config`], [`domain`] | raw settings, checked; plain data and its rules |
//! | 1 | [`error`], [`pb`] | error kinds; generated types |
//!
//! Libraries stay in their rooms too: tonic in `rpc`, `health`, `net` and `cli`; tantivy in
//! `knowledge`; redb and redis in `store`; jsonwebtoken in `auth`; OpenTelemetry in `telemetry`; reqwest
//! in `engine`.

pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod error;
pub mod health;
pub mod knowledge;
pub mod lifecycle;
pub mod net;
pub mod pb;
pub mod rpc;
pub mod store;
pub mod telemetry;
pub mod turn;
