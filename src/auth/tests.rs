//! What the authenticator promises: which credential counts, and that a bad file changes nothing.

use http::HeaderValue;
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;

/// `printf %s TOKEN | sha256sum` for the tokens `t` and `u`.
const T: &str = "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8";
const U: &str = "0bfe935e70c321c7ca3afc75ce0d0ca2f98b5422e008bb31c00c6d7f1f1c0ad6";

fn config(tokens_file: Option<PathBuf>) -> config::Auth {
    config::Auth {
        tokens_file,
        jwks_file: None,
        audience: String::new(),
        issuer: String::new(),
        certificate_scopes: [Scope::Chat].into_iter().collect(),
    }
}

fn open() -> Authenticator {
    Authenticator::load(&config(None)).expect("no files")
}

/// An authenticator that knows `t` as alice, and its file.
fn guarded(folder: &tempfile::TempDir) -> (Authenticator, PathBuf) {
    let file = folder.path().join("tokens");
    std::fs::write(&file, format!("sha256:{T} alice chat\n")).expect("a file");
    (Authenticator::load(&config(Some(file.clone()))).expect("good tokens"), file)
}

fn principal(
    guard: &Authenticator,
    headers: &HeaderMap,
    certificate: Option<&[u8]>,
) -> Result<Principal, Refusal> {
    guard.authenticate(headers, certificate).map(|(principal, _)| principal)
}

fn headers(values: &[&str]) -> HeaderMap {
    let value = |value: &&str| HeaderValue::from_str(value).expect("a value");
    values.iter().map(|it| (AUTHORIZATION, value(it))).collect()
}

fn certificate(names: Vec<SanType>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").der().to_vec()
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().expect("ASCII"))
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

#[test]
fn one_header_of_one_form_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let (guard, _) = guarded(&folder);
    let named = |values: &[&str]| principal(&guard, &headers(values), None).map(|it| it.name);
    for good in ["Bearer t", "bearer t", "BEARER  t "] {
        assert_eq!(named(&[good]).as_deref(), Ok("alice"), "{good}");
    }
    assert_eq!(named(&[]), Err(Refusal::Missing));
    let long = format!("Bearer {}", "t".repeat(TOKEN_BYTES + 1));
    for bad in
        ["", "t", "Bearer", "Bearer ", "Bearert", "Basic t", "Bearer t t", "Bearer t,", &long]
    {
        assert_eq!(named(&[bad]), Err(Refusal::Invalid), "{bad}");
    }
    assert_eq!(named(&["Bearer t", "Bearer t"]), Err(Refusal::Invalid));
    let mut binary = HeaderMap::new();
    binary.insert(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").expect("a value"));
    assert_eq!(principal(&guard, &binary, None), Err(Refusal::Invalid));
}

#[test]
fn without_credentials_everybody_is_anonymous() {
    let open = open();
    assert_eq!(open.loaded(), None);
    for values in [&[][..], &["Bearer t"], &["Basic t", "x"]] {
        let principal = principal(&open, &headers(values), None).expect("let in");
        assert_eq!(principal, Principal { name: "anonymous".into(), scopes: Scopes::ALL });
    }
}

#[test]
fn a_certificate_is_its_first_uri_or_else_its_first_dns_name() {
    let open = open();
    let spiffe = "spiffe://example.org/ns/default/sa/web";
    for (names, name) in [
        (vec![dns("a.example"), uri(spiffe), uri("spiffe://other")], Ok(spiffe)),
        (vec![dns("*.example"), dns("a.example"), dns("b.example")], Ok("a.example")),
        (vec![dns("*.example")], Err(Refusal::Invalid)),
        (vec![], Err(Refusal::Invalid)),
    ] {
        let der = certificate(names);
        let principal = principal(&open, &HeaderMap::new(), Some(&der));
        let scopes = [Scope::Chat].into_iter().collect();
        assert_eq!(principal, name.map(|name| Principal { name: name.into(), scopes }));
    }
    assert_eq!(open.certificate(b"no certificate"), Err(Refusal::Invalid));
    assert_eq!(open.certificate(&[]), Err(Refusal::Invalid));
}

#[test]
fn a_token_counts_before_a_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let (guard, _) = guarded(&folder);
    let der = certificate(vec![uri("spiffe://example.org/web")]);
    let named = |values: &[&str]| principal(&guard, &headers(values), Some(&der)).map(|it| it.name);
    assert_eq!(named(&["Bearer t"]).as_deref(), Ok("alice"));
    assert_eq!(named(&[]).as_deref(), Ok("spiffe://example.org/web"));
    // Whoever shows a bad one is not let in for another.
    assert_eq!(named(&["Bearer x"]), Err(Refusal::Invalid));
}

