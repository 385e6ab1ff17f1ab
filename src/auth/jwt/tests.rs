//! What JWTs promise: a key of the set, an algorithm of the key, and every claim.

use std::time::UNIX_EPOCH;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
    },
};
use serde_json::json;

use super::*;

const AUDIENCE: &str = "chatbot";
const ISSUER: &str = "https://id.example";

/// ring makes no RSA keys, so this public key, and what it once signed, are from OpenSSL; the
/// private one is gone.
const RSA_MODULUS: &str = "\
    lFfIaHEIjImgddIExZ06CnMKNluA6BLxs-cNnYtvKKGuEwiw3a24iXQW3FA6b2YTdau0M57QUQDVAg204OD7QCc1\
    pmRqwh7QXayM35CJVlcA8D_LizsSg-kWTHRoy5xJxTob3GMz9jpDBg1-2Mex_0teXtS0ZJS3TawfPNRd6ra-HL9Y\
    izrq0nPRzcNH6P0eZJfr341RyPsDRGj0-CDX19czkCliEMH_dEStJfCGPmzAoEHN0AGBPlJ0K6xNDKo3uZC3vCHM\
    6wbi_uImIVURvbRpBsknXRk2hNYJoeVAYoVDzVa-laTFABhU6dYwGQ9NmSWbKc5OVdIM0rLNc3-rJQ";
/// For the subject `rsa`, until the year 2100.
const RSA_CLAIMS: &str = "\
    eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUiLCJhdWQiOiJjaGF0Ym90Iiwic3ViIjoicnNhIiwiZXhwIjo0MTAy\
    NDQ0ODAwLCJzY29wZSI6InRlYWNoIn0";
/// Under the header `{"alg":"RS256","kid":"r"}`.
const RS256_SIGNATURE: &str = "\
    jWzMT65VU41Eu5JQgs9rk7W5KO5Zsqt3XYIX1Cnv1-S9n4aYfjouPviHIgXgHl8hWjA8yU3HBxFcZJScfnQl8kF5\
    _Z7Pfw4zZjgTAAijt3ieRHhq_XAgle1ol2Z9AsfGCO3cknr8zEh64CIpRmM7VVn7-2h0vXrn9z9tZRVnoNEhOaRg\
    wRwk8pqb28_TljHreykV0BrztDiWAH8_Qruw7DtpWlA9zEJdSXIEHCJsRmMNVybr5riYadtgVUJNSFGtEeja28Pb\
    aIMLt8b4z9gJQWYkEq3jv6wAm7sGFkvlPqClhVmccVDIP3w5QdLzhQk40jj2Y7txKjtY8KThJ5dguQ";
/// Under the header `{"alg":"PS384","kid":"r"}`.
const PS384_SIGNATURE: &str = "\
    jJ5w9UZDtdpoLfCuX_FJicmscRi1KbpnjpVkcoDiTa1IyeEg4CUVCEVzZ7W8PS0SJWJ0iTe155COlNK0NkagfPOB\
    AEc7aAKXRz1RFcGn4Y6rGO4QJKk9Iqo9KZeTF32SxT6MgSGpOLhN7C19SNW3wyYy8JlEwo9u1JHvtnRtdfsIfKQ_\
    6FEnTjMa2wlLTqm5Eb5x8Qf8aGyJ-fh6Wpy2fAhFTnG54LfXAZAFQIM1IaeEKDSFqFRG1NAHnRRdl2xy5XBbInAS\
    g-AjDjTjtbl6nxlrmYj2Z-5YT6tQEQnBaqYyBfYMAw9x9-t9KK7GToXRwOHUxHO-oq6WxmRdkKx5Ew";

/// A pair that signs, of any kind.
enum Pair {
    Ed25519(Ed25519KeyPair),
    Ecdsa(&'static str, &'static str, EcdsaKeyPair),
}

