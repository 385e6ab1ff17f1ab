//! A server of the contract that is played by the test: `Ask` says what it is told to, or waits until its
//! connection is asked for health; everything else is not there. The real one cannot be brought to refuse as
//! the client's rules need it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use chatbot::{
    health::{self, Health},
    pb::chatbot::v1::{
        AskRequest, AskResponse, CancelTurnRequest, CancelTurnResponse, ChatRequest, ChatResponse,
        ConverseRequest, ConverseResponse, RankAnswersRequest, RankAnswersResponse, TeachRequest,
        TeachResponse, TurnCompleted, chatbot_server,
    },
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming, service::interceptor::InterceptedService,
    transport::Server,
};

/// What each call gets: the first that is there, then answers.
type Refusals = Vec<Status>;

/// What a stream gets, one after the other, and the status it ends with; without one it stays open.
pub(crate) type Script = (Vec<ChatResponse>, Option<Status>);

#[derive(Debug, Default)]
struct Plan {
    refusals: Refusals,
    calls: Vec<(Instant, String)>,
    chats: Vec<Script>,
    asked: Vec<ChatRequest>,
    /// Answers of `Ask` wait for a health check each.
    holds: bool,
    /// Where health checks came from.
    checks: Vec<Option<SocketAddr>>,
}

/// A running one.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    _tasks: JoinSet<Result<(), tonic::transport::Error>>,
}

struct Service {
    plan: Arc<Mutex<Plan>>,
    open: Mutex<Vec<mpsc::Sender<Result<ChatResponse, Status>>>>,
    checked: Arc<Notify>,
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let plan = Arc::new(Mutex::new(Plan::default()));
        let checked = Arc::<Notify>::default();
        let (noted, rung) = (Arc::clone(&plan), Arc::clone(&checked));
        let health = Health::new(&mut Registry::default());
        let health = health::service(health, CancellationToken::new());
        let health = InterceptedService::new(health, move |check: Request<()>| {
            noted.lock().expect("a plan").checks.push(check.remote_addr());
            rung.notify_one();
            Ok(check)
        });
        let service = Service { plan: Arc::clone(&plan), open: Mutex::default(), checked };
        let server = Server::builder()
            .add_service(chatbot_server::ChatbotServer::new(service))
            .add_service(health)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let mut tasks = JoinSet::new();
        tasks.spawn(server);
        Self { address, plan, _tasks: tasks }
    }

    /// The next calls of `Ask` are refused with these.
    pub(crate) fn refuse(&self, refusals: Refusals) {
        let mut plan = self.plan.lock().expect("a plan");
        plan.refusals = refusals;
        plan.calls.clear();
    }

    /// From now on `Ask` has its answer when health is asked for on its connection.
    pub(crate) fn hold(&self) {
        self.plan.lock().expect("a plan").holds = true;
    }

    /// How often health was asked for.
    pub(crate) fn checks(&self) -> usize {
        self.plan.lock().expect("a plan").checks.len()
    }

    /// The next streams of `Chat` get these.
    pub(crate) fn chats(&self, chats: Vec<Script>) {
        self.plan.lock().expect("a plan").chats = chats;
    }

    /// When `Ask` was called, and with which request ids.
    pub(crate) fn calls(&self) -> Vec<(Instant, String)> {
        self.plan.lock().expect("a plan").calls.clone()
    }

    /// What `Chat` was called with.
    pub(crate) fn asked(&self) -> Vec<ChatRequest> {
        self.plan.lock().expect("a plan").asked.clone()
    }
}

impl Service {
    /// Whether one of the checks after the first `before` came from there.
    fn is_checked(&self, before: usize, connection: Option<SocketAddr>) -> bool {
        self.plan.lock().expect("a plan").checks[before..].contains(&connection)
    }
}

#[tonic::async_trait]
impl chatbot_server::Chatbot for Service {
    type RankAnswersStream = ReceiverStream<Result<RankAnswersResponse, Status>>;
    type ChatStream = ReceiverStream<Result<ChatResponse, Status>>;
    type ConverseStream = ReceiverStream<Result<ConverseResponse, Status>>;

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskResponse>, Status> {
        let connection = request.remote_addr();
        let (holds, before) = {
            let mut plan = self.plan.lock().expect("a plan");
            plan.calls.push((Instant::now(), request.into_inner().request_id));
            if !plan.refusals.is_empty() {
                return Err(plan.refusals.remove(0));
            }
            (plan.holds, plan.checks.len())
        };
        while holds && !self.is_checked(before, connection) {
            self.checked.notified().await;
        }
        let answer = TurnCompleted { text: "yes".to_owned(), ..TurnCompleted::default() };
        Ok(Response::new(AskResponse { answer: Some(answer), ..AskResponse::default() }))
    }

    async fn rank_answers(
        &self,
        _: Request<RankAnswersRequest>,
    ) -> Result<Response<Self::RankAnswersStream>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn teach(
        &self,
        _: Request<Streaming<TeachRequest>>,
    ) -> Result<Response<TeachResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn chat(
        &self,
        request: Request<ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let (events, end) = {
            let mut plan = self.plan.lock().expect("a plan");
            plan.asked.push(request.into_inner());
            if plan.chats.is_empty() {
                return Err(Status::unimplemented("nothing more is played"));
            }
            plan.chats.remove(0)
        };
        let (sender, stream) = mpsc::channel(100);
        for event in events {
            sender.send(Ok(event)).await.expect("room");
        }
        match end {
            Some(status) => sender.send(Err(status)).await.expect("room"),
            None => self.open.lock().expect("streams").push(sender),
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn converse(
        &self,
        _: Request<Streaming<ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn cancel_turn(
        &self,
        _: Request<CancelTurnRequest>,
    ) -> Result<Response<CancelTurnResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }
}
