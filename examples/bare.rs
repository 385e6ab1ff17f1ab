//! A bare tonic server of the same contract: the baseline of `benches/idle` and `benches/wire`.
//!
//! Everything is as tonic has it by default, on the C library's malloc; every answer is a constant. It
//! prints its address and serves until it is killed, with TLS where it is started with `--tls` and the
//! files of a certificate and its key.

#![expect(clippy::print_stdout, reason = "its address is its output")]

#[path = "../benches/wire/constant.rs"]
mod constant;

use std::fs;

use tonic::transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming};

use self::{
    constant::Constant,
    pb::{chatbot::v1::chatbot_server::ChatbotServer, health::v1::health_server::HealthServer},
};

/// The contract as tonic generates it: with its own codec, and not ours.
#[expect(unreachable_pub, clippy::pedantic, clippy::allow_attributes, reason = "generated code")]
mod pb {
    pub mod chatbot {
        pub mod v1 {
            tonic::include_proto!("stock/chatbot.v1");
        }
    }

    pub mod health {
        pub mod v1 {
            tonic::include_proto!("stock/grpc.health.v1");
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut server = Server::builder();
    match arguments[..] {
        [] => {}
        ["--tls", cert_file, key_file] => {
            let identity = Identity::from_pem(fs::read(cert_file)?, fs::read(key_file)?);
            server = server.tls_config(ServerTlsConfig::new().identity(identity))?;
        }
        _ => return Err("it takes nothing, or --tls CERT_FILE KEY_FILE".into()),
    }
    // As a server that binds by itself has it; for an `incoming` it is not the default.
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
    println!("address={}", incoming.local_addr()?);
    server
        .add_service(ChatbotServer::new(Constant))
        .add_service(HealthServer::new(Constant))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
