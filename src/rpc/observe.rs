//! A layer that observes every call to its very end: a span, a count, a duration, by method and code.
//!
//! A call ends with its response *body*: a stream's status comes in its trailers, long after the
//! handler has returned. A body that is dropped before its trailers is a call that the client gave
//! up, or that the server had to cut.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Body, Frame, SizeHint};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tonic::Code;
use tracing::{Instrument as _, instrument::Instrumented};

use crate::{
    pb,
    telemetry::{CallSpan, CallSpans},
};

/// The methods that are told apart. Callers can send any path; labels must not grow with it. All others are
/// counted under the last name, which the conventions give them.
const METHODS: [&str; 7] = [
    "chatbot.v1.Chatbot/Ask",
    "chatbot.v1.Chatbot/CancelTurn",
    "chatbot.v1.Chatbot/Chat",
    "chatbot.v1.Chatbot/Converse",
    "chatbot.v1.Chatbot/RankAnswers",
    "chatbot.v1.Chatbot/Teach",
    OTHER,
];
const OTHER: &str = "_OTHER";
/// Of these the first message is timed. An answer to one request that comes in pieces: of a unary call it is
/// the end, and `Converse` waits for its client.
const STREAMS: [&str; 2] = ["chatbot.v1.Chatbot/Chat", "chatbot.v1.Chatbot/RankAnswers"];
/// The codes that are counted from zero: success, and what the server is to blame for.
const EXPECTED: [Code; 6] = [
    Code::Ok,
    Code::Unknown,
    Code::DeadlineExceeded,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
];
/// Status codes, from 0.
const CODES: usize = 17;
/// The header or trailer with the code. Looked up by its text it would be read anew for each call.
static STATUS: HeaderName = HeaderName::from_static("grpc-status");

#[derive(Debug, Clone)]
pub(super) struct Layer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    spans: CallSpans,
    handled: Family<Handled, Counter>,
    /// In the order of `METHODS`.
    methods: [Handles; METHODS.len()],
}

/// The metrics of one method, kept: looking them up by their labels locks and hashes.
#[derive(Debug)]
struct Handles {
    method: &'static str,
    /// By code, from its first call on.
    handled: [OnceLock<Counter>; CODES],
    duration: Histogram,
    /// Where it is timed.
    first_message: Option<Histogram>,
    in_flight: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handled {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

impl Layer {
    pub(super) fn new(spans: CallSpans, registry: &mut Registry) -> Self {
        let histogram =
            |buckets| move || Histogram::new(exponential_buckets(0.000_25, 2.0, buckets));
        let handled = Family::<Handled, Counter>::default();
        let durations = Family::<Method, _, _>::new_with_constructor(histogram(20));
        let first_messages = Family::<Method, _, _>::new_with_constructor(histogram(18));
        let in_flight = Family::<Method, Gauge>::default();
        let methods = METHODS.map(|method| {
            // A counter that begins with its first call hides it: a rate needs a value before it.
            for code in EXPECTED {
                drop(handled.get_or_create(&Handled { method, code: name(code) }));
            }
            let labels = Method { method };
            let timed = STREAMS.contains(&method);
            Handles {
                method,
                handled: Default::default(),
                duration: durations.get_or_create(&labels).clone(),
                first_message: timed.then(|| first_messages.get_or_create(&labels).clone()),
                in_flight: in_flight.get_or_create(&labels).clone(),
            }
        });
        let registry = registry.sub_registry_with_prefix("rpc");
        registry.register("handled", "Calls that ended, by method and code", handled.clone());
        registry.register_with_unit(
            "duration",
            "Duration of calls to the end of their response",
            Unit::Seconds,
            durations,
        );
        registry.register_with_unit(
            "first_message",
            "From a call to the first message of its streamed response",
            Unit::Seconds,
            first_messages,
        );
        registry.register("in_flight", "Calls that have not ended, by method", in_flight);
        let shared = Shared { spans, handled, methods };
        Self(Arc::new(shared))
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, shared: Arc::clone(&self.0) }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Observe<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B, R> tower::Service<Request<B>> for Observe<S>
where
    S: tower::Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<ObservedBody<R>>;
    type Error = S::Error;
    type Future = ObservedCall<Instrumented<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        // Probes would drown the rest.
        let observed = !pb::is_infrastructure(path);
        let call = observed.then(|| Call::start(&self.shared, path, request.headers()));
        let span = call.as_ref().map_or_else(tracing::Span::none, |call| call.span.span().clone());
        let response = span.in_scope(|| self.inner.call(request)).instrument(span);
        ObservedCall { response, call }
    }
}

/// A call that has not ended. Dropped without an end, the client has gone.
#[derive(Debug)]
struct Call {
    shared: Arc<Shared>,
    span: CallSpan,
    /// Its place in `METHODS`.
    method: usize,
    start: Instant,
    /// Whether a message of the response has been seen.
    answered: bool,
    code: Code,
}

impl Call {
    fn start(shared: &Arc<Shared>, path: &str, headers: &HeaderMap) -> Self {
        let name = path.strip_prefix('/').unwrap_or(path);
        let method = METHODS.iter().position(|method| *method == name);
        let method = method.unwrap_or(METHODS.len() - 1);
        shared.methods[method].in_flight.inc();
        Self {
            shared: Arc::clone(shared),
            span: shared.spans.start(METHODS[method], headers),
            method,
            start: Instant::now(),
            answered: false,
            code: Code::Cancelled,
        }
    }

