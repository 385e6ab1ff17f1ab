//! One call on one connection: what the connection needs to know about it.
//!
//! hyper spawns every request on the executor that it is given, which is why the executor is ours: it
//! sees a call to the end of its last frame, and can end one whose peer takes nothing.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tower::util::Oneshot;
use tracing::debug;

use super::{
    governor::{Activity, CallGuard},
    wire::Heard,
};
use crate::{lifecycle::Lifecycle, pb};

/// What answers the calls of all connections.
pub trait Routes:
    tower::Service<
        Request<RequestBody>,
        Response = Response<Self::Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
    /// The body of a response.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;
}

impl<S, B> Routes for S
where
    S: tower::Service<
            Request<RequestBody>,
            Response = Response<B>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    type Body = B;
}

/// How the call's connection ends; handed to every call as a request extension.
#[derive(Debug, Clone, Default)]
pub struct Ending(Arc<End>);

#[derive(Debug, Default)]
struct End {
    now: CancellationToken,
    soon: CancellationToken,
    /// Set before `soon` is cancelled.
    at: OnceLock<tokio::time::Instant>,
}

impl Ending {
    /// Cancelled when the call has to say goodbye.
    pub fn now(&self) -> &CancellationToken {
        &self.0.now
    }

    /// Ends when the connection begins to leave: how long the call has until it must say goodbye.
    pub async fn announced(&self) -> Duration {
        self.0.soon.cancelled().await;
        let end = self.0.at.get().copied().unwrap_or_else(tokio::time::Instant::now);
        end.saturating_duration_since(tokio::time::Instant::now())
    }

    /// Tells the calls that the connection leaves, and how long they have.
    pub(super) fn announce(&self, time_left: Duration) {
        let _ = self.0.at.set(tokio::time::Instant::now() + time_left);
        self.0.soon.cancel();
    }
}

/// What all calls of one connection share.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) life: Lifecycle,
    pub(super) activity: Arc<Activity>,
    pub(super) heard: Arc<Heard>,
    pub(super) ending: Ending,
    pub(super) stall_timeout: Duration,
    /// The call that `call` has just begun and `execute` is about to run: hyper does one right after
    /// the other.
    begun: Mutex<Option<Call>>,
}

/// A call that has not ended.
#[derive(Debug)]
pub(super) struct Call {
    _guard: Option<CallGuard>,
    offer: Arc<Offer>,
}

/// What hyper was given and has not come back from. Counted and not timed, since a look at the clock for
/// each frame costs as much as the frame: odd while something is on offer, and another number for each.
#[derive(Debug, Default)]
struct Offer(AtomicU64);

impl Offer {
    // One task at a time makes and takes.
    fn make(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
    }

    fn taken(&self) {
        let offers = self.0.load(Ordering::Relaxed);
        self.0.store(offers + (offers & 1), Ordering::Relaxed);
    }

    /// Ends when the peer has not taken what is on offer for `limit`, or half as long again.
    async fn stalled(&self, limit: Duration) {
        let (mut before, mut halves) = (0, 0);
        loop {
            tokio::time::sleep(limit / 2).await;
            let offers = self.0.load(Ordering::Relaxed);
            let same = offers == before && offers & 1 == 1;
            halves = if same { halves + 1 } else { 0 };
            if halves == 2 {
                return;
            }
            before = offers;
        }
    }
}

impl Calls {
    pub(super) fn new(
        life: Lifecycle,
        activity: Arc<Activity>,
        heard: Arc<Heard>,
        stall_timeout: Duration,
    ) -> Self {
        let (ending, begun) = (Ending::default(), Mutex::default());
        Self { life, activity, heard, ending, stall_timeout, begun }
    }

    fn take_begun(&self) -> Option<Call> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn begin(&self, path: &str) -> Arc<Offer> {
        self.heard.sensible();
        // A probe that never closes its connection is a leak like any other.
        let counts = !pb::is_infrastructure(path);
        let offer = Arc::<Offer>::default();
        let guard = counts.then(|| self.activity.call());
        let call = Call { _guard: guard, offer: Arc::clone(&offer) };
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
        offer
    }
}

