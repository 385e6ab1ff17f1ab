//! The generated types of `proto/`, and the descriptor sets that reflection serves.
//!
//! Nothing but generated code and its codec lives here; conversions are in `rpc::convert`.

pub mod codec;

/// `chatbot.v1`: the contract of this service.
pub mod chatbot {
    /// Version 1.
    #[expect(clippy::pedantic, clippy::allow_attributes, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("chatbot.v1");
    }
}

/// `grpc.health.v1`: the health checking protocol.
pub mod health {
    /// Version 1.
    #[expect(clippy::pedantic, clippy::allow_attributes, missing_docs, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("grpc.health.v1");
    }
}

/// The full name of the chatbot service, as health checks and error domains use it.
pub const CHATBOT_SERVICE: &str = "chatbot.v1.Chatbot";

/// The encoded descriptor set of `chatbot.v1`, for reflection.
pub const CHATBOT_DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("chatbot_descriptor");

/// The encoded descriptor set of `grpc.health.v1`, for reflection.
pub const HEALTH_DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("health_descriptor");

/// Whether a path is of a service that looks after the server and is not what it is for: health and
/// reflection. Their calls are no activity of a connection, and are neither counted nor traced.
pub fn is_infrastructure(path: &str) -> bool {
    ["/grpc.health.", "/grpc.reflection."].iter().any(|service| path.starts_with(service))
}
