//! A bare tonic server of the same contract: the baseline of `benches/idle.rs` and `benches/wire`.
//!
//! Everything is as tonic has it by default, on the C library's malloc; every answer is a constant. It
//! prints its address and serves until it is killed.

#![expect(clippy::print_stdout, reason = "its address is its output")]

#[path = "../benches/wire/constant.rs"]
mod constant;

use chatbot::pb::{
    chatbot::v1::chatbot_server::ChatbotServer, health::v1::health_server::HealthServer,
};
use tonic::transport::{Server, server::TcpIncoming};

use self::constant::Constant;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // As a server that binds by itself has it; for an `incoming` it is not the default.
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
    println!("address={}", incoming.local_addr()?);
    Server::builder()
        .add_service(ChatbotServer::new(Constant))
        .add_service(HealthServer::new(Constant))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
