//! Browsers: gRPC-Web, for the pages of the origins that are allowed, and nothing where none is.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header};
use tonic_web::GrpcWebLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config;

/// How long a browser may remember that it is allowed.
const REMEMBER: Duration = Duration::from_hours(24);

/// Request headers that a gRPC-Web client sends.
const REQUEST_HEADERS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-user-agent"),
];

/// Response headers that it has to see; without them a refusal looks like nothing.
const RESPONSE_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

/// The same routes, for gRPC-Web too.
pub(super) fn translated(routes: axum::Router, web: &config::Web) -> axum::Router {
    // The configuration has checked that they are origins.
    let origins =
        web.allowed_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::POST])
        .allow_headers(REQUEST_HEADERS)
        .expose_headers(RESPONSE_HEADERS)
        .max_age(REMEMBER);
    routes.layer(GrpcWebLayer::new()).layer(cors)
}
