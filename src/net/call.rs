//! One call on one connection: what the connection needs to know about it.
//!
//! hyper spawns every request on the executor that it is given, which is why the executor is ours: it
//! sees a call to the end of its last frame, and can end one whose peer takes nothing. And it makes a task
//! only of what has to wait: most calls are answered at once, by their connection when it has read all
//! that there was, so that their answers leave together and no call pays for a task.

use std::{
    any::Any,
    convert::Infallible,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    clock::Clock,
    governor::{Activity, CallGuard},
    wire::Heard,
};
use crate::{lifecycle::Lifecycle, pb};

/// For how long a connection runs its new calls itself. The rest become tasks, so that calls which compute
/// get other processors than the one that reads their connection.
const OWN_TIME: Duration = Duration::from_micros(100);
/// Calls that become tasks at once after one that took longer than that by itself: more like it may follow.
const OTHERS: usize = 64;

/// What answers calls. It is always ready for one. Each connection has a clone of its own.
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
    /// Set before `now` is cancelled.
    is_now: AtomicBool,
    now: CancellationToken,
    soon: CancellationToken,
    /// Set before `soon` is cancelled.
    at: OnceLock<tokio::time::Instant>,
}

impl Ending {
    /// Whether the call has to say goodbye: asked for each frame, where the token would lock.
    pub fn is_now(&self) -> bool {
        self.0.is_now.load(Ordering::Acquire)
    }

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

    /// Tells the calls to say goodbye.
    pub(crate) fn end(&self) {
        self.0.is_now.store(true, Ordering::Release);
        self.0.now.cancel();
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
    /// hyper's.
    pub(super) clock: Clock,
    /// The call that `call` has just begun and `execute` is about to run: hyper does one right after
    /// the other.
    begun: Mutex<Option<Call>>,
    /// Calls that nobody has run yet, and how many of them are not to be run by their connection.
    new: Mutex<Vec<Work>>,
    others: AtomicUsize,
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
        let (ending, begun, new) = (Ending::default(), Mutex::default(), Mutex::default());
        let (clock, others) = (Clock::new(), AtomicUsize::new(0));
        Self { life, activity, heard, ending, stall_timeout, clock, begun, new, others }
    }

    fn take_begun(&self) -> Option<Call> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn new_calls(&self) -> MutexGuard<'_, Vec<Work>> {
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the new calls up to where they have to wait, and makes tasks of those.
    fn run_new(&self) {
        let new = std::mem::take(&mut *self.new_calls());
        if new.is_empty() {
            return;
        }
        let mut others = self.others.load(Ordering::Relaxed);
        let mut left = OWN_TIME;
        // A task asks again, with its own waker, before it waits.
        let mut context = Context::from_waker(Waker::noop());
        // One look at the clock for each: the end of one is the beginning of the next.
        let mut before = None;
        for mut work in new {
            if others > 0 {
                others -= 1;
            } else if !left.is_zero() {
                let start = before.unwrap_or_else(Instant::now);
                let future = work.future.as_mut();
                // A panic ends this call alone, as it would a task: to drop the work resets the stream.
                let polled = catch_unwind(AssertUnwindSafe(|| future.poll(&mut context)));
                let mut rest = Some(work);
                if !matches!(polled, Ok(Poll::Pending)) {
                    let _ = catch_unwind(AssertUnwindSafe(|| rest = None));
                }
                let now = Instant::now();
                before = Some(now);
                left = left.saturating_sub(now - start);
                if now - start > OWN_TIME {
                    others = OTHERS;
                }
                let Some(waits) = rest else { continue };
                work = waits;
            }
            // Nobody's time but the task's.
            before = None;
            self.life.spawn_work(work);
        }
        // One task at a time runs them.
        self.others.store(others, Ordering::Relaxed);
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
        let work = Work { future, call, limit, stalled: None };
        if work.call.is_some() {
            self.0.new_calls().push(work);
        } else {
            self.0.life.spawn_work(work);
        }
    }
}

pin_project_lite::pin_project! {
    /// A connection that runs what it has begun.
    pub(super) struct Serving<C> {
        #[pin]
        connection: C,
        calls: Arc<Calls>,
    }
}

impl<C> Serving<C> {
    pub(super) fn new(connection: C, calls: Arc<Calls>) -> Self {
        Self { connection, calls }
    }

    /// hyper's part of it.
    pub(super) fn connection(self: Pin<&mut Self>) -> Pin<&mut C> {
        self.project().connection
    }
}

impl<C: Future> Future for Serving<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.project();
        this.calls.clock.set();
        let polled = this.connection.poll(context);
        // An answer wakes the connection, which writes it when it is polled again.
        this.calls.run_new();
        polled
    }
}

/// What hyper wants to be run, to its end or to that of a peer's patience.
struct Work {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// `None` for what is no call.
    call: Option<Call>,
    limit: Duration,
    /// Most calls are answered without waiting, and need no timer.
    stalled: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl fmt::Debug for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Work").field("call", &self.call).finish_non_exhaustive()
    }
}

impl Future for Work {
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
    routes: Arc<Mutex<S>>,
    calls: Arc<Calls>,
    /// What every request of the connection is told, such as who is at the other end.
    extensions: http::Extensions,
}

