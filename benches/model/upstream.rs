//! The model's server, scripted: what it says and when is in the question, word for word.
//!
//! HTTP is written by hand, so that 20,000 tokens a second of its own cost little of the two cores that
//! it shares with what is measured. Each token is a write of its own, as a model's server writes them.

use std::{
    fmt,
    io::{self, Write as _},
    net::SocketAddr,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// The first token: when the question was received and when this was sent, in microseconds since 1970.
pub(crate) const FIRST: usize = 16 + 1 + 16 + 1;
/// The others, by turns: LiteLLM gives up a model that says the same a hundred times.
const TOKENS: [&str; 2] = [" tok", " ens"];
/// The length of each.
pub(crate) const TOKEN: usize = 4;

/// How an answer goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    /// How many tokens it has.
    pub(crate) tokens: u32,
    /// From the question to the first.
    pub(crate) delay: Duration,
    /// From the first to the second and so on; the schedule does not slip. Zero: as fast as can be.
    pub(crate) gap: Duration,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.tokens, self.delay.as_micros(), self.gap.as_micros())
    }
}

impl FromStr for Script {
    type Err = io::Error;

    fn from_str(text: &str) -> Result<Self, io::Error> {
        let numbers: Result<Vec<u32>, _> = text.split_whitespace().map(str::parse).collect();
        let [tokens, delay, gap] = numbers.map_err(io::Error::other)?[..] else {
            return Err(io::Error::other("no script"));
        };
        let micros = |number: u32| Duration::from_micros(number.into());
        Ok(Self { tokens, delay: micros(delay), gap: micros(gap) })
    }
}

/// Microseconds since 1970: the one clock that processes share.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}

/// What the process of the upstream runs; tells its address, and ends with its standard input.
pub(crate) fn run() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address: SocketAddr = listener.local_addr().expect("an address");
        println!("serving address={address}");
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            // Whoever is measured may go away at any time.
            connections.spawn(async { drop(serve(stream).await) });
            while connections.try_join_next().is_some() {}
        }
    });
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = Vec::new();
    while let Some(body) = request(&mut stream, &mut read).await? {
        let received = now();
        let body: Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
        let question = body["messages"].as_array().and_then(|all| all.last()?["content"].as_str());
        let script: Script = question.unwrap_or_default().parse()?;
        answer(&mut stream, received, script).await?;
    }
    Ok(())
}

/// The body of the next request.
async fn request(stream: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let (mut head, mut length) = (None, 0);
    loop {
        if head.is_none()
            && let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n")
        {
            let text = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            let value = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            length = value.unwrap_or("0").trim().parse().map_err(io::Error::other)?;
            head = Some(end + 4);
        }
        if let Some(head) = head
            && read.len() >= head + length
        {
            let rest = read.split_off(head + length);
            let body = read.split_off(head);
            *read = rest;
            return Ok(Some(body));
        }
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
}

async fn answer(stream: &mut TcpStream, received: u64, script: Script) -> io::Result<()> {
    let mut head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
        transfer-encoding: chunked\r\n\r\n"
        .to_vec();
    head.extend(delta(&json!({"role": "assistant", "content": ""}), &Value::Null));
    stream.write_all(&head).await?;
    if !script.delay.is_zero() {
        sleep(script.delay).await;
    }
    let (start, sent) = (Instant::now(), now());
    let first = json!({"content": format!("{received:016}:{sent:016} ")});
    stream.write_all(&delta(&first, &Value::Null)).await?;
    let tokens = TOKENS.map(|token| delta(&json!({"content": token}), &Value::Null));
    for n in 1..script.tokens {
        if !script.gap.is_zero() {
            sleep_until(start + script.gap * n).await;
        }
        stream.write_all(&tokens[n as usize % TOKENS.len()]).await?;
    }
    let mut end = delta(&json!({}), &json!("stop"));
    let usage = json!({"prompt_tokens": 7, "completion_tokens": script.tokens, "total_tokens": 7 + script.tokens});
    end.extend(event(&chunk(&json!([]), &usage).to_string()));
    end.extend(event("[DONE]"));
    end.extend(b"0\r\n\r\n");
    stream.write_all(&end).await
}

fn delta(delta: &Value, finish: &Value) -> Vec<u8> {
    let choice = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    event(&chunk(&choice, &Value::Null).to_string())
}

/// With the fields that vLLM sends.
fn chunk(choices: &Value, usage: &Value) -> Value {
    json!({
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "tiny",
        "choices": choices,
        "usage": usage,
    })
}

/// An event, as one chunk of HTTP's.
fn event(data: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = write!(bytes, "{:x}\r\ndata: {data}\n\n\r\n", "data: ".len() + data.len() + 2);
    bytes
}
