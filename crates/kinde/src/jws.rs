//! Compact JWS (RFC 7515) with RS256, and nothing else of JOSE.
//!
//! Own code on purpose: what is accepted is decided here and not by the token. The algorithm is fixed, keys come from
//! the caller and never from the header, two equal members are an error, and payload is out of reach before the
//! signature is verified (but for [`Unverified::unverified_claims`], which says so).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::json;

/// Longest bearer token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The one algorithm: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, 3.3).
const ALGORITHM: &str = "RS256";
/// Headers that change what the signature means; none is understood here (RFC 7515 4.1.11, RFC 7797, RFC 7516 4.1.3).
const REFUSED_HEADERS: [&str; 3] = ["crit", "b64", "zip"];
/// Smallest modulus, in bits.
const MIN_KEY_BITS: usize = 2048;
/// Largest modulus, in bits.
const MAX_KEY_BITS: usize = 8192;

/// Why a text is not a token that we verify, or does not verify.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Longer than allowed.
    #[error("the token is longer than {limit} bytes")]
    TooLong {
        /// The longest that is taken, in bytes.
        limit: usize,
    },
    /// Not three parts between two dots.
    #[error("the token is not three parts with two dots between them")]
    Parts,
    /// A part is empty or not base64url without padding.
    #[error("the {part} of the token is not base64url without padding")]
    Encoding {
        /// `header`, `payload` or `signature`.
        part: &'static str,
    },
    /// A part is not a JSON object.
    #[error("the {part} of the token is not a JSON object")]
    Json {
        /// `header` or `payload`.
        part: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Two members of the header or of the payload have the same name.
    #[error("the {part} of the token has the member {member:?} more than once")]
    DuplicateMember {
        /// `header` or `payload`.
        part: &'static str,
        /// Its name.
        member: String,
    },
    /// `alg` is not exactly `RS256`.
    #[error("the token is not signed with RS256, the only algorithm that Kinde uses")]
    WrongAlgorithm,
    /// `kid` is absent, empty or not a string.
    #[error("the token does not name its key (`kid`)")]
    MissingKeyId,
    /// A header that changes what the signature means.
    #[error("the header `{member}` is not supported")]
    UnsupportedHeader {
        /// `crit`, `b64` or `zip`.
        member: &'static str,
    },
    /// The signature does not belong to this header and payload under this key.
    #[error("the signature of the token does not match")]
    SignatureMismatch,
}

/// A public RSA key, parsed once. Cheap to clone; two are equal when modulus and exponent are.
#[derive(Clone)]
pub struct Key(Arc<KeyInner>);

struct KeyInner {
    public: ParsedPublicKey,
    /// SHA-256 of the modulus' length, the modulus and the exponent.
    fingerprint: [u8; 32],
}

/// Why key components are not an RSA key of a safe size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not base64url without padding.
    #[error("the modulus or exponent is not base64url without padding")]
    Encoding,
    /// The modulus is too short or too long.
    #[error("the modulus is not 2048 to 8192 bits long")]
    Size,
    /// The exponent is even, below 3 or longer than 64 bits, or the two do not make a key.
    #[error("the modulus and exponent do not make an RSA key")]
    Rejected,
}

impl Key {
    /// Makes a key of a JWK's `n` and `e` (RFC 7518, 6.3.1).
    pub fn from_components(modulus: &str, exponent: &str) -> Result<Self, KeyError> {
        let modulus = unsigned(modulus)?;
        let exponent = unsigned(exponent)?;
        let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
        if !(MIN_KEY_BITS..=MAX_KEY_BITS).contains(&bits) {
            return Err(KeyError::Size);
        }
        let odd = exponent.last().is_some_and(|last| last % 2 == 1);
        if !odd || exponent == [1] || exponent.len() > 8 {
            return Err(KeyError::Rejected);
        }
        let fingerprint = fingerprint(&modulus, &exponent);
        RsaPublicKeyComponents { n: modulus, e: exponent }
            .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            .map(|public| Self(Arc::new(KeyInner { public, fingerprint })))
            .map_err(|_| KeyError::Rejected)
    }
}

