//! A layer that lets nobody in without a valid credential, whatever the path.
//!
//! It stands before routing, so that reflection, health and paths that do not exist are guarded like
//! the RPCs, and a service that is added later is too. It is the innermost layer: refusals are
//! observed like every other answer. Handlers find the [`Principal`] in the request's extensions.
//! The ops port does not come through here.

use std::{
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tonic::{body::Body, codegen::BoxFuture};
use tracing::debug;

use super::{Error, status::answer};
use crate::{
    auth::{Authenticator, Known, Principal, Refusal, Scope},
    domain::PeerCertificate,
    pb,
};

#[derive(Debug, Clone)]
pub(super) struct Layer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    authenticator: Authenticator,
    refused: Family<Reason, Counter>,
}

/// Never the principal: names come from outside, and labels must not grow with them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Layer {
    pub(super) fn new(authenticator: Authenticator, registry: &mut Registry) -> Self {
        let refused = Family::<Reason, Counter>::default();
        // A counter that begins with its first event hides that event: a rate needs a value before it.
        for reason in ["missing", "invalid", "scope"] {
            drop(refused.get_or_create(&Reason { reason }));
        }
        registry.sub_registry_with_prefix("auth").register(
            "refused",
            "Calls refused for want of a valid credential or of a scope",
            refused.clone(),
        );
        Self(Arc::new(Shared { authenticator, refused }))
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, shared: Arc::clone(&self.0), known: Arc::default() }
    }
}

#[derive(Debug)]
pub(super) struct Authenticate<S> {
    inner: S,
    shared: Arc<Shared>,
    /// The last token that was looked up. All calls of a connection come to the same clone, but for those by
    /// way of the router, and most show one token.
    known: Arc<Mutex<Option<Known>>>,
}

impl<S: Clone> Clone for Authenticate<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared), known: Arc::default() }
    }
}

impl<S> Authenticate<S> {
    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose request it is, if it may be made.
    fn admit<B>(&self, request: &Request<B>) -> Result<Principal, Error> {
        let (principal, found) = self.shared.authenticate(request)?;
        if found.is_some() {
            *self.known() = found;
        }
        self.shared.authorize(request.uri().path(), &principal)?;
        Ok(principal)
    }
}

impl<S, B> tower::Service<Request<B>> for Authenticate<S>
where
    S: tower::Service<Request<B>, Response = Response<Body>, Error: Send, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let recalled = self.shared.authenticator.recall(
            request.headers(),
            certificate(&request),
            self.known().as_ref(),
        );
        if let Some(principal) = recalled {
            return match self.shared.authorize(request.uri().path(), &principal) {
                Ok(()) => {
                    request.extensions_mut().insert(principal);
                    Either::Left(self.inner.call(request))
                }
                Err(error) => Either::Right(Box::pin(ready(Ok(answer(error.into()))))),
            };
        }
        // To look at a credential can take longer than all else. That is the call's time and not its
        // connection's, which has others to read.
        let mut this = Self { known: Arc::clone(&self.known), ..self.clone() };
        Either::Right(Box::pin(async move {
            match this.admit(&request) {
                Ok(principal) => {
                    request.extensions_mut().insert(principal);
                    this.inner.call(request).await
                }
                Err(error) => Ok(answer(error.into())),
            }
        }))
    }
}

/// What the peer has proven to own.
fn certificate<B>(request: &Request<B>) -> Option<&[u8]> {
    let certificate = request.extensions().get::<PeerCertificate>();
    certificate.map(|PeerCertificate(der)| der.as_ref())
}

impl Shared {
    fn authenticate<B>(&self, request: &Request<B>) -> Result<(Principal, Option<Known>), Error> {
        let found = self.authenticator.authenticate(request.headers(), certificate(request));
        found.map_err(|refusal| {
            let reason = match refusal {
                Refusal::Missing => "missing",
                Refusal::Invalid => "invalid",
            };
            self.count(reason);
            debug!(reason, "credential refused");
            Error::Credential(refusal)
        })
    }

    fn authorize(&self, path: &str, principal: &Principal) -> Result<(), Error> {
        if let Some(scope) = needed(path)
            && !principal.scopes.contains(scope)
        {
            self.count("scope");
            debug!(principal = &*principal.name, scope = scope.name(), "scope refused");
            return Err(Error::Scope(scope));
        }
        Ok(())
    }