/// Runs calls; given to hyper.
#[derive(Debug, Clone)]
pub(super) struct Executor(pub(super) Arc<Calls>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let call = self.0.take_begun();
        // Boxed here, since a future is copied each time it is handed on, and once more when it ends: of a
        // kilobyte, that made ten kilobytes for a call.
        let future = Box::pin(work);
        let limit = self.0.stall_timeout;
        self.0.life.spawn_work(Work { future, call, limit, stalled: None });
    }
}

/// What hyper wants to be run, to its end or to that of a peer's patience.
struct Work<F> {
    future: Pin<Box<F>>,
    /// `None` for what is no call.
    call: Option<Call>,
    limit: Duration,
    /// Most calls are answered without waiting, and need no timer.
    stalled: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<F: Future<Output = ()>> Future for Work<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { future, call, limit, stalled } = &mut *self;
        if future.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(call) = call else { return Poll::Pending };
        let stalled = stalled.get_or_insert_with(|| {
            let (offer, limit) = (Arc::clone(&call.offer), *limit);
            Box::pin(async move { offer.stalled(limit).await })
        });
        ready!(stalled.as_mut().poll(context));
        // To drop the work resets the stream.
        debug!("a peer did not take its answer");
        Poll::Ready(())
    }
}

/// Begins calls; given to hyper.
#[derive(Debug, Clone)]
pub(super) struct Service<S> {
    pub(super) routes: S,
    pub(super) calls: Arc<Calls>,
    /// What every request of the connection is told, such as who is at the other end.
    pub(super) extensions: http::Extensions,
}

impl<S: Routes> hyper::service::Service<Request<Incoming>> for Service<S> {
    type Response = Response<ResponseBody<S::Body>>;
    type Error = Infallible;
    type Future = Answer<S>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let offer = self.calls.begin(request.uri().path());
        // Over HTTP/1.1 there is no executor that runs the call: it lasts as long as its response.
        let held = if request.version() < Version::HTTP_2 { self.calls.take_begun() } else { None };
        let heard = Arc::clone(&self.calls.heard);
        let mut request = request.map(|body| RequestBody { body, heard });
        request.extensions_mut().extend(self.extensions.clone());
        let response = Oneshot::new(self.routes.clone(), request);
        Answer { response, offer: Some(offer), held }
    }
}

pin_project_lite::pin_project! {
    /// A response that is not there yet.
    pub(super) struct Answer<S: Routes> {
        #[pin]
        response: Oneshot<S, Request<RequestBody>>,
        // Both are the body's when it is there.
        offer: Option<Arc<Offer>>,
        held: Option<Call>,
    }
}

impl<S: Routes> Future for Answer<S> {
    type Output = Result<Response<ResponseBody<S::Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(context))?;
        let (offer, held) = (this.offer.take(), this.held.take());
        if let Some(offer) = &offer {
            // hyper waits for room before it asks for the first frame.
            offer.make();
        }
        Poll::Ready(Ok(response.map(|body| ResponseBody { body, offer, held })))
    }
}

pin_project_lite::pin_project! {
    /// A request's body; its data is a sign of life.
    #[derive(Debug)]
    pub struct RequestBody {
        #[pin]
        body: Incoming,
        heard: Arc<Heard>,
    }
}

impl Body for RequestBody {
    type Data = <Incoming as Body>::Data;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, hyper::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(context));
        this.heard.sensible();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project_lite::pin_project! {
    /// A response's body. hyper asks for the next frame only when the peer has room for it, so a
    /// frame that was given and not followed by a question is one that the peer does not take.
    #[derive(Debug)]
    pub(super) struct ResponseBody<B> {
        #[pin]
        body: B,
        offer: Option<Arc<Offer>>,
        held: Option<Call>,
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let Some(offer) = this.offer else { return this.body.poll_frame(context) };
        offer.taken();
        let frame = ready!(this.body.poll_frame(context));
        offer.make();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
