//! What the configuration promises: layers, origins, every problem at once.

use std::{path::Path, time::Duration};

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn file(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a file in a fresh directory");
    path
}

fn problems(sources: &Sources) -> Vec<String> {
    match Config::load(sources) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn nothing_set_is_a_good_configuration() {
    let config = Config::load(&Sources::default()).expect("the defaults");
    assert_eq!(config.server.address.to_string(), "[::]:8980");
    assert_eq!(config.ops.address.to_string(), "[::]:8981");
    assert_eq!(config.store.url, StoreUrl::File(PathBuf::from("data/chatbot.redb")));
    assert_eq!(config.server.drain_delay, Duration::from_secs(5));
    assert_eq!(config.limits.query_bytes, 8192);
    assert_eq!(config.auth.files().count(), 0);
    assert_eq!(config.auth.certificate_scopes, Scopes::ALL);
}

#[test]
fn later_layers_win_and_the_dump_says_which() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let text =
        "[server]\ndrain_delay = \"1s\"\ndrain_grace = \"2s\"\n[ops]\naddress = \"127.0.0.1:1\"\n";
    let path = file(directory.path(), "chatbot.toml", text);
    let sources = Sources {
        file: Some(path.clone()),
        environment: environment(&[
            ("CHATBOT__SERVER__DRAIN_GRACE", "3s"),
            ("CHATBOT__OPS__ADDRESS", "127.0.0.1:2"),
        ]),
        overrides: vec!["ops.address=127.0.0.1:3".to_owned()],
    };
    let (config, settings) = Config::load_with_settings(&sources).expect("good settings");
    assert_eq!(config.server.drain_delay, Duration::from_secs(1));
    assert_eq!(config.server.drain_grace, Duration::from_secs(3));
    assert_eq!(config.ops.address.port(), 3);
    let origin = |key: &str| {
        settings.iter().find(|setting| setting.key == key).map(|setting| setting.origin.clone())
    };
    assert_eq!(origin("server.drain_delay"), Some(path.display().to_string()));
    assert_eq!(origin("server.drain_grace").as_deref(), Some("CHATBOT__SERVER__DRAIN_GRACE"));
    assert_eq!(origin("ops.address").as_deref(), Some("--set"));
    assert_eq!(origin("server.reflection").as_deref(), Some("default"));
}

#[test]
fn yaml_says_the_same_as_toml() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let text = "server:\n  drain_delay: 1s\n  reflection: false\nknowledge:\n  min_confidence: 0.25\nlimits:\n  query_bytes: 4KiB\ntelemetry:\n";
    let sources =
        Sources { file: Some(file(directory.path(), "chatbot.yaml", text)), ..Sources::default() };
    let config = Config::load(&sources).expect("good settings");
    assert_eq!(config.server.drain_delay, Duration::from_secs(1));
    assert!(!config.server.reflection);
    assert!((config.knowledge.min_confidence - 0.25).abs() < f64::EPSILON);
    assert_eq!(config.limits.query_bytes, 4096);
}

#[test]
fn every_problem_is_reported_at_once_with_its_origin() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let text = "[server]\naddress = \"8980\"\ndrain_dealy = \"5s\"\n[zoo]\nlion = 1\n";
    let path = file(directory.path(), "chatbot.toml", text);
    let sources = Sources {
        file: Some(path.clone()),
        environment: environment(&[
            ("CHATBOT__SERVER__DRAIN_GRACE", "25"),
            ("CHATBOT__LIMITS__QUERY_BYTES", "1GiB"),
            ("CHATBOT__KNOWLEDGE__MIN_CONFIDENCE", "1.5"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("UNRELATED", "1"),
        ]),
        overrides: vec!["nonsense".to_owned(), "store.url=postgres://db".to_owned()],
    };
    let found = problems(&sources);
    let expected = [
        "--set nonsense: must be section.key=value",
        "server.address: must be an address and a port such as",
        "server.drain_grace: must be a duration with a unit such as",
        "store.url: must be \"redb:PATH\"",
        "knowledge.min_confidence: must be between 0 and 1 (from CHATBOT__KNOWLEDGE__MIN_CONFIDENCE)",
        "limits.query_bytes: must be between 1B and 128KiB",
        "OTEL_TRACES_SAMPLER: is not supported: \"jaeger_remote\"",
        "server.drain_dealy: unknown key, did you mean server.drain_delay? (from ",
        "zoo.lion: unknown key (from ",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} should start with {expected}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_with_its_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let broken = file(directory.path(), "broken.toml", "[server\n");
    let unknown = file(directory.path(), "settings.ini", "");
    for path in [directory.path().join("missing.toml"), broken, unknown] {
        let sources = Sources { file: Some(path.clone()), ..Sources::default() };
        let found = problems(&sources);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&path.display().to_string()), "{found:?}");
    }
}

#[test]
fn opentelemetrys_variables_count_below_our_keys() {
    let load = |variables: &[(&str, &str)]| {
        let sources = Sources { environment: environment(variables), ..Sources::default() };
        Config::load(&sources).expect("good settings").telemetry
    };
    let theirs = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
    ];
    let telemetry = load(&theirs);
    assert_eq!(telemetry.otlp_endpoint.as_deref(), Some("http://collector:4317"));
    assert!((telemetry.sample_ratio - 0.25).abs() < f64::EPSILON);

    let both: Vec<_> = theirs
        .into_iter()
        .chain([
            ("CHATBOT__TELEMETRY__OTLP_ENDPOINT", "http://other:4317"),
            ("CHATBOT__TELEMETRY__SAMPLE_RATIO", "0.5"),
        ])
        .collect();
    let telemetry = load(&both);
    assert_eq!(telemetry.otlp_endpoint.as_deref(), Some("http://other:4317"));
    assert!((telemetry.sample_ratio - 0.5).abs() < f64::EPSILON);

    let disabled = [theirs[0], ("OTEL_SDK_DISABLED", "true")];
    assert_eq!(load(&disabled).otlp_endpoint, None);
}