impl<S> Service<S> {
    pub(super) fn new(routes: S, calls: Arc<Calls>, extensions: http::Extensions) -> Self {
        Self { routes: Arc::new(Mutex::new(routes)), calls, extensions }
    }
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
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        // A panic is the call's and not the connection's: it goes on where the call is run.
        let begun = match catch_unwind(AssertUnwindSafe(|| routes.call(request))) {
            Ok(response) => Begun::Response { response },
            Err(panic) => Begun::Panic { panic: Some(panic) },
        };
        Answer { begun, offer: Some(offer), held }
    }
}

pin_project_lite::pin_project! {
    /// What the routes have begun.
    #[project = BegunProjection]
    enum Begun<F> {
        Response {
            #[pin]
            response: F,
        },
        Panic { panic: Option<Box<dyn Any + Send>> },
    }
}

pin_project_lite::pin_project! {
    /// A response that is not there yet.
    pub(super) struct Answer<S: Routes> {
        #[pin]
        begun: Begun<S::Future>,
        // Both are the body's when it is there.
        offer: Option<Arc<Offer>>,
        held: Option<Call>,
    }
}

impl<S: Routes> Future for Answer<S> {
    type Output = Result<Response<ResponseBody<S::Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.begun.project() {
            BegunProjection::Response { response } => ready!(response.poll(context))?,
            BegunProjection::Panic { panic } => match panic.take() {
                Some(panic) => resume_unwind(panic),
                None => return Poll::Pending,
            },
        };
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

#[cfg(test)]
mod tests {
    use hyper::rt::Executor as _;
    use tokio::sync::{mpsc, oneshot};

    use super::{super::governor::Governor, *};

    type Begun = Vec<Pin<Box<dyn Future<Output = ()> + Send>>>;

    /// A connection that begins calls when it is polled, and never ends.
    fn serving(mut calls: impl FnMut() -> Option<Begun>) -> impl Future<Output = Infallible> {
        let permit = Governor::new(1, 1, Vec::new()).admit(([10, 0, 0, 1], 1).into());
        let activity = Arc::clone(permit.expect("the first").activity());
        let limit = Duration::from_secs(20);
        let shared = Arc::new(Calls::new(Lifecycle::new(), activity, Arc::default(), limit));
        let executor = Executor(Arc::clone(&shared));
        let connection = std::future::poll_fn(move |_| {
            for call in calls().into_iter().flatten() {
                executor.0.begin("/chatbot.v1.Chatbot/Ask");
                executor.execute(call);
            }
            Poll::Pending
        });
        Serving::new(connection, shared)
    }

    /// The task that polls.
    fn task() -> Option<tokio::task::Id> {
        tokio::task::try_id()
    }

    #[tokio::test]
    async fn a_call_that_need_not_wait_is_no_task_and_one_that_has_to_is() {
        let (told, mut tasks) = mpsc::channel(2);
        let (go, gone) = oneshot::channel::<()>();
        let (first, second) = (told.clone(), told);
        let calls: Begun = vec![
            Box::pin(async move { first.try_send(("at once", task())).expect("the test listens") }),
            Box::pin(async move {
                gone.await.expect("it is let go");
                second.try_send(("waited", task())).expect("the test listens");
            }),
        ];
        let mut calls = Some(calls);
        let mut connection = Box::pin(serving(move || calls.take()));
        assert!(futures_util::poll!(connection.as_mut()).is_pending());
        // The test itself is no task, so neither is what it polls.
        assert_eq!(tasks.try_recv(), Ok(("at once", None)));
        go.send(()).expect("it waits");
        let (name, task) = tasks.recv().await.expect("it goes on");
        assert_eq!((name, task.is_some()), ("waited", true));
    }

    #[tokio::test]
    async fn a_call_that_panics_ends_itself_and_no_other() {
        let (told, mut ended) = mpsc::channel(2);
        let calls: Begun = vec![
            Box::pin(async { panic!("on purpose") }),
            Box::pin(async move { told.try_send(()).expect("the test listens") }),
        ];
        let mut calls = Some(calls);
        let mut connection = Box::pin(serving(move || calls.take()));
        assert!(futures_util::poll!(connection.as_mut()).is_pending());
        assert_eq!(ended.recv().await, Some(()));
    }

    #[tokio::test]
    async fn calls_that_compute_for_long_leave_the_others_to_other_processors() {
        let (told, mut tasks) = mpsc::channel(OTHERS + 2);
        let long = told.clone();
        let mut calls: Begun = vec![Box::pin(async move {
            let start = Instant::now();
            while start.elapsed() <= OWN_TIME {}
            long.try_send(task()).expect("the test listens");
        })];
        for _ in 0..=OTHERS {
            let told = told.clone();
            calls.push(Box::pin(async move { told.try_send(task()).expect("the test listens") }));
        }
        let last = calls.pop().expect("the last");
        let (mut one, mut next) = (Some(calls), Some(vec![last]));
        let mut connection = Box::pin(serving(move || one.take().or_else(|| next.take())));
        assert!(futures_util::poll!(connection.as_mut()).is_pending());
        assert_eq!(tasks.try_recv(), Ok(None));
        for _ in 0..OTHERS {
            assert!(tasks.recv().await.expect("it runs").is_some());
        }
        // Then it is tried again.
        assert!(futures_util::poll!(connection.as_mut()).is_pending());
        assert_eq!(tasks.try_recv(), Ok(None));
    }
}