impl Pair {
    fn ed25519() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key"))
    }

    fn ecdsa(
        curve: &'static str,
        algorithm: &'static str,
        signing: &'static EcdsaSigningAlgorithm,
    ) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref(), &random).expect("a key");
        Self::Ecdsa(curve, algorithm, pair)
    }

    fn p256() -> Self {
        Self::ecdsa("P-256", "ES256", &ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "EdDSA",
            Self::Ecdsa(_, algorithm, _) => algorithm,
        }
    }

    fn public(&self) -> &[u8] {
        match self {
            Self::Ed25519(pair) => pair.public_key().as_ref(),
            Self::Ecdsa(_, _, pair) => pair.public_key().as_ref(),
        }
    }

    fn jwk(&self, kid: &str) -> Value {
        let public = self.public();
        match self {
            Self::Ed25519(_) => json!({
                "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": BASE64.encode(public),
            }),
            Self::Ecdsa(curve, ..) => {
                let (x, y) = public[1..].split_at(public.len() / 2);
                json!({
                    "kty": "EC", "crv": curve, "kid": kid,
                    "x": BASE64.encode(x), "y": BASE64.encode(y),
                })
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Ecdsa(_, _, pair) => {
                pair.sign(&SystemRandom::new(), message).expect("a signature").as_ref().to_vec()
            }
        }
    }

    fn token(&self, kid: &str, claims: &Value) -> String {
        let header = json!({ "alg": self.algorithm(), "typ": "JWT", "kid": kid });
        token(&header, claims, |message| self.sign(message))
    }
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let [header, claims] = [header, claims].map(|part| BASE64.encode(part.to_string()));
    let message = format!("{header}.{claims}");
    format!("{message}.{}", BASE64.encode(sign(message.as_bytes())))
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn keys(keys: &[Value]) -> Keys {
    Keys::parse(&set(keys), AUDIENCE, ISSUER).expect("good keys")
}

fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("before the end of time") + seconds
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": seconds_from_now(60),
        "scope": "openid chat",
    })
}

/// The claims, with `value` for `key`; null takes it away.
fn with(key: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[key] = value;
    if claims[key].is_null() {
        claims.as_object_mut().expect("an object").remove(key);
    }
    claims
}

#[test]
fn each_kind_of_key_is_found_by_its_id() {
    let pairs = [
        Pair::ed25519(),
        Pair::ed25519(),
        Pair::p256(),
        Pair::p256(),
        Pair::ecdsa("P-384", "ES384", &ECDSA_P384_SHA384_FIXED_SIGNING),
    ];
    let ids = ["a", "b", "c", "d", "e"];
    let jwks: Vec<_> = pairs.iter().zip(ids).map(|(pair, id)| pair.jwk(id)).collect();
    let keys = keys(&jwks);
    assert_eq!(keys.len(), 5);
    for (pair, id) in pairs.iter().zip(ids) {
        let principal = keys.principal(&pair.token(id, &claims())).expect("valid").principal;
        assert_eq!((&*principal.name, principal.scopes.to_string()), ("alice", "chat".into()));
    }
    // Signed by another key than the one it names, and by one that is not there.
    assert_eq!(keys.principal(&pairs[0].token("b", &claims())), Err("signature"));
    assert_eq!(keys.principal(&pairs[0].token("c", &claims())), Err("no key, or more than one"));
    assert_eq!(keys.principal(&pairs[0].token("z", &claims())), Err("no key, or more than one"));
}

