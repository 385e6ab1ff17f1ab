//! Signatures of JWTs, verified by ring.
//!
//! jsonwebtoken brings its cryptography as aws-lc-rs or as seven crates of `RustCrypto`; either
//! would be a second provider beside the one that TLS has. Its seam is a pair of functions, given
//! here: verify with what JWT and ring have in common, sign never. The seam is one per process;
//! whoever installs it first installs the same.

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    errors::ErrorKind,
    signature,
};
use ring::signature as ring;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| {
        let (scheme, key) = (Scheme::of(*algorithm), key.clone());
        let scheme = scheme.ok_or(ErrorKind::UnsupportedAlgorithm)?;
        Ok(Box::new(Verifier { algorithm: *algorithm, scheme, key }))
    },
    // For thumbprints and for keys out of private keys, which nobody asks for.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes jsonwebtoken verify by ring. Needed before the first JWT; again does nothing.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

/// How ring verifies an algorithm.
#[derive(Clone, Copy)]
enum Scheme {
    /// With a modulus and an exponent.
    Rsa(&'static ring::RsaParameters),
    /// With the bytes of a key.
    Plain(&'static dyn ring::VerificationAlgorithm),
}

impl Scheme {
    /// `None` for what needs a shared secret: everybody who can verify one can make one.
    fn of(algorithm: Algorithm) -> Option<Self> {
        match algorithm {
            Algorithm::RS256 => Some(Self::Rsa(&ring::RSA_PKCS1_2048_8192_SHA256)),
            Algorithm::RS384 => Some(Self::Rsa(&ring::RSA_PKCS1_2048_8192_SHA384)),
            Algorithm::RS512 => Some(Self::Rsa(&ring::RSA_PKCS1_2048_8192_SHA512)),
            Algorithm::PS256 => Some(Self::Rsa(&ring::RSA_PSS_2048_8192_SHA256)),
            Algorithm::PS384 => Some(Self::Rsa(&ring::RSA_PSS_2048_8192_SHA384)),
            Algorithm::PS512 => Some(Self::Rsa(&ring::RSA_PSS_2048_8192_SHA512)),
            Algorithm::ES256 => Some(Self::Plain(&ring::ECDSA_P256_SHA256_FIXED)),
            Algorithm::ES384 => Some(Self::Plain(&ring::ECDSA_P384_SHA384_FIXED)),
            Algorithm::EdDSA => Some(Self::Plain(&ring::ED25519)),
            _ => None,
        }
    }
}

struct Verifier {
    algorithm: Algorithm,
    scheme: Scheme,
    key: DecodingKey,
}

impl JwtVerifier for Verifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl signature::Verifier<Vec<u8>> for Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = match (self.scheme, self.key.kind()) {
            (Scheme::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                ring::RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Scheme::Plain(algorithm), DecodingKeyKind::SecretOrDer(key)) => {
                ring::UnparsedPublicKey::new(algorithm, key).verify(message, signature)
            }
            // A key of another family.
            _ => return Err(signature::Error::new()),
        };
        verified.map_err(|_| signature::Error::new())
    }
}