    /// A part of a message is on its way.
    fn message(&mut self) {
        if !self.answered {
            self.answered = true;
            if let Some(histogram) = &self.shared.methods[self.method].first_message {
                histogram.observe(self.start.elapsed().as_secs_f64());
            }
        }
    }

    /// Takes the code from headers or trailers, if they have one.
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(&STATUS) {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Self { shared, method, .. } = self;
        let handles = &shared.methods[*method];
        let (method, code) = (handles.method, name(self.code));
        handles.in_flight.dec();
        let create = || shared.handled.get_or_create(&Handled { method, code }).clone();
        // By its number: `Code` has them all.
        handles.handled[self.code as usize].get_or_init(create).inc();
        handles.duration.observe(self.start.elapsed().as_secs_f64());
        self.span.end(code, is_server_fault(self.code));
    }
}

/// The name of a code as the protocol has it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The codes that the conventions count as errors of a server's span.
fn is_server_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

pin_project_lite::pin_project! {
    /// The response that is not there yet.
    pub(super) struct ObservedCall<F> {
        #[pin]
        response: F,
        call: Option<Call>,
    }
}

impl<F, R, E> Future for ObservedCall<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<ObservedBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(context))?;
        let mut call = this.call.take();
        if let Some(call) = &mut call {
            call.see(response.headers());
        }
        Poll::Ready(Ok(response.map(|body| ObservedBody { body, call })))
    }
}

pin_project_lite::pin_project! {
    /// The body whose trailers end the call.
    pub(super) struct ObservedBody<B> {
        #[pin]
        body: B,
        call: Option<Call>,
    }
}

