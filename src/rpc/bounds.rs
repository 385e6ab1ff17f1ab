//! A layer that ends every call: at its caller's deadline, with its connection, or when its request
//! does not come.
//!
//! The deadline covers the whole call, its stream included, and is answered with `DEADLINE_EXCEEDED`;
//! the library's own stops at the response's head and says CANCELLED. A call whose connection has to
//! end gets a status of its own that says "elsewhere, please", in trailers if its head is out already,
//! so that no client sees a bare reset.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, body::Body, codegen::Bytes};

use super::{Error, status::answer};
use crate::net::Ending;

/// How long to wait for a request, by the shape of its method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// All of it within the limit.
    Whole,
    /// Each frame within the limit of the one before.
    Frames,
    /// Its silence means nothing: the caller may have nothing to say.
    AtLeisure,
}

impl Arrival {
    fn of(path: &str) -> Self {
        match path {
            "/chatbot.v1.Chatbot/Converse" => Self::AtLeisure,
            "/chatbot.v1.Chatbot/Teach" => Self::Frames,
            _ if path.starts_with("/grpc.reflection.") => Self::AtLeisure,
            _ => Self::Whole,
        }
    }
}

/// The header with the caller's deadline. Looked up by its text it would be read anew for each call.
static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Any error.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The caller's deadline; handed to every call that has one as a request extension.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub(super) Instant);

#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    pub(super) receive_timeout: Duration,
}

impl<S> tower::Layer<S> for Layer {
    type Service = Bounds<S>;

    fn layer(&self, inner: S) -> Bounds<S> {
        Bounds { inner, receive_timeout: self.receive_timeout }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Bounds<S> {
    inner: S,
    receive_timeout: Duration,
}

impl<S, B> tower::Service<Request<B>> for Bounds<S>
where
    S: tower::Service<Request<Arriving<B>>, Response = Response<Body>>,
{
    type Response = Response<Bounded>;
    type Error = S::Error;
    type Future = BoundedCall<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let deadline = match deadline(request.headers()) {
            Ok(deadline) => deadline,
            Err(status) => return BoundedCall::Refused { status: Some(status) },
        };
        // Absent where there is no connection of ours, as in tests of a layer.
        let ending = request.extensions().get::<Ending>().cloned().unwrap_or_default();
        let arrival = Arrival::of(request.uri().path());
        let limit = self.receive_timeout;
        let mut request =
            request.map(|body| Arriving { body, arrival, limit, waiting: false, late: None });
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let response = self.inner.call(request);
        let end = End { ending, deadline, waiting: None };
        BoundedCall::Called { response, end: Some(end) }
    }
}

pin_project_lite::pin_project! {
    /// The response that is not there yet.
    #[project = BoundedProjection]
    pub(super) enum BoundedCall<F> {
        /// There is none.
        Refused { status: Option<Status> },
        /// It is being made.
        Called {
            #[pin]
            response: F,
            end: Option<End>,
        },
    }
}

impl<F, E> Future for BoundedCall<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Bounded>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let status = match self.project() {
            BoundedProjection::Refused { status } => status.take(),
            BoundedProjection::Called { response, end } => {
                if let Poll::Ready(response) = response.poll(context) {
                    let end = end.take();
                    return Poll::Ready(Ok(response?.map(|body| Bounded { body, end })));
                }
                match end {
                    Some(end) => Some(ready!(Pin::new(end).poll(context))),
                    None => None,
                }
            }
        };
        // It is polled to its end once.
        let Some(status) = status else { return Poll::Pending };
        Poll::Ready(Ok(answer(status)))
    }
}

/// What ends a call from outside: resolves to the status that it gets.
pub(super) struct End {
    ending: Ending,
    deadline: Option<Instant>,
    /// Most calls are answered without waiting, and need neither a place among those who wait for the
    /// connection's end nor a timer.
    waiting: Option<Box<Waiting>>,
}

struct Waiting {
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// What both wake.
    waker: Option<Waker>,
}

impl End {
    /// The status, if the call has to end now.
    fn now(&self) -> Option<Status> {
        if self.ending.is_now() {
            return Some(Error::Leaving.into());
        }
        let over = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        over.then(|| Error::Deadline.into())
    }
}

