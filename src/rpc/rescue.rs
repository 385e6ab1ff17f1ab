//! A layer that corrects what the library answers before a handler runs.
//!
//! A request that cannot be read never reaches a handler: the generated code answers it itself, with
//! `OUT_OF_RANGE` for a message that is too large and `INTERNAL` for one that is garbage. Here both
//! become `INVALID_ARGUMENT`. What is no gRPC is refused, and a handler that panics is answered for. Only
//! trailers-only responses without details are looked at; ours always have details.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt as _, future::CatchUnwind};
use http::{Method, Request, Response, StatusCode, header};
use tonic::Status;

use super::{
    Error,
    status::{self, answer},
};

#[derive(Debug, Clone, Copy)]
pub(super) struct Layer;

impl<S> tower::Layer<S> for Layer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue { inner }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Rescue<S> {
    inner: S,
}

impl<S, B, R> tower::Service<Request<B>> for Rescue<S>
where
    S: tower::Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Rescued<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !is_grpc(&request) {
            return Rescued::Refused;
        }
        // The layers below do some of their work before their future is polled.
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.call(request))) {
            Ok(response) => Rescued::Called { response: AssertUnwindSafe(response).catch_unwind() },
            Err(_) => Rescued::Panicked,
        }
    }
}

pin_project_lite::pin_project! {
    /// The response that is not there yet.
    #[project = RescuedProjection]
    pub(super) enum Rescued<F> {
        /// It is no gRPC.
        Refused,
        /// There was a panic before there was anything to wait for.
        Panicked,
        /// It is being answered.
        Called {
            #[pin]
            response: CatchUnwind<AssertUnwindSafe<F>>,
        },
    }
}

impl<F, R, E> Future for Rescued<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Default,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project() {
            RescuedProjection::Refused => {
                let mut refused = Response::new(R::default());
                *refused.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                Ok(refused)
            }
            RescuedProjection::Panicked => Ok(answer(Error::Panicked.into())),
            RescuedProjection::Called { response } => match ready!(response.poll(context)) {
                Ok(response) => Ok(rescued(response?)),
                Err(_) => Ok(answer(Error::Panicked.into())),
            },
        })
    }
}

/// Whether it is a gRPC request by its head, which the protocol asks servers to look at (415 else).
/// A page of anywhere can make a browser send other POSTs, with the user's client certificate.
fn is_grpc<B>(request: &Request<B>) -> bool {
    let content = request.headers().get(header::CONTENT_TYPE);
    request.method() == Method::POST
        && content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"))
}

fn rescued<R: Default>(response: Response<R>) -> Response<R> {
    let Some(answered) = Status::from_header_map(response.headers()) else {
        return response;
    };
    let detailed = !answered.details().is_empty();
    let corrected = status::of_peer(answered);
    if detailed || corrected.details().is_empty() { response } else { answer(corrected) }
}

#[cfg(test)]
mod tests {
    use tonic::body::Body;
    use tower::{Layer as _, Service as _};

    use super::*;

    type Answer = Result<Response<Body>, std::convert::Infallible>;

    #[tokio::test]
    async fn a_panic_is_answered_whenever_it_comes() {
        let request = || {
            let request = Request::post("/a.B/C").header("content-type", "application/grpc");
            request.body(()).expect("a request")
        };
        let at_once =
            tower::service_fn(|_: Request<()>| -> std::future::Ready<Answer> { panic!("at once") });
        let later = tower::service_fn(async |_: Request<()>| -> Answer { panic!("later") });
        for answer in
            [Layer.layer(at_once).call(request()).await, Layer.layer(later).call(request()).await]
        {
            let Ok(answer) = answer;
            let status = Status::from_header_map(answer.headers()).expect("a status");
            assert_eq!(status.code(), tonic::Code::Internal);
        }
    }
}
