//! `grpc.health.v1` over the registry: Check, Watch and List as the protocol's text has them.
//!
//! Written here because the usual crate has no List, ends a Watch of an unknown name, repeats equal
//! statuses, and lets an open Watch hold up a stop for ever.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Health, Service, State};

/// Bytes of a request. It has nothing but a name.
const REQUEST_BYTES: usize = 4 * 1024;
/// Watch streams at a time, of this port. Each is a task and a stream that may stay for ever.
const WATCHES: usize = 1000;

use crate::{
    domain::shown,
    pb::health::v1::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_check_response::ServingStatus,
        health_server::{self, HealthServer},
    },
};

/// The health service; its Watch streams end when `draining` is cancelled.
pub fn service(
    health: Health,
    draining: CancellationToken,
) -> HealthServer<impl health_server::Health> {
    let watches = Arc::new(Semaphore::new(WATCHES));
    HealthServer::new(Protocol { health, draining, watches })
        .max_decoding_message_size(REQUEST_BYTES)
}

struct Protocol {
    health: Health,
    draining: CancellationToken,
    watches: Arc<Semaphore>,
}

fn response(state: &State, service: Option<Service>) -> HealthCheckResponse {
    let status = match service.map(|service| state.serving(service)) {
        None => ServingStatus::ServiceUnknown,
        Some(true) => ServingStatus::Serving,
        Some(false) => ServingStatus::NotServing,
    };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for Protocol {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let Some(service) = Service::of(&name) else {
            let known = Service::ALL.map(|service| format!("{:?}", service.name())).join(", ");
            return Err(Status::not_found(format!(
                "unknown service {}, known are {known}",
                shown(&name)
            )));
        };
        Ok(Response::new(response(&self.health.state(), Some(service))))
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let state = self.health.state();
        let statuses: HashMap<_, _> = Service::ALL
            .into_iter()
            .map(|service| (service.name().to_owned(), response(&state, Some(service))))
            .collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = Service::of(&request.into_inner().service);
        let watch = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("there are {WATCHES} Watch streams already"))
        })?;
        let mut last = None;
        let changes = WatchStream::new(self.health.watch())
            .map(move |state| response(&state, service))
            .filter(move |now| {
                let changed = last.replace(*now) != Some(*now);
                std::future::ready(changed)
            })
            .map(Ok)
            .take_until(self.draining.clone().cancelled_owned());
        let end = stream::once(std::future::ready(Err(Status::unavailable("server is stopping"))));
        let stream = changes.chain(end).map(move |status| {
            let _held = &watch;
            status
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::{super::Dependency, health_server::Health as _, *};

    fn started() -> (Protocol, Dependency) {
        let health = Health::new(&mut Registry::default());
        let store = health.dependency("store");
        store.up();
        health.started();
        let watches = Arc::new(Semaphore::new(2));
        (Protocol { health, draining: CancellationToken::new(), watches }, store)
    }

    fn request(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    async fn watched(
        protocol: &Protocol,
        service: &str,
    ) -> Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>> {
        protocol.watch(request(service)).await.expect("a stream").into_inner()
    }

    async fn next(
        stream: &mut (impl Stream<Item = Result<HealthCheckResponse, Status>> + Unpin),
    ) -> ServingStatus {
        stream.next().await.expect("a message").expect("no error").status()
    }

    #[tokio::test]
    async fn check_knows_the_five_names_and_no_other() {
        let (protocol, _) = started();
        for name in ["", "chatbot.v1.Chatbot", "liveness", "readiness", "startup"] {
            let answer = protocol.check(request(name)).await.expect("a known name").into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
        }
        let error = protocol.check(request("Readiness")).await.expect_err("an unknown name");
        assert_eq!(error.code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn list_has_every_name_and_agrees_with_check() {
        let (protocol, store) = started();
        store.down();
        let list = protocol.list(Request::new(HealthListRequest {})).await.expect("a list");
        let statuses = list.into_inner().statuses;
        assert_eq!(statuses.len(), Service::ALL.len());
        for (name, status) in statuses {
            let check = protocol.check(request(&name)).await.expect("a known name").into_inner();
            assert_eq!(status, check, "{name}");
        }
    }

    #[tokio::test]
    async fn watch_sends_the_status_then_changes_only() {
        let (protocol, store) = started();
        let mut stream = watched(&protocol, "readiness").await;
        assert_eq!(next(&mut stream).await, ServingStatus::Serving);
        // A change of the state that does not change the status is not sent.
        protocol.health.dependency("knowledge").up();
        assert!(futures_util::poll!(stream.next()).is_pending());
        store.down();
        assert_eq!(next(&mut stream).await, ServingStatus::NotServing);
        store.up();
        assert_eq!(next(&mut stream).await, ServingStatus::Serving);
    }

    #[tokio::test]
    async fn watch_of_an_unknown_name_stays_open() {
        let (protocol, store) = started();
        let mut stream = watched(&protocol, "nobody").await;
        assert_eq!(next(&mut stream).await, ServingStatus::ServiceUnknown);
        store.down();
        assert!(futures_util::poll!(stream.next()).is_pending());
    }

    #[tokio::test]
    async fn watch_streams_are_limited_and_come_back() {
        let (protocol, _) = started();
        let first = watched(&protocol, "").await;
        let _second = watched(&protocol, "").await;
        let refused = protocol.watch(request("")).await.err().expect("two are the most");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(first);
        let _third = watched(&protocol, "").await;
    }

    #[tokio::test]
    async fn a_stop_is_seen_by_watchers_and_ends_them_at_the_drain() {
        let (protocol, _) = started();
        let mut stream = watched(&protocol, "").await;
        assert_eq!(next(&mut stream).await, ServingStatus::Serving);
        protocol.health.stopping();
        assert_eq!(next(&mut stream).await, ServingStatus::NotServing);
        protocol.draining.cancel();
        let end = stream.next().await.expect("an end").expect_err("a status");
        assert_eq!(end.code(), tonic::Code::Unavailable);
        assert!(stream.next().await.is_none());
    }
}
