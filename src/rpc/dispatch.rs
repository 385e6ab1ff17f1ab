//! The way of a call to its handler: the chatbot's own straight to the generated server, the others by a
//! router.
//!
//! A router finds a service among any number, behind a box for each layer and each body, and the chatbot
//! is what nearly every call is for. So the layers are one type around this one, which looks at the
//! beginning of the path itself. Pages of a browser, where they may call, come by a router as before.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::Router;
use http::{Request, Response};
use http_body_util::Either;
use tonic::{body::Body, codegen::BoxFuture};
use tower::ServiceExt as _;

use super::{
    authenticate::Authenticate,
    bounds::{Bounded, Bounds, BoxError},
    observe::{Observe, ObservedBody},
    rescue::Rescue,
    web,
};
use crate::{
    config, net,
    pb::chatbot::v1::chatbot_server::{Chatbot, ChatbotServer},
};

/// What all paths of the chatbot begin with.
const CHATBOT: &str = "/chatbot.v1.Chatbot/";

/// The chatbot, and everything else.
pub(super) struct Dispatch<C> {
    chatbot: ChatbotServer<C>,
    rest: Router,
}

impl<C: Chatbot> Dispatch<C> {
    pub(super) fn new(chatbot: ChatbotServer<C>, rest: Router) -> Self {
        Self { chatbot, rest }
    }
}

impl<C> Clone for Dispatch<C> {
    fn clone(&self) -> Self {
        Self { chatbot: self.chatbot.clone(), rest: self.rest.clone() }
    }
}

impl<C, B> tower::Service<Request<B>> for Dispatch<C>
where
    C: Chatbot,
    B: http_body::Body<Data = bytes::Bytes, Error = BoxError> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    /// Both are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.uri().path().starts_with(CHATBOT) {
            return self.chatbot.call(request);
        }
        let response = self.rest.clone().oneshot(request.map(axum::body::Body::new));
        Box::pin(async move { Ok(response.await?.map(Body::new)) })
    }
}

/// The services under their layers.
type Layered<C> = Observe<Rescue<Bounds<Authenticate<Dispatch<C>>>>>;

/// Everything that is served on the main port.
pub(super) struct Routes<C>(Ways<C>);

enum Ways<C> {
    Direct(Layered<C>),
    /// For pages of a browser too.
    Web(Router),
}

impl<C: Chatbot> Routes<C> {
    pub(super) fn new(layered: Layered<C>, web: &config::Web) -> Self {
        if web.allowed_origins.is_empty() {
            return Self(Ways::Direct(layered));
        }
        Self(Ways::Web(web::translated(Router::new().fallback_service(layered), web)))
    }
}

impl<C> Clone for Routes<C> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Ways::Direct(layered) => Ways::Direct(layered.clone()),
            Ways::Web(router) => Ways::Web(router.clone()),
        })
    }
}

type Direct<C> = <Layered<C> as tower::Service<Request<net::RequestBody>>>::Future;

impl<C: Chatbot> tower::Service<Request<net::RequestBody>> for Routes<C> {
    type Response = Response<Either<ObservedBody<Bounded>, axum::body::Body>>;
    type Error = Infallible;
    type Future = Routed<Direct<C>>;

    /// Every layer is always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<net::RequestBody>) -> Self::Future {
        match &mut self.0 {
            Ways::Direct(layered) => Routed::Direct { response: layered.call(request) },
            Ways::Web(router) => {
                let response = router.clone().oneshot(request.map(axum::body::Body::new));
                Routed::Web { response: Box::pin(response) }
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// A response that is not there yet.
    #[project = RoutedProjection]
    pub(super) enum Routed<F> {
        /// Of the layers.
        Direct {
            #[pin]
            response: F,
        },
        /// Of the router.
        Web { response: BoxFuture<Response<axum::body::Body>, Infallible> },
    }
}

impl<F, B> Future for Routed<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<Either<B, axum::body::Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match self.project() {
            RoutedProjection::Direct { response } => {
                ready!(response.poll(context))?.map(Either::Left)
            }
            RoutedProjection::Web { response } => {
                ready!(response.as_mut().poll(context))?.map(Either::Right)
            }
        }))
    }
}