fn fingerprint(modulus: &[u8], exponent: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(&modulus.len().to_be_bytes());
    context.update(modulus);
    context.update(exponent);
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(context.finish().as_ref());
    fingerprint
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.fingerprint == other.0.fingerprint
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(RSA)")
    }
}

/// A token whose form is right and whose signature has not been looked at.
#[derive(Debug)]
pub struct Unverified<'a> {
    signing_input: &'a str,
    kid: String,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// Parses a compact token of at most `limit` bytes. White space anywhere is an error.
    pub fn parse(token: &'a str, limit: usize) -> Result<Self, Error> {
        if token.len() > limit {
            return Err(Error::TooLong { limit });
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(Error::Parts)?;
        let (header, payload) = signing_input.split_once('.').ok_or(Error::Parts)?;
        if payload.contains('.') {
            return Err(Error::Parts);
        }
        let kid = read_header(&decode(header, "header")?)?;
        let payload = decode(payload, "payload")?;
        let signature = decode(signature, "signature")?;
        Ok(Self { signing_input, kid, payload, signature })
    }

    /// The name of the key that the token claims to be signed with.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What the token claims, unverified: only to choose the key set by the issuer that it names.
    pub fn unverified_claims(&self) -> Result<Map<String, Value>, Error> {
        read_object(&self.payload, "payload")
    }

    /// Verifies the signature and hands out the payload.
    pub fn verify(self, key: &Key) -> Result<Verified, Error> {
        key.0
            .public
            .verify_sig(self.signing_input.as_bytes(), &self.signature)
            .map_err(|_| Error::SignatureMismatch)?;
        Ok(Verified { payload: self.payload.into() })
    }
}

/// The payload of a token whose signature is right. What it means is still to be checked.
#[derive(Debug, Clone)]
pub struct Verified {
    payload: Bytes,
}

impl Verified {
    /// The payload as it was signed.
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    /// The claims as they are written; two with the same name are an error.
    pub(crate) fn members(&self) -> Result<json::Members<'_>, Error> {
        json::members(&self.payload).map_err(|error| unreadable(error, "payload"))
    }

    /// The claims; two with the same name are an error.
    pub fn claims(&self) -> Result<Map<String, Value>, Error> {
        read_object(&self.payload, "payload")
    }
}

/// Checks the header and returns the key id. `jku`, `jwk`, `x5u` and `x5c` are not read: no token brings its own key.
fn read_header(bytes: &[u8]) -> Result<String, Error> {
    let mut header = read_object(bytes, "header")?;
    if header.get("alg").and_then(Value::as_str) != Some(ALGORITHM) {
        return Err(Error::WrongAlgorithm);
    }
    if let Some(member) = REFUSED_HEADERS.into_iter().find(|member| header.contains_key(*member)) {
        return Err(Error::UnsupportedHeader { member });
    }
    match header.remove("kid") {
        Some(Value::String(kid)) if !kid.is_empty() => Ok(kid),
        _ => Err(Error::MissingKeyId),
    }
}

fn read_object(bytes: &[u8], part: &'static str) -> Result<Map<String, Value>, Error> {
    json::map(bytes).map_err(|error| unreadable(error, part))
}

fn unreadable(error: json::Error, part: &'static str) -> Error {
    match error {
        json::Error::Duplicate(member) => Error::DuplicateMember { part, member },
        json::Error::Syntax(source) => Error::Json { part, source },
    }
}

fn decode(text: &str, part: &'static str) -> Result<Vec<u8>, Error> {
    if text.is_empty() {
        return Err(Error::Encoding { part });
    }
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Encoding { part })
}

/// An unsigned big-endian number without leading zeros.
fn unsigned(text: &str) -> Result<Vec<u8>, KeyError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::Encoding)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(bytes[zeros..].to_vec())
}
