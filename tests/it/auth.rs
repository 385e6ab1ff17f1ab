//! Credentials, over real connections: who gets in, what for, and what the others are told.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use chatbot::{
    app::{App, Options},
    config::{Config, Sources},
    lifecycle::Lifecycle,
    pb::{
        chatbot::v1::{
            AskRequest, AskResponse, KnowledgeEntry, TeachRequest, TeachResponse,
            chatbot_client::ChatbotClient, teach_request::Change,
        },
        health::v1::{HealthCheckRequest, health_client::HealthClient},
    },
};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};
use tonic_types::StatusExt as _;

use crate::support::{Running, channel, folder, http_get, start, start_in};

/// Tokens of the file that [`tokens`] writes.
const CHATTER: &str = "token-that-chats";
const TEACHER: &str = "token-that-does-both";
const ISSUER: &str = "https://id.example";

fn line(token: &str, rest: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let hex = hash.as_ref().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    format!("sha256:{hex} {rest}\n")
}

/// An app with a tokens file, and the setting that names it.
async fn guarded(settings: &[&str]) -> Running {
    let folder = folder();
    let file = folder.path().join("tokens");
    let lines = line(CHATTER, "quokka chat") + &line(TEACHER, "wombat chat,teach");
    std::fs::write(&file, lines).expect("a file");
    let setting = format!("auth.tokens_file={}", file.display());
    let settings: Vec<_> = settings.iter().copied().chain([setting.as_str()]).collect();
    start_in(folder, &settings).await
}

/// Shows a token with each call, if there is one.
#[derive(Clone)]
struct Bearer(Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = format!("Bearer {token}");
            let value = MetadataValue::try_from(value).expect("ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

fn bearer(token: Option<&str>) -> Bearer {
    Bearer(token.map(ToOwned::to_owned))
}

type Client = ChatbotClient<InterceptedService<Channel, Bearer>>;

async fn client(app: &Running, token: Option<&str>) -> Client {
    ChatbotClient::with_interceptor(channel(app.addresses.server).await, bearer(token))
}

async fn ask(client: &mut Client) -> Result<AskResponse, Status> {
    let request = AskRequest { query: "deadline".to_owned(), ..AskRequest::default() };
    client.ask(request).await.map(tonic::Response::into_inner)
}

async fn teach(client: &mut Client) -> Result<TeachResponse, Status> {
    let entry = KnowledgeEntry {
        answer_id: 77,
        questions: vec!["When does the quokka smile?".to_owned()],
        answer: "Always.".to_owned(),
        language_code: String::new(),
    };
    let request = TeachRequest { change: Some(Change::Upsert(entry)) };
    client.teach(tokio_stream::iter([request])).await.map(tonic::Response::into_inner)
}

/// Code, reason and message of a refusal.
fn told(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let info = details.error_info().expect("exactly one ErrorInfo");
    assert_eq!(info.domain, "chatbot.v1.Chatbot");
    (status.code(), info.reason.clone(), status.message().to_owned())
}

fn missing() -> (Code, String, String) {
    let message = "a credential is required: a bearer token or a client certificate";
    (Code::Unauthenticated, "CREDENTIAL_MISSING".to_owned(), message.to_owned())
}

fn invalid() -> (Code, String, String) {
    let message = "the credential is not valid";
    (Code::Unauthenticated, "CREDENTIAL_MISSING".to_owned(), message.to_owned())
}

fn denied(scope: &str) -> (Code, String, String) {
    let message = format!("the credential does not have the scope {scope}");
    (Code::PermissionDenied, "SCOPE_MISSING".to_owned(), message)
}

#[tokio::test]
async fn a_token_is_let_in_for_its_scopes_and_no_others() {
    let app = guarded(&[]).await;
    let mut chatter = client(&app, Some(CHATTER)).await;
    ask(&mut chatter).await.expect("an answer");
    assert_eq!(told(&teach(&mut chatter).await.expect_err("refused")), denied("teach"));
    // The connection is none the worse for it.
    ask(&mut chatter).await.expect("an answer");
    let mut teacher = client(&app, Some(TEACHER)).await;
    ask(&mut teacher).await.expect("an answer");
    assert_eq!(teach(&mut teacher).await.expect("taught").upserted_count, 1);
    for (token, expected) in [(None, missing()), (Some("token-of-nobody"), invalid())] {
        let mut stranger = client(&app, token).await;
        assert_eq!(told(&ask(&mut stranger).await.expect_err("refused")), expected);
        assert_eq!(told(&teach(&mut stranger).await.expect_err("refused")), expected);
    }
    let metrics = http_get(app.addresses.ops, "/metrics");
    for (reason, count) in [("missing", 2), ("invalid", 2), ("scope", 1)] {
        let line = format!("chatbot_auth_refused_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    // Refusals are calls like others; principals are nobody's labels.
    let observed = "method=\"chatbot.v1.Chatbot/Ask\",code=\"UNAUTHENTICATED\"} 2\n";
    assert!(metrics.contains(observed), "{metrics}");
    assert!(!metrics.contains("quokka") && !metrics.contains("wombat"), "{metrics}");
    app.stop().await;
}

async fn list_services(app: &Running, token: Option<&str>) -> Result<(), Status> {
    let channel = channel(app.addresses.server).await;
    let mut client = ServerReflectionClient::with_interceptor(channel, bearer(token));
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let requests = tokio_stream::iter([request]);
    let mut stream = client.server_reflection_info(requests).await?.into_inner();
    stream.next().await.expect("an answer").map(drop)
}

#[tokio::test]
async fn the_whole_main_port_is_guarded_and_the_ops_port_is_not() {
    let app = guarded(&[]).await;
    let check = || HealthCheckRequest::default();
    let main = channel(app.addresses.server).await;
    let mut stranger = HealthClient::new(main.clone());
    assert_eq!(told(&stranger.check(check()).await.expect_err("refused")), missing());
    assert_eq!(told(&stranger.watch(check()).await.expect_err("refused")), missing());
    assert_eq!(told(&list_services(&app, None).await.expect_err("refused")), missing());
    let mut raw = tonic::client::Grpc::new(main.clone());
    raw.ready().await.expect("ready");
    let codec = tonic_prost::ProstCodec::<AskRequest, AskResponse>::default();
    let path = "/x.Y/Z".parse().expect("a path");
    let nowhere = raw.unary(Request::new(AskRequest::default()), path, codec).await;
    assert_eq!(told(&nowhere.expect_err("refused")), missing());

    let mut known = HealthClient::with_interceptor(main, bearer(Some(CHATTER)));
    known.check(check()).await.expect("healthy");
    list_services(&app, Some(CHATTER)).await.expect("a list");

    app.health(app.addresses.ops).await.check(check()).await.expect("no credential is needed");
    assert!(http_get(app.addresses.ops, "/readyz").starts_with("HTTP/1.1 200"));
    app.stop().await;
}

#[tokio::test]
async fn without_credentials_the_port_is_open() {
    let app = start(&[]).await;
    // A client that is guarded elsewhere and always shows its token.
    for token in [None, Some(CHATTER)] {
        let mut client = client(&app, token).await;
        ask(&mut client).await.expect("an answer");
        teach(&mut client).await.expect("taught");
    }
    app.stop().await;
}

/// An issuer with one key.
struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key"))
    }

    fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn jwks(&self) -> String {
        let x = BASE64.encode(self.public());
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x }] }).to_string()
    }

    fn token(&self, kid: &str, claims: &Value) -> String {
        let header = json!({ "alg": "EdDSA", "kid": kid });
        token(&header, claims, |message| self.0.sign(message).as_ref().to_vec())
    }
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let [header, claims] = [header, claims].map(|part| BASE64.encode(part.to_string()));
    let message = format!("{header}.{claims}");
    format!("{message}.{}", BASE64.encode(sign(message.as_bytes())))
}

