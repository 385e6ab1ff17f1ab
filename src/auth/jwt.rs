//! JSON web tokens, signed by a key of the JWKS file.
//!
//! The key decides which algorithms it can be used with, never the token (RFC 8725): neither
//! `none` nor a public key taken for a shared secret gets anywhere. A token must say when it ends
//! and be meant for this service, by this issuer.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, Header, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Found, Principal, Scope, Scopes, signature};

/// How far the clocks of issuer and server may be apart, in seconds.
const LEEWAY: u64 = 30;

/// What an RSA key can be used with.
const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
/// The sizes of an RSA modulus that ring takes, in bytes: 2048 to 8192 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

/// The keys of a JWKS file, and what a token has to say beside being signed by one.
#[derive(Debug)]
pub(super) struct Keys {
    keys: Vec<Key>,
    validation: Validation,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    public: DecodingKey,
}

/// What is read of a token; the rest is checked by the library.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970, maybe with a fraction. That it is there, the library has looked.
    #[serde(default)]
    exp: Value,
    scope: Option<Names>,
    scp: Option<Names>,
}

/// RFC 9068 has a text, others a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    Text(String),
    List(Vec<String>),
}

impl Keys {
    /// Reads a JWK set. Keys that cannot verify signatures here are skipped, as RFC 7517 has it; the
    /// error tells those that could and are broken.
    pub(super) fn parse(text: &str, audience: &str, issuer: &str) -> Result<Self, Vec<String>> {
        signature::install();
        // Where, and not what: the file may be another one, such as the tokens.
        let set: JwkSet = serde_json::from_str(text).map_err(|error| {
            vec![format!("is no JWK set: line {}, column {}", error.line(), error.column())]
        })?;
        let mut keys: Vec<(usize, Key)> = Vec::new();
        let mut problems = Vec::new();
        for (number, jwk) in (1..).zip(&set.keys) {
            match Key::of(jwk) {
                Ok(None) => {}
                Ok(Some(key)) => {
                    if let Some((first, _)) = keys.iter().find(|(_, other)| key.is_like(other)) {
                        problems.push(format!("key {number}: cannot be told from key {first}"));
                    }
                    keys.push((number, key));
                }
                Err(what) => problems.push(format!("key {number}: {what}")),
            }
        }
        if keys.is_empty() && problems.is_empty() {
            problems.push("has no key of RSA, P-256, P-384 or Ed25519 for signatures".to_owned());
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        // The algorithm is set for each token, to one that its key can be used with.
        let mut validation =
            Validation { leeway: LEEWAY, validate_nbf: true, ..Validation::default() };
        validation.set_audience(&[audience]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        Ok(Self { keys: keys.into_iter().map(|(_, key)| key).collect(), validation })
    }

    /// Who the token was issued to, and until when. The error is for the operator, and holds nothing of the token.
    pub(super) fn principal(&self, token: &str) -> Result<Found, &'static str> {
        let header = decode_header(token).map_err(|error| why(error.kind()))?;
        // Whoever lists an extension there wants tokens refused where it is not understood.
        if header.crit.is_some() {
            return Err("critical extension");
        }
        let key = self.key(&header).ok_or("no key, or more than one")?;
        let validation = Validation { algorithms: vec![header.alg], ..self.validation.clone() };
        let claims: Claims =
            decode(token, &key.public, &validation).map_err(|error| why(error.kind()))?.claims;
        let scopes = claims.scope.or(claims.scp).map(Names::scopes).unwrap_or_default();
        let principal = Principal::new(&claims.sub, scopes).ok_or("subject")?;
        // Without the leeway: from there on it is looked at each time.
        let end = claims.exp.as_f64().and_then(|end| Duration::try_from_secs_f64(end).ok());
        let end = end.and_then(|end| SystemTime::UNIX_EPOCH.checked_add(end));
        Ok(Found { principal, end: Some(end.unwrap_or(SystemTime::UNIX_EPOCH)) })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The one key that fits.
    fn key(&self, header: &Header) -> Option<&Key> {
        let mut fitting = self.keys.iter().filter(|key| key.fits(header));
        let key = fitting.next()?;
        fitting.next().is_none().then_some(key)
    }
}

impl Key {
    /// The key of a JWK; `None` if it is for something else.
    fn of(jwk: &Jwk) -> Result<Option<Self>, String> {
        let common = &jwk.common;
        let other_use =
            common.public_key_use.as_ref().is_some_and(|r#use| *r#use != PublicKeyUse::Signature);
        let other_operation = common
            .key_operations
            .as_ref()
            .is_some_and(|operations| !operations.contains(&KeyOperations::Verify));
        if other_use || other_operation {
            return Ok(None);
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => RSA.to_vec(),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                vec![Algorithm::ES256]
            }
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
                vec![Algorithm::ES384]
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                vec![Algorithm::EdDSA]
            }
            _ => return Ok(None),
        };
        if let Some(only) = common.key_algorithm {
            algorithms.retain(|algorithm| Algorithm::try_from(only).ok() == Some(*algorithm));
        }
        if algorithms.is_empty() {
            return Ok(None);
        }
        let public = DecodingKey::from_jwk(jwk).map_err(|_| "is not base64url".to_owned())?;
        check_size(&public, &algorithms)?;
        Ok(Some(Self { id: common.key_id.clone(), algorithms, public }))
    }

    /// A token without `kid`, or a key without one, leaves the choice to the algorithm.
    fn fits(&self, header: &Header) -> bool {
        let same = match (&self.id, &header.kid) {
            (Some(id), Some(kid)) => id == kid,
            _ => true,
        };
        same && self.algorithms.contains(&header.alg)
    }

    /// Whether a token that names its key could still mean either.
    fn is_like(&self, other: &Self) -> bool {
        self.id == other.id
            && self.algorithms.iter().any(|algorithm| other.algorithms.contains(algorithm))
    }
}

/// ring looks at a key when it is used; by then it is too late to tell anybody.
fn check_size(key: &DecodingKey, algorithms: &[Algorithm]) -> Result<(), String> {
    match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            let odd = n.last().is_some_and(|byte| byte % 2 == 1);
            let leading = n.first() == Some(&0) || e.first().is_none_or(|byte| *byte == 0);
            if !MODULUS.contains(&n.len()) || !odd || leading {
                return Err("an RSA key must have 2048 to 8192 bits".to_owned());
            }
        }
        DecodingKeyKind::SecretOrDer(bytes) => {
            // A point on a curve is 4 and two coordinates.
            let expected = match algorithms {
                [Algorithm::ES256] => 65,
                [Algorithm::ES384] => 97,
                _ => 32,
            };
            if bytes.len() != expected {
                return Err("the coordinates do not have the length of the curve".to_owned());
            }
        }
    }
    Ok(())
}

impl Names {
    /// Those that mean something here; tokens carry others' scopes too.
    fn scopes(self) -> Scopes {
        match self {
            Self::Text(text) => text.split(' ').filter_map(Scope::of_name).collect(),
            Self::List(list) => list.iter().filter_map(|name| Scope::of_name(name)).collect(),
        }
    }
}

/// Not the error's own text: it can quote what the token holds.
fn why(error: &ErrorKind) -> &'static str {
    match error {
        ErrorKind::InvalidSignature => "signature",
        ErrorKind::ExpiredSignature => "expired",
        ErrorKind::ImmatureSignature => "not valid yet",
        ErrorKind::InvalidAudience => "audience",
        ErrorKind::InvalidIssuer => "issuer",
        ErrorKind::MissingRequiredClaim(_) => "claim missing",
        _ => "malformed",
    }
}

#[cfg(test)]
mod tests;
