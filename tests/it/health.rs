//! Health on both ports: the protocol to the letter, the phases of a stop, probes that always get
//! through.

use std::net::{SocketAddr, TcpStream};

use chatbot::pb::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest,
    health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic::{Code, Streaming, transport::Channel};

use crate::support::{LONG, http_get, metric, start};

const NAMES: [&str; 5] = ["", "chatbot.v1.Chatbot", "liveness", "readiness", "startup"];

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

async fn check(client: &mut HealthClient<Channel>, service: &str) -> Result<ServingStatus, Code> {
    let response = client.check(request(service)).await;
    response.map(|response| response.into_inner().status()).map_err(|status| status.code())
}

async fn next(stream: &mut Streaming<HealthCheckResponse>) -> Result<ServingStatus, Code> {
    let message = tokio::time::timeout(LONG, stream.message()).await.expect("in time");
    message.map(|message| message.expect("a message").status()).map_err(|status| status.code())
}

#[tokio::test]
async fn both_ports_speak_check_watch_and_list() {
    let app = start(&[]).await;
    for address in [app.addresses.server, app.addresses.ops] {
        let mut client = app.health(address).await;
        for name in NAMES {
            assert_eq!(check(&mut client, name).await, Ok(ServingStatus::Serving), "{name}");
        }
        assert_eq!(check(&mut client, "chatbot.v1.Other").await, Err(Code::NotFound));
        let list = client.list(HealthListRequest {}).await.expect("a list").into_inner();
        let mut names: Vec<_> = list.statuses.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, NAMES);
        let mut unknown = client.watch(request("nobody")).await.expect("a stream").into_inner();
        assert_eq!(next(&mut unknown).await, Ok(ServingStatus::ServiceUnknown));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_stop_is_seen_by_probes_and_watchers_while_calls_are_still_served() {
    let app = start(&["server.drain_delay=1h"]).await;
    let mut probe = app.health(app.addresses.ops).await;
    let mut watcher = app.health(app.addresses.server).await;
    let mut stream = watcher.watch(request("chatbot.v1.Chatbot")).await.expect("a stream");
    assert_eq!(next(stream.get_mut()).await, Ok(ServingStatus::Serving));
    let mut liveness = watcher.watch(request("liveness")).await.expect("a stream").into_inner();
    assert_eq!(next(&mut liveness).await, Ok(ServingStatus::Serving));

    app.life.stop();
    assert_eq!(next(stream.get_mut()).await, Ok(ServingStatus::NotServing));
    for (service, status) in [
        ("", ServingStatus::NotServing),
        ("chatbot.v1.Chatbot", ServingStatus::NotServing),
        ("readiness", ServingStatus::NotServing),
        ("liveness", ServingStatus::Serving),
        ("startup", ServingStatus::Serving),
    ] {
        assert_eq!(check(&mut probe, service).await, Ok(status), "{service}");
    }
    assert!(http_get(app.addresses.ops, "/readyz").contains("503 Service Unavailable"));
    assert!(http_get(app.addresses.ops, "/livez").contains("200 OK"));
    assert_eq!(metric(app.addresses.ops, "chatbot_health_ready"), Some(0.0));
    // New connections and calls are welcome until load balancers have noticed.
    let mut client = app.chatbot().await;
    client.rank_answers(rank("deadline")).await.expect("still served");

    app.life.draining().cancel();
    assert_eq!(next(stream.get_mut()).await, Err(Code::Unavailable));
    app.ended().await;
}

fn rank(query: &str) -> chatbot::pb::chatbot::v1::RankAnswersRequest {
    chatbot::pb::chatbot::v1::RankAnswersRequest { query: query.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn http_and_grpc_share_the_ops_port() {
    let app = start(&[]).await;
    let ops = app.addresses.ops;
    assert!(http_get(ops, "/livez").ends_with("ok\n"));
    assert!(http_get(ops, "/readyz").ends_with("ok\n"));
    assert!(http_get(ops, "/nothing").contains("404 Not Found"));
    let metrics = http_get(ops, "/metrics");
    assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"));
    for name in [
        "chatbot_build_info{version=",
        "chatbot_health_ready 1",
        "chatbot_health_dependency_up{dependency=\"store\"} 1",
        "chatbot_health_dependency_up{dependency=\"knowledge\"} 1",
        "chatbot_knowledge_calibrated 0",
        "chatbot_knowledge_entries 6",
        "chatbot_net_fds_limit_soft ",
        "chatbot_net_fds_open ",
        "chatbot_store_commit_seconds_count ",
    ] {
        assert!(metrics.contains(name), "{name} is missing in {metrics}");
    }
    app.stop().await;
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code_and_probes_are_not() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    client
        .rank_answers(rank("deadline"))
        .await
        .expect("ranked")
        .into_inner()
        .message()
        .await
        .expect("an answer");
    client.rank_answers(rank("")).await.expect_err("refused");
    let mut health = app.health(app.addresses.server).await;
    assert_eq!(check(&mut health, "").await, Ok(ServingStatus::Serving));
    let metrics = http_get(app.addresses.ops, "/metrics");
    let refused = "chatbot_rpc_handled_total{method=\"chatbot.v1.Chatbot/RankAnswers\",code=\"INVALID_ARGUMENT\"} 1";
    assert!(metrics.contains(refused), "{metrics}");
    assert!(metrics.contains("chatbot_rpc_duration_seconds_bucket{"), "{metrics}");
    assert!(!metrics.contains("Health"), "{metrics}");
    app.stop().await;
}

#[tokio::test]
async fn silent_peers_on_the_ops_port_give_their_slots_back() {
    let app = start(&[]).await;
    let ops: SocketAddr = app.addresses.ops;
    // More than there are slots; all of them say nothing.
    let silent: Vec<TcpStream> =
        (0..80).map(|_| TcpStream::connect(ops).expect("a connection")).collect();
    // Once their time is over a probe gets through again.
    let deadline = std::time::Instant::now() + LONG;
    let served = loop {
        let answer = std::panic::catch_unwind(|| http_get(ops, "/livez"));
        if answer.is_ok_and(|answer| answer.ends_with("ok\n")) {
            break true;
        }
        if std::time::Instant::now() > deadline {
            break false;
        }
    };
    assert!(served);
    drop(silent);
    app.stop().await;
}