impl<B: Body> Body for ObservedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = {
            // A handler's stream runs in here: its log lines belong to the call.
            let _entered = this.call.as_ref().map(|call| call.span.span().enter());
            ready!(this.body.poll_frame(context))
        };
        match (&frame, this.call.as_mut()) {
            (Some(Ok(frame)), Some(call)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    call.see(trailers);
                    *this.call = None;
                } else {
                    call.message();
                }
            }
            (None | Some(Err(_)), _) => *this.call = None,
            (Some(Ok(_)), None) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty, StreamBody};
    use tower::{Layer as _, Service as _, ServiceExt as _};

    use super::*;

    type Bytes = &'static [u8];

    fn layer() -> Layer {
        Layer::new(CallSpans::new(0.0), &mut Registry::default())
    }

    fn count(layer: &Layer, method: &'static str, code: &'static str) -> u64 {
        layer.0.handled.get_or_create(&Handled { method, code }).get()
    }

    async fn call<B: Body>(
        layer: &Layer,
        path: &str,
        response: Response<B>,
    ) -> Response<ObservedBody<B>> {
        let mut response = Some(response);
        let mut service = layer.layer(tower::service_fn(move |_: Request<()>| {
            std::future::ready(Ok::<_, std::convert::Infallible>(response.take().expect("once")))
        }));
        let request = Request::builder().uri(path).body(()).expect("a request");
        service.ready().await.expect("ready").call(request).await.expect("a response")
    }

    fn stream() -> impl Body<Data = Bytes, Error = std::convert::Infallible> {
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static("14"),
        )]);
        let data = || Ok(Frame::data(b"x".as_slice()));
        let frames = [data(), data(), Ok(Frame::trailers(trailers))];
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_trailers_not_with_its_headers() {
        let layer = layer();
        let mut response = call(&layer, "/chatbot.v1.Chatbot/Chat", Response::new(stream())).await;
        let chat = layer.0.methods.iter().find(|method| method.method.ends_with("/Chat"));
        let in_flight = || chat.expect("a method").in_flight.get();
        assert_eq!(in_flight(), 1);
        response.body_mut().frame().await.expect("data").expect("no error");
        response.body_mut().frame().await.expect("data").expect("no error");
        assert_eq!(count(&layer, "chatbot.v1.Chatbot/Chat", "UNAVAILABLE"), 0);
        response.body_mut().frame().await.expect("trailers").expect("no error");
        assert_eq!(count(&layer, "chatbot.v1.Chatbot/Chat", "UNAVAILABLE"), 1);
        drop(response);
        assert_eq!(count(&layer, "chatbot.v1.Chatbot/Chat", "CANCELLED"), 0);
        assert_eq!(in_flight(), 0);
    }

    #[tokio::test]
    async fn the_first_message_of_a_stream_is_timed_and_no_other() {
        let mut registry = Registry::default();
        let layer = Layer::new(CallSpans::new(0.0), &mut registry);
        for path in ["Chat", "Ask", "Converse"] {
            let path = format!("/chatbot.v1.Chatbot/{path}");
            let mut response = call(&layer, &path, Response::new(stream())).await;
            while response.body_mut().frame().await.is_some() {}
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String");
        let name = "rpc_first_message_seconds_count";
        let counts: Vec<_> = text.lines().filter(|line| line.starts_with(name)).collect();
        let chat = format!("{name}{{method=\"chatbot.v1.Chatbot/Chat\"}} 1");
        assert!(counts.contains(&chat.as_str()), "{text}");
        assert!(counts.iter().filter(|count| !count.ends_with(" 0")).count() == 1, "{text}");
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_was_cancelled() {
        let layer = layer();
        drop(call(&layer, "/chatbot.v1.Chatbot/Chat", Response::new(stream())).await);
        assert_eq!(count(&layer, "chatbot.v1.Chatbot/Chat", "CANCELLED"), 1);
    }

    #[tokio::test]
    async fn a_status_in_the_headers_counts() {
        let layer = layer();
        let refused = Response::builder()
            .header("grpc-status", "3")
            .body(Empty::<Bytes>::new())
            .expect("a response");
        drop(call(&layer, "/chatbot.v1.Chatbot/Ask", refused).await);
        assert_eq!(count(&layer, "chatbot.v1.Chatbot/Ask", "INVALID_ARGUMENT"), 1);
    }

    #[tokio::test]
    async fn unknown_paths_share_a_label_and_probes_have_none() {
        let layer = layer();
        drop(call(&layer, "/x.Y/Z", Response::new(stream())).await);
        drop(call(&layer, "/grpc.health.v1.Health/Check", Response::new(stream())).await);
        assert_eq!(count(&layer, OTHER, "CANCELLED"), 1);
        assert_eq!(count(&layer, "grpc.health.v1.Health/Check", "CANCELLED"), 0);
    }
}
