//! Our side: the service as it is, with an engine and a store that answer from memory; and its layers
//! alone, around the constants of the bare server.
//!
//! Both are this program, started once more: the real accept loop, a token for each call, metrics, one
//! call in a hundred traced and exported, deadlines, health.

use std::{path::Path, pin::pin, sync::Arc, time::Duration};

use chatbot::{
    app::{App, Options},
    auth::Authenticator,
    config::{Config, Sources},
    domain::{
        Completion, ConversationId, ConversationKey, EventBody, FinishReason, Message, RequestId,
    },
    engine::{End, Engine, Error, Piece, Pieces, Question},
    health::Health,
    lifecycle::Lifecycle,
    net,
    rpc::{self, Layers},
    store::{Begin, Begun, ConversationLog as _, TurnOptions},
    telemetry::{CallSpans, Telemetry},
};
use futures_util::{StreamExt as _, stream};
use prometheus_client::registry::Registry;
use tokio_stream::wrappers::IntervalStream;
use uuid::Uuid;

use super::{constant::Constant, memory::Memory};

/// The principal that every call is made by, and its token.
pub(crate) const PRINCIPAL: &str = "wire";
pub(crate) const TOKEN: &str = "a-token-as-long-as-those-of-the-readme";
/// The request whose hundred events are in the log already, and what it asks.
pub(crate) const READY: Uuid = Uuid::from_u128(0x0b8e_4c8e_6d3a_4c36_9d1c_2f1f_0a3d_5e77);
pub(crate) const READY_QUERY: &str = "ready";
/// What is answered fifty times a second, a hundred times.
pub(crate) const LIVE_QUERY: &str = "live";

const ANSWER: &str = "Yes, and no more.";
const END: End = End {
    answered: true,
    confidence: 1.0,
    sources: Vec::new(),
    usage: None,
    finish: FinishReason::Stop,
    degraded: false,
};

const PIECES: usize = 100;
const GAP: Duration = Duration::from_millis(20);
/// As many bytes as an event of its own has.
const LIVE_PIECE: &str = "a piece of text ";
const SHORT_PIECE: &str = "a piece of text ";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All of the service.
    Service,
    /// Its layers.
    Layers,
}

/// Serves until the process is killed.
pub(crate) fn serve(kind: Kind, settings: &[String]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let sources = Sources { overrides: settings.to_vec(), ..Sources::default() };
    let config = Config::load(&sources).expect("good settings");
    let _telemetry = {
        let _context = runtime.enter();
        Telemetry::set_up(&config.telemetry).expect("logs and traces")
    };
    runtime.block_on(async {
        match kind {
            Kind::Service => service(config).await,
            Kind::Layers => layers(config).await,
        }
    });
}

/// The settings of both, with files in `folder` and traces to `traces`.
pub(crate) fn settings(folder: &Path, traces: &str) -> Vec<String> {
    let file = folder.join("tokens");
    let hash = ring::digest::digest(&ring::digest::SHA256, TOKEN.as_bytes());
    let hex: String =
        hash.as_ref().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    std::fs::write(&file, format!("sha256:{hex} {PRINCIPAL} chat\n")).expect("a file");
    vec![
        "server.address=127.0.0.1:0".to_owned(),
        "ops.address=127.0.0.1:0".to_owned(),
        // Behind one address there are more connections than one client has.
        "server.exempt_peers=127.0.0.0/8".to_owned(),
        format!("auth.tokens_file={}", file.display()),
        format!("telemetry.otlp_endpoint={traces}"),
        "telemetry.sample_ratio=0.01".to_owned(),
    ]
}

async fn service(config: Config) {
    let store = Arc::new(Memory::new());
    fill(&store).await;
    let options =
        Options { retrieval: Some(Arc::new(Constants)), store: Some(store), ..Options::default() };
    let life = Lifecycle::new();
    let app = pin!(App::bind(config, life, options)).await.expect("the service starts");
    app.run().await;
}

/// Logs the turn that is read again and again.
async fn fill(store: &Memory) {
    let request = RequestId(READY);
    let key = ConversationKey::new(PRINCIPAL, ConversationId::derived(PRINCIPAL, request));
    let message = Message { participant: PRINCIPAL.into(), text: READY_QUERY.to_owned(), request };
    let begin = Begin { message: message.into(), options: TurnOptions::default(), existing: false };
    let outcome = store.begin(&key, &begin).await.expect("a new turn");
    let Begun::New { owner, .. } = outcome else { unreachable!("the store is empty") };
    // The question and the end are events too.
    let pieces = vec![SHORT_PIECE; PIECES - 2];
    let completion = Completion {
        text: pieces.concat(),
        answered: true,
        confidence: 1.0,
        sources: Vec::new(),
        usage: None,
        finish: FinishReason::Stop,
        degraded: false,
    };
    let end = EventBody::Completed(completion.into());
    let deltas = pieces.into_iter().map(|piece| EventBody::Delta(piece.into()));
    let events: Vec<EventBody> = deltas.chain([end]).collect();
    store.append(&owner, 1, &events).await.expect("appended");
    store.keep(&key);
}

/// Answers from nowhere.
#[derive(Debug)]
struct Constants;

impl Engine for Constants {
    fn answer(&self, question: Question) -> Pieces {
        let end = stream::iter([Ok::<_, Error>(Piece::End(END))]);
        if question.text == LIVE_QUERY {
            let ticks = IntervalStream::new(tokio::time::interval(GAP)).take(PIECES);
            let pieces = ticks.map(|_| Ok(Piece::Text(LIVE_PIECE.repeat(16))));
            return Box::pin(pieces.chain(end));
        }
        let piece = Piece::Text(ANSWER.to_owned());
        Box::pin(stream::iter([Ok(piece)]).chain(end))
    }

    fn at_once(&self, question: &Question) -> Option<Result<(String, End), Error>> {
        (question.text != LIVE_QUERY).then(|| Ok((ANSWER.to_owned(), END)))
    }
}

async fn layers(config: Config) {
    let (life, mut registry) = (Lifecycle::new(), Registry::default());
    let listener = net::listen(config.server.address).expect("a port");
    let limits = &config.server.connections;
    let server = net::Server::new(listener, 10_000, limits, None, false, &life, &mut registry);
    let layers = Layers {
        authenticator: Authenticator::load(&config.auth).expect("credentials"),
        spans: CallSpans::new(config.telemetry.sample_ratio),
        receive_timeout: limits.receive_timeout,
        web: config.web,
    };
    let health = Health::new(&mut registry);
    let draining = life.draining().clone();
    let routes = rpc::routes(Constant, health, draining, true, layers, &mut registry);
    tracing::info!(address = %server.address().expect("an address"), "serving");
    server.run(routes.expect("routes")).await;
}