#[test]
fn rsa_keys_verify_both_kinds_of_signatures() {
    let jwk = |extra: Value| {
        let mut jwk = json!({ "kty": "RSA", "kid": "r", "n": RSA_MODULUS, "e": "AQAB" });
        jwk.as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        jwk
    };
    let signed = |algorithm: &str, signature: &str| {
        let header = BASE64.encode(format!(r#"{{"alg":"{algorithm}","kid":"r"}}"#));
        format!("{header}.{RSA_CLAIMS}.{signature}")
    };
    let (rs256, ps384) = (signed("RS256", RS256_SIGNATURE), signed("PS384", PS384_SIGNATURE));
    let any = keys(&[jwk(json!({ "use": "sig" }))]);
    for token in [&rs256, &ps384] {
        let principal = any.principal(token).expect("valid").principal;
        assert_eq!((&*principal.name, principal.scopes.to_string()), ("rsa", "teach".into()));
    }
    let only = keys(&[jwk(json!({ "alg": "RS256", "key_ops": ["verify"] }))]);
    assert!(only.principal(&rs256).is_ok());
    assert_eq!(only.principal(&ps384), Err("no key, or more than one"));
    assert_eq!(any.principal(&signed("RS256", PS384_SIGNATURE)), Err("signature"));
}

#[test]
fn without_an_id_the_one_key_that_fits_is_taken() {
    let (one, other) = (Pair::ed25519(), Pair::p256());
    let nameless = |pair: &Pair| {
        let header = json!({ "alg": pair.algorithm() });
        token(&header, &claims(), |message| pair.sign(message))
    };
    let two = keys(&[one.jwk("a"), other.jwk("b")]);
    assert!(two.principal(&nameless(&one)).is_ok());
    assert!(two.principal(&nameless(&other)).is_ok());
    let ambiguous = keys(&[one.jwk("a"), Pair::ed25519().jwk("b")]);
    assert_eq!(ambiguous.principal(&nameless(&one)), Err("no key, or more than one"));
    let mut jwk = one.jwk("a");
    jwk.as_object_mut().expect("an object").remove("kid");
    assert!(keys(&[jwk]).principal(&one.token("whatever", &claims())).is_ok());
}

#[test]
fn the_algorithm_is_the_keys_and_never_the_tokens() {
    let pair = Pair::p256();
    let keys = keys(&[pair.jwk("a")]);
    // The oldest trick: the public key, which everybody has, as the secret of an HMAC.
    let secrets = [pair.public().to_vec(), set(&[pair.jwk("a")]).into_bytes()];
    for secret in secrets {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let header = json!({ "alg": "HS256", "kid": "a" });
        let forged =
            token(&header, &claims(), |message| hmac::sign(&key, message).as_ref().to_vec());
        assert_eq!(keys.principal(&forged), Err("no key, or more than one"));
    }
    for algorithm in ["none", "None", "NONE", "", "ES512"] {
        let header = json!({ "alg": algorithm, "kid": "a" });
        for signature in [Vec::new(), vec![0; 64]] {
            let forged = token(&header, &claims(), |_| signature.clone());
            assert_eq!(keys.principal(&forged), Err("malformed"), "{algorithm}");
        }
    }
    let header = json!({ "alg": "ES256", "kid": "a", "crit": ["b64"], "b64": true });
    let critical = token(&header, &claims(), |message| pair.sign(message));
    assert_eq!(keys.principal(&critical), Err("critical extension"));
    // A header that brings its own key.
    let own = Pair::p256();
    let header = json!({ "alg": "ES256", "kid": "a", "jwk": own.jwk("a") });
    let forged = token(&header, &claims(), |message| own.sign(message));
    assert_eq!(keys.principal(&forged), Err("signature"));
}

#[test]
fn every_claim_counts() {
    let pair = Pair::ed25519();
    let keys = keys(&[pair.jwk("a")]);
    let told = |claims: Value| keys.principal(&pair.token("a", &claims));
    for good in [
        claims(),
        with("exp", json!(seconds_from_now(-20))),
        with("nbf", json!(seconds_from_now(20))),
        with("nbf", json!(seconds_from_now(-100))),
        with("aud", json!(["other", AUDIENCE])),
    ] {
        assert!(told(good.clone()).is_ok(), "{good}");
    }
    for (bad, why) in [
        (with("exp", json!(seconds_from_now(-40))), "expired"),
        (with("exp", Value::Null), "claim missing"),
        (with("exp", json!("tomorrow")), "claim missing"),
        (with("nbf", json!(seconds_from_now(40))), "not valid yet"),
        (with("nbf", json!("yesterday")), "malformed"),
        (with("aud", json!("other")), "audience"),
        (with("aud", json!([])), "audience"),
        (with("aud", Value::Null), "claim missing"),
        (with("iss", json!("https://id.example.evil")), "issuer"),
        (with("iss", Value::Null), "claim missing"),
        (with("sub", Value::Null), "malformed"),
        (with("sub", json!(7)), "malformed"),
        (with("sub", json!("")), "subject"),
        (with("sub", json!("a\nb")), "subject"),
        (with("scope", json!(7)), "malformed"),
    ] {
        assert_eq!(told(bad.clone()), Err(why), "{bad}");
    }
}

#[test]
fn it_ends_with_its_exp_and_not_with_the_leeway() {
    let pair = Pair::ed25519();
    let keys = keys(&[pair.jwk("a")]);
    let end = |exp: Value| {
        keys.principal(&pair.token("a", &with("exp", exp))).expect("valid").end.expect("an end")
    };
    let soon = seconds_from_now(60);
    let then = UNIX_EPOCH + Duration::from_secs(soon.unsigned_abs());
    assert_eq!(end(json!(soon)), then);
    let half = f64::from(u32::try_from(soon).expect("before 2106")) + 0.5;
    assert_eq!(end(json!(half)), then + Duration::from_millis(500));
    assert!(end(json!(seconds_from_now(-20))) < SystemTime::now());
}

#[test]
fn scopes_come_from_either_claim() {
    let pair = Pair::ed25519();
    let keys = keys(&[pair.jwk("a")]);
    let scopes = |claims: &Value| {
        keys.principal(&pair.token("a", claims)).expect("valid").principal.scopes.to_string()
    };
    assert_eq!(scopes(&with("scope", json!("teach email chat"))), "chat,teach");
    assert_eq!(scopes(&with("scope", json!("teacher chat:all"))), "");
    let mut list = with("scope", Value::Null);
    assert_eq!(scopes(&list), "");
    list["scp"] = json!(["openid", "teach"]);
    assert_eq!(scopes(&list), "teach");
}

#[test]
fn a_changed_token_is_worth_nothing() {
    let pair = Pair::ed25519();
    let keys = keys(&[pair.jwk("a")]);
    let good = pair.token("a", &claims());
    let parts: Vec<_> = good.split('.').collect();
    let more = BASE64.encode(with("scope", json!("chat teach")).to_string());
    let changed = format!("{}.{more}.{}", parts[0], parts[2]);
    assert_eq!(keys.principal(&changed), Err("signature"));
    for malformed in ["", "..", "a.b.c", &good[1..], &format!("{good}."), &format!("{good}=")] {
        assert!(keys.principal(malformed).is_err(), "{malformed}");
    }
}

#[test]
fn broken_keys_are_told_and_those_for_other_things_skipped() {
    let parse = |keys: &[Value]| Keys::parse(&set(keys), AUDIENCE, ISSUER).map(|keys| keys.len());
    let ed = Pair::ed25519();
    let others = [
        json!({ "kty": "oct", "kid": "s", "k": "c2VjcmV0" }),
        json!({ "kty": "EC", "crv": "P-521", "kid": "t", "x": "AA", "y": "AA" }),
        json!({ "kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB" }),
        json!({ "kty": "RSA", "alg": "RSA-OAEP", "n": "AQAB", "e": "AQAB" }),
        json!({ "kty": "new" }),
    ];
    let skipped = parse(&others).expect_err("no key is left");
    assert_eq!(skipped, ["has no key of RSA, P-256, P-384 or Ed25519 for signatures"]);
    let with_others: Vec<_> = others.into_iter().chain([ed.jwk("a")]).collect();
    assert_eq!(parse(&with_others), Ok(1));
    let broken = [
        json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" }),
        json!({ "kty": "RSA", "n": "+/", "e": "AQAB" }),
        json!({ "kty": "EC", "crv": "P-256", "kid": "b", "x": "AQAB", "y": "AQAB" }),
        ed.jwk("a"),
        Pair::ed25519().jwk("a"),
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": "c", "x": "AQAB" }),
    ];
    assert_eq!(
        parse(&broken).expect_err("broken"),
        [
            "key 1: an RSA key must have 2048 to 8192 bits",
            "key 2: is not base64url",
            "key 3: the coordinates do not have the length of the curve",
            "key 5: cannot be told from key 4",
            "key 6: the coordinates do not have the length of the curve",
        ]
    );
    for text in ["", "[]", "\"hunter2\"", "{}", "sha256:hunter2 alice chat"] {
        let told = Keys::parse(text, AUDIENCE, ISSUER).expect_err("no set").concat();
        assert!(told.starts_with("is no JWK set: line 1") && !told.contains("hunter2"), "{told}");
    }
}