#[test]
fn a_token_with_two_dots_may_be_an_opaque_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = folder.path().join("tokens");
    // `printf %s a.b.c | sha256sum`
    let hash = "845e30448809e2bc8958eb025bfc795235d13b077a53d0c3abbd2385170dc9b8";
    std::fs::write(&tokens, format!("sha256:{hash} alice chat\n")).expect("a file");
    let keys = folder.path().join("keys.json");
    let jwk = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    std::fs::write(&keys, jwk).expect("a file");
    let config = config::Auth {
        jwks_file: Some(keys),
        audience: "chatbot".to_owned(),
        issuer: "https://id.example".to_owned(),
        ..config(Some(tokens))
    };
    let guard = Authenticator::load(&config).expect("good files");
    assert_eq!(guard.loaded(), Some(Loaded { tokens: 1, keys: 1 }));
    let named = |value| principal(&guard, &headers(&[value]), None).map(|it| it.name);
    assert_eq!(named("Bearer a.b.c").as_deref(), Ok("alice"));
    assert_eq!(named("Bearer a.b.d"), Err(Refusal::Invalid));
}

#[test]
fn a_bad_file_keeps_what_was_good() {
    let folder = tempfile::tempdir().expect("a folder");
    let (guard, file) = guarded(&folder);
    let clone = guard.clone();
    let named = |value| principal(&clone, &headers(&[value]), None).map(|it| it.name);
    std::fs::write(&file, format!("sha256:{U} bob chat\nhunter2\n")).expect("a file");
    let told = guard.reload().expect_err("bad").to_string();
    assert!(told.contains("tokens: line 2: must be") && !told.contains("hunter2"), "{told}");
    assert_eq!(named("Bearer t").as_deref(), Ok("alice"));
    assert_eq!(named("Bearer u"), Err(Refusal::Invalid));
    std::fs::remove_file(&file).expect("it was there");
    assert!(guard.reload().expect_err("gone").to_string().contains("cannot be read"));
    assert_eq!(named("Bearer t").as_deref(), Ok("alice"));

    std::fs::write(&file, format!("sha256:{U} bob chat\n")).expect("a file");
    assert_eq!(guard.reload().expect("good"), Loaded { tokens: 1, keys: 0 });
    assert_eq!(named("Bearer u").as_deref(), Ok("bob"));
    assert_eq!(named("Bearer t"), Err(Refusal::Invalid));
    // Nobody is left, which is not the same as anybody.
    std::fs::write(&file, "# nobody\n").expect("a file");
    assert_eq!(guard.reload().expect("good"), Loaded { tokens: 0, keys: 0 });
    assert_eq!(named("Bearer u"), Err(Refusal::Invalid));
    assert_eq!(principal(&guard, &HeaderMap::new(), None), Err(Refusal::Missing));
}

#[test]
fn every_bad_file_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "x\n".repeat(TOLD + 3)).expect("a file");
    let config = config::Auth {
        jwks_file: Some(folder.path().join("missing.json")),
        ..config(Some(tokens))
    };
    let told = Authenticator::load(&config).expect_err("bad").to_string();
    assert!(told.contains("tokens: line 1: ") && told.contains("tokens: and 3 more"), "{told}");
    assert!(told.contains("missing.json: cannot be read: "), "{told}");
}

#[test]
fn a_known_token_counts_as_long_as_the_files_are_what_they_were() {
    let folder = tempfile::tempdir().expect("a folder");
    let (guard, file) = guarded(&folder);
    let (_, known) = guard.authenticate(&headers(&["Bearer t"]), None).expect("alice");
    let known = known.expect("a token");
    let recalled = |values: &[&str]| {
        guard.recall(&headers(values), None, Some(&known)).map(|principal| principal.name)
    };
    assert_eq!(recalled(&["Bearer t"]).as_deref(), Some("alice"));
    // Nothing else is anybody's for it.
    for other in [&["Bearer x"][..], &["Bearer t "], &["Bearer"], &["Bearer t", "Bearer t"], &[]] {
        assert_eq!(recalled(other), None, "{other:?}");
    }
    assert_eq!(guard.recall(&headers(&["Bearer t"]), None, None), None);
    std::fs::write(&file, "hunter2\n").expect("a file");
    guard.reload().expect_err("bad");
    assert_eq!(recalled(&["Bearer t"]).as_deref(), Some("alice"));
    std::fs::write(&file, format!("sha256:{T} carol teach\n")).expect("a file");
    guard.reload().expect("good");
    assert_eq!(recalled(&["Bearer t"]), None);
    let told = format!("{known:?}");
    assert!(told.contains("alice") && !told.contains("Bearer"), "{told}");
}

#[test]
fn a_known_token_is_known_until_it_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let (guard, _) = guarded(&folder);
    let shown = headers(&["Bearer t"]);
    let (_, known) = guard.authenticate(&shown, None).expect("alice");
    let mut known = known.expect("a token");
    let soon = SystemTime::now() + std::time::Duration::from_mins(1);
    for (end, is) in [(None, true), (Some(soon), true), (Some(SystemTime::UNIX_EPOCH), false)] {
        known.end = end;
        assert_eq!(guard.recall(&shown, None, Some(&known)).is_some(), is, "{end:?}");
    }
}

#[test]
fn without_credentials_nothing_has_to_be_looked_up_but_a_certificate() {
    let open = open();
    let shown = headers(&["Bearer t"]);
    assert_eq!(open.recall(&shown, None, None), Some(Principal::anonymous()));
    assert_eq!(open.recall(&shown, Some(&certificate(vec![dns("a.example")])), None), None);
}
