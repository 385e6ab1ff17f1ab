//! The service as others see it: one file a promise, one binary for all of them, since linking is
//! what costs.

#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod admission;
mod answers;
mod auth;
mod client;
mod collector;
mod conversations;
mod crash_matrix;
mod frames;
mod health;
mod hostile;
mod layers;
mod model;
mod peer;
mod peers;
mod process;
mod proxy;
mod quality;
mod redis;
mod replica;
mod scripted;
mod support;
mod teaching;
mod terminal;
mod tls;
mod traces;
mod transcripts;
mod upstream;
mod web;
mod wire;
