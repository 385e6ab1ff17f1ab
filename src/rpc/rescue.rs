//! A layer that corrects what the library answers before a handler runs.
//!
//! A request that cannot be read never reaches a handler: the generated code answers it itself, with
//! `OUT_OF_RANGE` for a message that is too large and `INTERNAL` for one that is garbage. Here both
//! become `INVALID_ARGUMENT`. What is no gRPC is refused, and a handler that panics is answered for. Only trailers-only responses without details are looked at; ours
//! always have details.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
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
    S::Future: Send + 'static,
    R: Into<axum::body::Body>,
    axum::body::Body: From<R>,
{
    type Response = Response<axum::body::Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !is_grpc(&request) {
            let mut refused = Response::new(axum::body::Body::empty());
            *refused.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(async { Ok(refused) });
        }
        let response = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            match response.await {
                Ok(response) => Ok(rescued(response?.map(axum::body::Body::from))),
                Err(_) => Ok(answer(Error::Panicked.into())),
            }
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

fn rescued(response: Response<axum::body::Body>) -> Response<axum::body::Body> {
    let Some(answered) = Status::from_header_map(response.headers()) else {
        return response;
    };
    let detailed = !answered.details().is_empty();
    let corrected = status::of_peer(answered);
    if detailed || corrected.details().is_empty() { response } else { answer(corrected) }
}