    fn count(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}

/// The scope that a path needs; `None`: any principal may. The generated server compares the same
/// bytes, so there is no other spelling of a method.
fn needed(path: &str) -> Option<Scope> {
    match path.strip_prefix('/')?.strip_prefix(pb::CHATBOT_SERVICE)?.strip_prefix('/')? {
        "Teach" => Some(Scope::Teach),
        _ => Some(Scope::Chat),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{Layer as _, Service as _, ServiceExt as _};

    use super::*;
    use crate::config::{Config, Sources};

    /// A layer with one token, `t`, that may chat.
    fn guarded(folder: &tempfile::TempDir) -> Layer {
        let file = folder.path().join("tokens");
        // `printf %s t | sha256sum`
        let hash = "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8";
        std::fs::write(&file, format!("sha256:{hash} alice chat\n")).expect("a file");
        let overrides = vec![format!("auth.tokens_file={}", file.display())];
        let config = Config::load(&Sources { overrides, ..Sources::default() });
        let config = config.expect("good settings").auth;
        Layer::new(Authenticator::load(&config).expect("good tokens"), &mut Registry::default())
    }

    fn open() -> Layer {
        let config = Config::load(&Sources::default()).expect("the defaults").auth;
        Layer::new(Authenticator::load(&config).expect("no files"), &mut Registry::default())
    }

    /// The name of the principal that the handler saw, or the answer.
    async fn call(
        layer: &Layer,
        path: &str,
        token: Option<&str>,
    ) -> Result<String, Response<Body>> {
        let mut request = Request::builder().uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        send(layer, request.body(()).expect("a request")).await
    }

    async fn send(layer: &Layer, request: Request<()>) -> Result<String, Response<Body>> {
        let handler = tower::service_fn(|request: Request<()>| {
            let principal = request.extensions().get::<Principal>().expect("a principal");
            let body = Body::empty();
            let response = Response::builder().header("name", &*principal.name).body(body);
            ready(Ok::<_, Infallible>(response.expect("a response")))
        });
        let response = layer.layer(handler).oneshot(request).await.expect("infallible");
        match response.headers().get("name") {
            Some(name) => Ok(name.to_str().expect("ASCII").to_owned()),
            None => Err(response),
        }
    }

    fn count(layer: &Layer, reason: &'static str) -> u64 {
        layer.0.refused.get_or_create(&Reason { reason }).get()
    }

    #[tokio::test]
    async fn a_connection_knows_its_token_and_what_that_may_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let layer = guarded(&folder);
        let handler = |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(Body::empty())));
        let mut connection = layer.layer(tower::service_fn(handler));
        for (method, token, refused) in [
            ("Teach", "t", Some("7")),
            ("Ask", "t", None),
            ("Ask", "u", Some("16")),
            ("Teach", "t", Some("7")),
            ("Ask", "t", None),
        ] {
            let request = Request::builder()
                .uri(format!("/chatbot.v1.Chatbot/{method}"))
                .header("authorization", format!("Bearer {token}"));
            let request = request.body(()).expect("a request");
            let response = connection.ready().await.expect("always").call(request).await;
            let response = response.expect("infallible");
            let status = response.headers().get("grpc-status");
            let status = status.map(|status| status.to_str().expect("ASCII"));
            assert_eq!(status, refused, "{method}, {token}");
            assert!(connection.known().is_some());
        }
        assert!(connection.clone().known().is_none(), "it is another connection's");
        assert_eq!((count(&layer, "scope"), count(&layer, "invalid")), (2, 1));
    }

    #[tokio::test]
    async fn every_path_needs_a_principal_and_the_chatbots_a_scope_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let layer = guarded(&folder);
        let paths = [
            "/chatbot.v1.Chatbot/Ask",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/x.Y/Z",
            "/",
        ];
        for path in paths {
            assert_eq!(call(&layer, path, Some("t")).await.expect("let in"), "alice", "{path}");
            for (token, told) in [(None, "16"), (Some("u"), "16")] {
                let refused = call(&layer, path, token).await.expect_err("refused");
                assert_eq!(refused.headers()["grpc-status"], told, "{path}");
            }
        }
        let denied = call(&layer, "/chatbot.v1.Chatbot/Teach", Some("t")).await;
        assert_eq!(denied.expect_err("refused").headers()["grpc-status"], "7");
        let counted = ["missing", "invalid", "scope"].map(|reason| count(&layer, reason));
        assert_eq!(counted, [5, 5, 1]);
    }

    #[tokio::test]
    async fn the_owner_of_a_verified_certificate_is_let_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let layer = guarded(&folder);
        let names = vec!["web.example".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let request = |path: &str, der: &[u8]| {
            let mut request = Request::builder().uri(path).body(()).expect("a request");
            request.extensions_mut().insert(PeerCertificate(der.into()));
            request
        };
        let der = made.cert.der();
        for path in ["/chatbot.v1.Chatbot/Ask", "/chatbot.v1.Chatbot/Teach"] {
            assert_eq!(send(&layer, request(path, der)).await.expect("let in"), "web.example");
        }
        let refused = send(&layer, request("/", b"garbage")).await.expect_err("refused");
        assert_eq!(refused.headers()["grpc-status"], "16");
    }

    #[tokio::test]
    async fn without_credentials_anybody_may_do_anything() {
        let layer = open();
        for path in ["/chatbot.v1.Chatbot/Teach", "/chatbot.v1.Chatbot/Ask", "/x.Y/Z"] {
            assert_eq!(call(&layer, path, None).await.expect("let in"), "anonymous");
            // Sent by a client that is guarded elsewhere.
            assert_eq!(call(&layer, path, Some("u")).await.expect("let in"), "anonymous");
        }
    }
}