#[test]
fn jwts_need_an_audience_and_an_issuer() {
    let load = |pairs: &[&str]| {
        let overrides = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        problems(&Sources { overrides, ..Sources::default() })
    };
    let found = load(&["auth.jwks_file=keys.json", "auth.issuer="]);
    let expected = [
        "auth.audience: must be set where auth.jwks_file is (from default)",
        "auth.issuer: must be set where auth.jwks_file is (from --set)",
    ];
    assert_eq!(found, expected);
    let whole = ["auth.jwks_file=keys.json", "auth.issuer=https://id", "auth.audience=chatbot"];
    assert_eq!(load(&whole), [""; 0]);
    assert_eq!(load(&["auth.tokens_file=tokens"]), [""; 0]);
}

#[test]
fn an_engine_that_needs_a_model_needs_a_server_and_a_name() {
    let load = |pairs: &[&str]| {
        let overrides = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        problems(&Sources { overrides, ..Sources::default() })
    };
    for engine in ["engine.default=generative", "engine.default=augmented"] {
        let needs = "engine.default: needs a model: set upstream.base_url and upstream.model";
        assert_eq!(load(&[engine]), [format!("{needs} (from --set)")]);
        assert_eq!(load(&[engine, "upstream.base_url=http://m", "upstream.model=m"]), [""; 0]);
    }
    let nameless = load(&["upstream.base_url=http://m"]);
    assert_eq!(nameless, ["upstream.model: must be set where upstream.base_url is (from default)"]);
    let nowhere = load(&["upstream.model=m"]);
    assert_eq!(nowhere, ["upstream.model: takes upstream.base_url with it (from --set)"]);
    let unknown = load(&["engine.default=magic", "engine.grounding_template={question}"]);
    assert!(unknown[0].contains("must be \"retrieval\", \"generative\" or \"augmented\""));
    assert!(unknown[1].contains("must have {question} and {entries} in it"));
}

#[test]
fn a_temperature_is_a_number_or_nothing() {
    let load = |value: &str| {
        let overrides = ["upstream.base_url=http://m", "upstream.model=m"].map(str::to_owned);
        let overrides = [&overrides[..], &[format!("upstream.temperature={value}")]].concat();
        let config = Config::load(&Sources { overrides, ..Sources::default() });
        config.map(|config| config.upstream.expect("a model").temperature)
    };
    assert_eq!(load("").expect("nothing"), None);
    assert_eq!(load("0.5").expect("a number"), Some(0.5));
    assert!(load("3").is_err());
    assert!(load("warm").is_err());
}

#[test]
fn a_scope_is_one_of_two() {
    let load = |scopes: &str| {
        let overrides = vec![format!("auth.certificate_scopes={scopes}")];
        let sources = Sources { overrides, ..Sources::default() };
        Config::load(&sources).map(|config| config.auth.certificate_scopes.to_string())
    };
    for (scopes, means) in [("teach , chat", "chat,teach"), ("chat", "chat"), ("", "")] {
        assert_eq!(load(scopes).expect("good scopes"), means);
    }
    let wrong = load("chat,admin").expect_err("no scope").0;
    assert_eq!(
        wrong[0].to_string(),
        "auth.certificate_scopes: must be scopes of \"chat,teach\", separated by commas (from --set)"
    );
}

#[test]
fn the_two_ports_must_differ() {
    let sources =
        Sources { overrides: vec!["ops.address=[::]:8980".to_owned()], ..Sources::default() };
    assert!(problems(&sources)[0].contains("must differ from server.address"));
}

#[test]
fn a_password_is_neither_dumped_nor_debugged_nor_in_a_problem() {
    let url = |url: &str, more: &[&str]| Sources {
        overrides: [&format!("store.url={url}")]
            .into_iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect(),
        ..Sources::default()
    };
    let sources = url("redis://bot:secret@cache:6380/1", &["store.wait_replicas=1"]);
    let (config, settings) = Config::load_with_settings(&sources).expect("good settings");
    let StoreUrl::Redis(redis) = &config.store.url else { panic!("{config:?}") };
    assert_eq!((redis.wait_replicas, redis.key_prefix.as_str()), (1, "chatbot"));
    assert!(!format!("{config:?}{settings:?}").contains("secret"));
    let listed = settings.iter().find(|setting| setting.key == "store.url").expect("the url");
    assert_eq!(listed.toml, "\"redis://bot:***@cache:6380/1\"");

    let more = ["store.wait_replicas=6", "store.key_prefix=a b"];
    let found = problems(&url("redis://:secret@cache:x", &more));
    let expected = ["store.wait_replicas: must be", "store.key_prefix: must be", "store.url: must"];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected) && !found.contains("secret"), "{found}");
    }
    let more = ["store.ca_file=ca.pem", "store.password_file=pw", "store.wait_replicas=1"];
    assert_eq!(problems(&url("memory:", &more)).len(), 3);
    let found = problems(&url("redis://cache", &more[..1]));
    assert!(found[0].contains("must begin with \"rediss\""), "{found:?}");
}