fn claims(scope: &str, seconds: i64) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let exp = i64::try_from(now).expect("before the end of time") + seconds;
    json!({ "iss": ISSUER, "aud": "chatbot", "sub": "quokka", "exp": exp, "scope": scope })
}

#[tokio::test]
async fn a_jwt_is_let_in_only_if_all_of_it_is_right() {
    let issuer = Issuer::new();
    let folder = folder();
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, issuer.jwks()).expect("a file");
    let settings = [
        format!("auth.jwks_file={}", file.display()),
        format!("auth.issuer={ISSUER}"),
        "auth.audience=chatbot".to_owned(),
    ];
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let app = start_in(folder, &settings).await;

    let good = issuer.token("k", &claims("openid chat", 60));
    let mut chatter = client(&app, Some(&good)).await;
    ask(&mut chatter).await.expect("an answer");
    assert_eq!(told(&teach(&mut chatter).await.expect_err("refused")), denied("teach"));
    let mut teacher = client(&app, Some(&issuer.token("k", &claims("teach", 60)))).await;
    teach(&mut teacher).await.expect("taught");
    assert_eq!(told(&ask(&mut teacher).await.expect_err("refused")), denied("chat"));

    let with = |key: &str, value: &str| {
        let mut claims = claims("chat", 60);
        claims[key] = json!(value);
        issuer.token("k", &claims)
    };
    let public = hmac::Key::new(hmac::HMAC_SHA256, issuer.public());
    let confused = token(&json!({ "alg": "HS256", "kid": "k" }), &claims("chat", 60), |message| {
        hmac::sign(&public, message).as_ref().to_vec()
    });
    let unsigned = token(&json!({ "alg": "none", "kid": "k" }), &claims("chat", 60), |_| vec![]);
    for (what, bad) in [
        ("expired", issuer.token("k", &claims("chat", -60))),
        ("audience", with("aud", "other")),
        ("issuer", with("iss", "https://evil.example")),
        ("unknown kid", issuer.token("other", &claims("chat", 60))),
        ("another key", Issuer::new().token("k", &claims("chat", 60))),
        ("HS256", confused),
        ("none", unsigned),
        ("no JWT", CHATTER.to_owned()),
    ] {
        let status = ask(&mut client(&app, Some(&bad)).await).await.expect_err(what);
        assert_eq!(told(&status), invalid(), "{what}");
    }
    app.stop().await;
}

#[tokio::test]
async fn bad_credentials_end_the_start_with_every_problem() {
    let folder = folder();
    let file = folder.path().join("tokens");
    std::fs::write(&file, "hunter2 quokka chat\n").expect("a file");
    let overrides = [
        "server.address=127.0.0.1:0",
        "ops.address=127.0.0.1:0",
        "store.url=memory:",
        "auth.issuer=i",
        "auth.audience=a",
        "auth.jwks_file=/nowhere/keys.json",
        &format!("auth.tokens_file={}", file.display()),
    ];
    let overrides = overrides.iter().map(|it| (*it).to_owned()).collect();
    let config = Config::load(&Sources { overrides, ..Sources::default() }).expect("good settings");
    let app = App::bind(config, Lifecycle::new(), Options::default()).await;
    let told = format!("{:#}", app.expect_err("no start"));
    assert!(told.contains("tokens: line 1: the hash must be"), "{told}");
    assert!(told.contains("/nowhere/keys.json: cannot be read"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}
