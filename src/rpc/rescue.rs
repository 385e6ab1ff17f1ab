//! A layer that corrects what the library answers before a handler runs.
//!
//! A request that cannot be read never reaches a handler: the generated code answers it itself, with
//! `OUT_OF_RANGE` for a message that is too large and `INTERNAL` for one that is garbage. Here both
//! become `INVALID_ARGUMENT`. Only trailers-only responses without details are looked at; ours
//! always have details.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{Status, body::Body};

use super::status;

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
        let response = self.inner.call(request);
        Box::pin(async move { Ok(rescued(response.await?.map(axum::body::Body::from))) })
    }
}

fn rescued(response: Response<axum::body::Body>) -> Response<axum::body::Body> {
    let Some(answered) = Status::from_header_map(response.headers()) else {
        return response;
    };
    let code = answered.code();
    let corrected = status::of_peer(answered);
    if corrected.code() == code {
        return response;
    }
    corrected.into_http::<Body>().map(axum::body::Body::new)
}
