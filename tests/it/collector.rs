//! A receiver of traces: the service of OTLP, as a real server.

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

struct Receiver(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A receiver of traces.
pub(crate) struct Collector {
    exported: mpsc::Receiver<ExportTraceServiceRequest>,
    tasks: JoinSet<Result<(), tonic::transport::Error>>,
}

impl Collector {
    /// A receiver, and the setting that sends traces to it.
    pub(crate) async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, exported) = mpsc::channel(100);
        let mut tasks = JoinSet::new();
        tasks.spawn(
            tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(Receiver(sender)))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        (Self { exported, tasks }, format!("telemetry.otlp_endpoint={endpoint}"))
    }

    /// What has come, once the sender has ended.
    pub(crate) async fn spans(&mut self) -> Vec<Span> {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let mut spans = Vec::new();
        while let Ok(request) = self.exported.try_recv() {
            for resource in request.resource_spans {
                let attributes = resource.resource.expect("a resource").attributes;
                let value = |key| {
                    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
                    attribute.value.clone()?.value
                };
                assert_eq!(value("service.name"), Some(Value::StringValue("chatbot".to_owned())));
                assert!(value("service.instance.id").is_some(), "who of several replicas");
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

pub(crate) fn attribute(span: &Span, key: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        other => Some(format!("{other:?}")),
    }
}
