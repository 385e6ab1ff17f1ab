//! A question by each of the ways that are compared, and what is heard of its answer.

use std::time::{Duration, Instant};

use chatbot::pb::chatbot::v1::{
    ChatRequest, Engine, FinishReason, chatbot_client::ChatbotClient, event::Event as Body,
};
use serde_json::{Value, json};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use crate::upstream::{FIRST, Script, TOKEN, now};

/// Streams on one connection; the server allows 100.
const STREAMS: usize = 50;

/// A way to the model.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// `/v1/chat/completions`: the upstream itself, or a proxy.
    Completions {
        /// The client.
        http: reqwest::Client,
        /// The whole address.
        url: String,
    },
    /// `Chat` of the service, by as many connections as it takes.
    Chat(Vec<ChatbotClient<Channel>>),
}

/// What was heard of one answer.
#[derive(Debug)]
pub(crate) struct Answer {
    start: Instant,
    script: Script,
    /// From the question to the first text, less the time that the model took for it.
    pub(crate) first: Option<Duration>,
    /// When the first token was sent, in microseconds since 1970.
    sent: u64,
    bytes: usize,
    /// Pieces that the text came in.
    pub(crate) pieces: usize,
    /// How long after its time each token was here, in microseconds; only with a gap.
    pub(crate) lags: Vec<u32>,
}

impl Way {
    /// The completions at `base`, such as `http://127.0.0.1:8000`.
    pub(crate) fn completions(base: &str) -> Self {
        let http = reqwest::Client::builder().pool_max_idle_per_host(1_000).tcp_nodelay(true);
        let url = format!("{base}/v1/chat/completions");
        Self::Completions { http: http.build().expect("a client"), url }
    }

    /// The service at `base`, with connections for as many streams.
    pub(crate) async fn chat(base: &str, streams: usize) -> Self {
        let mut clients = Vec::new();
        for _ in 0..streams.div_ceil(STREAMS) {
            let endpoint = Endpoint::from_shared(base.to_owned()).expect("an address");
            clients.push(ChatbotClient::new(endpoint.connect().await.expect("a connection")));
        }
        Self::Chat(clients)
    }

    /// Asks, as the stream of this number, and hears the answer to its end.
    pub(crate) async fn ask(&self, number: usize, script: Script) -> Result<Answer, Status> {
        let mut answer = Answer::new(script);
        match self {
            Self::Completions { http, url } => completions(http, url, &mut answer).await,
            Self::Chat(clients) => {
                let client = clients[number % clients.len()].clone();
                Box::pin(chat(client, &mut answer)).await?;
            }
        }
        assert_eq!(answer.tokens(), script.tokens, "the answer is whole");
        Ok(answer)
    }
}

async fn chat(mut client: ChatbotClient<Channel>, answer: &mut Answer) -> Result<(), Status> {
    let request = ChatRequest {
        query: answer.script.to_string(),
        request_id: Uuid::new_v4().to_string(),
        engine: Engine::Generative.into(),
        ..ChatRequest::default()
    };
    let mut stream = client.chat(request).await?.into_inner();
    let mut finish = None;
    while let Some(response) = stream.message().await? {
        match response.event.and_then(|event| event.event) {
            Some(Body::TextDelta(text)) => answer.hear(&text),
            Some(Body::TurnCompleted(end)) => finish = Some(end.finish_reason()),
            _ => {}
        }
    }
    assert_eq!(finish, Some(FinishReason::Stop));
    Ok(())
}

/// As simple as a client can be that checks what it gets.
async fn completions(http: &reqwest::Client, url: &str, answer: &mut Answer) {
    let question = json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": answer.script.to_string()}],
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let request = http.post(url).header("content-type", "application/json");
    let mut response = request.body(question.to_string()).send().await.expect("a response");
    let status = response.status();
    let (mut unread, mut finish) = (Vec::new(), None);
    while let Some(bytes) = response.chunk().await.expect("no error") {
        unread.extend_from_slice(&bytes);
        assert!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&unread));
        let mut begin = 0;
        while let Some(length) = unread[begin..].iter().position(|byte| *byte == b'\n') {
            let line = &unread[begin..begin + length];
            begin += length + 1;
            let Some(data) = line.strip_prefix(b"data: ").filter(|data| *data != b"[DONE]") else {
                continue;
            };
            let event: Value = serde_json::from_slice(data).expect("JSON");
            let choice = &event["choices"][0];
            if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty())
            {
                answer.hear(text);
            }
            finish = finish.or_else(|| choice["finish_reason"].as_str().map(str::to_owned));
        }
        unread.drain(..begin);
    }
    assert_eq!(finish.as_deref(), Some("stop"));
}

impl Answer {
    fn new(script: Script) -> Self {
        let (first, sent, bytes, pieces) = (None, 0, 0, 0);
        Self { start: Instant::now(), script, first, sent, bytes, pieces, lags: Vec::new() }
    }

    fn tokens(&self) -> u32 {
        let more = self.bytes.saturating_sub(FIRST) / TOKEN;
        u32::try_from(more + usize::from(self.bytes >= FIRST)).expect("few")
    }

    fn hear(&mut self, text: &str) {
        if self.first.is_none() {
            let mut times = text[..FIRST].trim_end().split(':').map(str::parse::<u64>);
            let mut time = || times.next().expect("two times").expect("a time");
            let (received, sent) = (time(), time());
            self.sent = sent;
            let model = Duration::from_micros(sent - received);
            self.first = Some(self.start.elapsed().saturating_sub(model));
        }
        let before = self.tokens();
        self.bytes += text.len();
        self.pieces += 1;
        let gap = u64::try_from(self.script.gap.as_micros()).expect("short");
        if gap > 0 {
            let since = now().saturating_sub(self.sent);
            let lag = |n: u32| since.saturating_sub(u64::from(n) * gap);
            let lags = (before..self.tokens()).map(|n| u32::try_from(lag(n)).unwrap_or(u32::MAX));
            self.lags.extend(lags);
        }
    }
}
