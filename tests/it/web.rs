//! Browsers: gRPC-Web over HTTP/1.1 for the origins that are allowed, and nothing by default.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use chatbot::pb::chatbot::v1::{AskRequest, AskResponse};
use prost::Message as _;

use crate::support::{LONG, start};

/// Sends a request over HTTP/1.1; the head and the body of the response.
fn exchange(address: SocketAddr, head: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(LONG)).expect("a timeout");
    let mut response = Vec::new();
    // A server that does not speak HTTP/1.1 may reset at any time.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body))
        .and_then(|()| stream.read_to_end(&mut response));
    let end = response.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = response.split_at(end.map_or(response.len(), |end| end + 4));
    (String::from_utf8_lossy(head).to_lowercase(), body.to_vec())
}

fn preflight(address: SocketAddr, origin: &str) -> String {
    let head = format!(
        "OPTIONS /chatbot.v1.Chatbot/Ask HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: {origin}\r\n\
         Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type,x-grpc-web\r\n\r\n"
    );
    exchange(address, &head, b"").0
}

fn ask(address: SocketAddr, query: &str) -> (String, Vec<u8>) {
    let message = AskRequest { query: query.to_owned(), ..Default::default() }.encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    body.extend(message);
    let head = format!(
        "POST /chatbot.v1.Chatbot/Ask HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Origin: https://chat.example.com\r\nContent-Type: application/grpc-web+proto\r\n\
         X-Grpc-Web: 1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(address, &head, &body)
}

/// The frames of a gRPC-Web body, out of HTTP/1.1's chunks: flag and payload.
fn frames(body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut rest = body;
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).expect("a chunk size");
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        bytes.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
        if size == 0 {
            break;
        }
    }
    let mut frames = Vec::new();
    let mut rest = bytes.as_slice();
    while let [flag, a, b, c, d, payload @ ..] = rest {
        let size = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        frames.push((*flag, payload[..size].to_vec()));
        rest = &payload[size..];
    }
    frames
}

// The peer of these tests blocks, so the app needs a thread of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_an_allowed_origin_gets_answers_and_statuses() {
    let app = start(&["web.allowed_origins=https://chat.example.com"]).await;
    let server = app.addresses.server;
    let allowed = preflight(server, "https://chat.example.com");
    assert!(allowed.starts_with("http/1.1 200"), "{allowed}");
    assert!(allowed.contains("access-control-allow-origin: https://chat.example.com"), "{allowed}");

    let (head, body) = ask(server, "too many open files in the server");
    assert!(head.contains("content-type: application/grpc-web"), "{head}");
    assert!(head.contains("access-control-allow-origin: https://chat.example.com"), "{head}");
    let frames = frames(&body);
    assert_eq!(frames.len(), 2, "{head}");
    let response = AskResponse::decode(&*frames[0].1).expect("a message");
    assert!(response.answer.expect("an answer").answered);
    assert_eq!(frames[1].0, 0x80);
    assert!(String::from_utf8_lossy(&frames[1].1).contains("grpc-status:0"));

    let (head, _) = ask(server, "");
    assert!(head.contains("grpc-status: 3"), "{head}");
    assert!(head.contains("access-control-expose-headers: grpc-status"), "{head}");
    // gRPC goes on beside it.
    app.chatbot()
        .await
        .ask(AskRequest { query: "x".to_owned(), ..Default::default() })
        .await
        .expect("gRPC");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_origin_is_not_allowed() {
    let app = start(&["web.allowed_origins=https://chat.example.com"]).await;
    let foreign = preflight(app.addresses.server, "https://evil.example.com");
    assert!(!foreign.contains("access-control-allow-origin"), "{foreign}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_default_http_1_is_not_spoken() {
    let app = start(&[]).await;
    let (head, _) = ask(app.addresses.server, "x");
    assert!(!head.starts_with("http/1.1"), "{head}");
    app.stop().await;
}