impl Future for End {
    type Output = Status;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Status> {
        let Self { ending, deadline, waiting } = &mut *self;
        let waiting = waiting.get_or_insert_with(|| {
            let ending = Box::pin(ending.now().clone().cancelled_owned());
            let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
            Box::new(Waiting { ending, deadline, waker: None })
        });
        // A stream is woken for each of its messages, and by the same waker.
        let same = waiting.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if same && waiting.deadline.is_none() && !ending.is_now() {
            return Poll::Pending;
        }
        if !same {
            waiting.waker = Some(context.waker().clone());
        }
        if waiting.ending.as_mut().poll(context).is_ready() {
            return Poll::Ready(Error::Leaving.into());
        }
        match &mut waiting.deadline {
            None => Poll::Pending,
            Some(deadline) => {
                ready!(deadline.as_mut().poll(context));
                Poll::Ready(Error::Deadline.into())
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// A response's body that may be ended from outside, with trailers.
    #[derive(Default)]
    pub(super) struct Bounded {
        #[pin]
        body: Body,
        // `None` once it has ended the call, or if there is none to end.
        end: Option<End>,
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        let Some(end) = this.end.as_mut() else { return Poll::Ready(None) };
        // The end first: a stream that always has something ready must not outrun it.
        let status = match end.now() {
            Some(status) => status,
            None => match this.body.as_mut().poll_frame(context) {
                Poll::Pending => ready!(Pin::new(end).poll(context)),
                frame @ Poll::Ready(_) => return frame,
            },
        };
        *this.end = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(match status.add_header(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(status) => Err(status),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project_lite::pin_project! {
    /// A request's body that has to come in time.
    pub(super) struct Arriving<B> {
        #[pin]
        body: B,
        arrival: Arrival,
        limit: Duration,
        waiting: bool,
        // Since the body was waited for first. Most are there when they are asked for, and need no timer.
        late: Option<Pin<Box<Sleep>>>,
    }
}

impl<B> http_body::Body for Arriving<B>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        if let Poll::Ready(frame) = this.body.poll_frame(context) {
            *this.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let begins = !std::mem::replace(this.waiting, true);
        match this.arrival {
            Arrival::AtLeisure => return Poll::Pending,
            // The time that the handler took for the last frame is not the caller's.
            Arrival::Frames if begins => *this.late = None,
            Arrival::Frames | Arrival::Whole => {}
        }
        let limit = *this.limit;
        let late = this.late.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(late.as_mut().poll(context));
        let status: Status = Error::NotReceived(*this.limit).into();
        Poll::Ready(Some(Err(status.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The deadline that the caller has set: `grpc-timeout`, at most eight digits and a unit (gRPC over
/// HTTP/2). A malformed one is refused: what the caller wants is unknown, and for ever is no guess.
fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get(&TIMEOUT) else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(timeout).ok_or(Error::Timeout)?;
    // So far away that it cannot be told is no deadline.
    Ok(Instant::now().checked_add(timeout))
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_hours(number),
        "M" => Duration::from_mins(number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tonic::Code;
    use tower::{Layer as _, Service as _};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// A call of a method whose handler reads its request and then answers with a body that never ends.
    async fn call(
        path: &str,
        body: axum::body::Body,
        adjust: impl FnOnce(&mut Request<axum::body::Body>),
    ) -> Response<Bounded> {
        let handler = tower::service_fn(|request: Request<Arriving<_>>| async move {
            if let Err(error) = request.into_body().collect().await {
                let status = Status::from_error(error);
                return Ok::<_, std::convert::Infallible>(answer(status));
            }
            Ok(Response::new(Body::new(Endless)))
        });
        let mut request = Request::builder().uri(path).body(body).expect("a request");
        adjust(&mut request);
        let mut service = Layer { receive_timeout: LIMIT }.layer(handler);
        service.call(request).await.expect("a response")
    }

    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            Poll::Pending
        }
    }

    async fn trailers(response: Response<Bounded>) -> Status {
        let collected = response.into_body().collect().await.expect("no reset");
        Status::from_header_map(collected.trailers().expect("trailers")).expect("a status")
    }

    fn head(response: &Response<Bounded>) -> Status {
        Status::from_header_map(response.headers()).expect("a status in the head")
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_covers_the_stream() {
        let start = Instant::now();
        let response = call("/x/Watch", axum::body::Body::empty(), |request| {
            request.headers_mut().insert("grpc-timeout", "7S".parse().expect("a value"));
        })
        .await;
        let status = trailers(response).await;
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(start.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_head_gets_its_deadline_there() {
        let response =
            call("/chatbot.v1.Chatbot/Teach", axum::body::Body::new(Endless), |request| {
                request.headers_mut().insert("grpc-timeout", "100m".parse().expect("a value"));
            })
            .await;
        assert_eq!(head(&response).code(), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_says_so_in_trailers() {
        let ending = Ending::default();
        let response = call("/x/Watch", axum::body::Body::empty(), |request| {
            request.extensions_mut().insert(ending.clone());
        })
        .await;
        ending.end();
        let status = trailers(response).await;
        assert_eq!(status.code(), Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_is_not_waited_for() {
        let start = Instant::now();
        let response =
            call("/chatbot.v1.Chatbot/Ask", axum::body::Body::new(Endless), |_| {}).await;
        assert_eq!(head(&response).code(), Code::DeadlineExceeded);
        assert_eq!(start.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_the_limit_for_each_frame() {
        let frames = futures_util::stream::unfold(0, |count| async move {
            if count == 5 {
                return None;
            }
            tokio::time::sleep(LIMIT / 2).await;
            Some((Ok::<_, axum::Error>(Bytes::from_static(b"x")), count + 1))
        });
        let start = Instant::now();
        let body = axum::body::Body::from_stream(frames);
        let response = call("/chatbot.v1.Chatbot/Teach", body, |_| {}).await;
        assert!(response.headers().get("grpc-status").is_none());
        assert_eq!(start.elapsed(), LIMIT / 2 * 5);
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(timeout("1H"), Some(Duration::from_hours(1)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        for malformed in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "999999999S", "1 S", "٣S"] {
            assert_eq!(timeout(malformed), None, "{malformed}");
        }
    }

    #[tokio::test]
    async fn a_malformed_timeout_is_refused() {
        let response = call("/x/Y", axum::body::Body::empty(), |request| {
            request.headers_mut().insert("grpc-timeout", "soon".parse().expect("a value"));
        })
        .await;
        assert_eq!(head(&response).code(), Code::InvalidArgument);
    }
}
