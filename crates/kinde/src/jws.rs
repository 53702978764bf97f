//! Verifies compact JWS (RFC 7515) with RS256. Nothing else of JOSE is supported.
//!
//! This is not a general library on purpose, so that no part of a token selects how it is verified: the algorithm is
//! fixed, keys come from the caller and never from the header, duplicate members are errors, and the payload is not
//! accessible before the signature is verified.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::json;
use crate::labels::labels;

/// Maximum length of a bearer token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Maximum length of the encoded header, in bytes. Parsing a header costs time before the signature is verified.
pub const MAX_HEADER_BYTES: usize = 4 * 1024;
/// The only algorithm: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, 3.3).
const ALGORITHM: &str = "RS256";
/// Headers that change the meaning of the signature. None is supported (RFC 7515 4.1.11, RFC 7797, RFC 7516 4.1.3).
const REJECTED_HEADERS: [&str; 3] = ["crit", "b64", "zip"];
/// Minimum size of the modulus, in bits.
const MIN_KEY_BITS: usize = 2048;
/// Maximum size of the modulus, in bits.
const MAX_KEY_BITS: usize = 8192;

/// The reason why a text is not a supported token or its verification failed. Contains nothing of the token but names of
/// members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The token exceeds the limit of the caller.
    #[error("the token exceeds {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The header exceeds [`MAX_HEADER_BYTES`].
    #[error("the header of the token exceeds {MAX_HEADER_BYTES} bytes")]
    HeaderTooLong,
    /// The token does not consist of three parts separated by dots.
    #[error("the token does not consist of three parts separated by dots")]
    PartCount,
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
    },
    /// A member of the header or of the payload is duplicated.
    #[error("the {part} of the token has the duplicate member {member:?}")]
    DuplicateMember {
        /// `header` or `payload`.
        part: &'static str,
        /// The name of the member.
        member: String,
    },
    /// `alg` is not exactly `RS256`.
    #[error("the token is not signed with RS256, the only algorithm that Kinde uses")]
    WrongAlgorithm,
    /// `kid` is absent, empty or not a string.
    #[error("the token does not name its key (`kid`)")]
    MissingKeyId,
    /// The token has a header that changes the meaning of the signature.
    #[error("the token has the header `{member}`, which is not supported")]
    UnsupportedHeader {
        /// `crit`, `b64` or `zip`.
        member: &'static str,
    },
    /// The signature does not match the header and the payload under this key.
    #[error("the signature of the token does not match")]
    SignatureMismatch,
}

labels! {
    /// Every [`Self::reason`].
    REASONS,
    /// Returns a stable label for metrics and problem documents.
    reason of Error {
        Self::TooLong { .. } => "token_too_long",
        Self::HeaderTooLong | Self::PartCount | Self::Encoding { .. } | Self::Json { .. } => "malformed_token",
        Self::DuplicateMember { .. } => "duplicate_member",
        Self::WrongAlgorithm => "wrong_algorithm",
        Self::MissingKeyId => "missing_key_id",
        Self::UnsupportedHeader { member: "crit" } => "critical_header",
        Self::UnsupportedHeader { .. } => "unsupported_header",
        Self::SignatureMismatch => "signature_mismatch",
    }
}

/// A parsed public RSA key. Cheap to clone. Two keys are equal if their modulus and exponent are.
#[derive(Clone)]
pub struct Key(Arc<KeyInner>);

struct KeyInner {
    public: ParsedPublicKey,
    /// SHA-256 of the length of the modulus, the modulus and the exponent.
    fingerprint: [u8; 32],
}

/// The reason why key components are not an RSA key of an accepted size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A component is not base64url without padding.
    #[error("the modulus or exponent is not base64url without padding")]
    Encoding,
    /// The modulus is too short or too long.
    #[error("the modulus does not have 2048 to 8192 bits")]
    Size,
    /// The exponent is even, below 3 or longer than 64 bits, or the components are not a valid key.
    #[error("the modulus and exponent are not a valid RSA key")]
    Rejected,
}

impl Key {
    /// Creates a key from the members `n` and `e` of a JWK (RFC 7518, 6.3.1).
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

/// A well-formed token. Its signature is not verified.
#[derive(Debug)]
pub struct Unverified<'a> {
    signing_input: &'a str,
    kid: String,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// Parses a compact token of at most `limit` bytes. White space at any position is an error.
    pub fn parse(token: &'a str, limit: usize) -> Result<Self, Error> {
        if token.len() > limit {
            return Err(Error::TooLong { limit });
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(Error::PartCount)?;
        let (header, payload) = signing_input.split_once('.').ok_or(Error::PartCount)?;
        if payload.contains('.') {
            return Err(Error::PartCount);
        }
        if header.len() > MAX_HEADER_BYTES {
            return Err(Error::HeaderTooLong);
        }
        let kid = read_header(&decode(header, "header")?)?;
        let payload = decode(payload, "payload")?;
        let signature = decode(signature, "signature")?;
        Ok(Self { signing_input, kid, payload, signature })
    }

    /// Returns the id of the key that the token claims to be signed with.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The claims before verification: only to select the key set by the issuer that the token names.
    #[cfg(feature = "bearer")]
    pub(crate) fn unverified_members(&self) -> Result<json::Members<'_>, Error> {
        json::members(&self.payload).map_err(|error| unreadable(error, "payload"))
    }

    /// Verifies the signature and returns the payload.
    pub fn verify(self, key: &Key) -> Result<Verified, Error> {
        self.try_verify(key).map_err(|_| Error::SignatureMismatch)
    }

    /// As [`Self::verify`], but returns the token if the signature does not match, to try another key.
    pub(crate) fn try_verify(self, key: &Key) -> Result<Verified, Self> {
        match key.0.public.verify_sig(self.signing_input.as_bytes(), &self.signature) {
            Ok(()) => Ok(Verified { payload: self.payload.into() }),
            Err(_) => Err(self),
        }
    }
}

/// The payload of a token with a valid signature. The caller checks the claims.
#[derive(Debug, Clone)]
pub struct Verified {
    payload: Bytes,
}

impl Verified {
    /// Returns the signed bytes of the payload.
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    /// Parses the claims. A duplicate member at any depth is an error.
    pub fn claims(&self) -> Result<Map<String, Value>, Error> {
        json::map(&self.payload).map_err(|error| unreadable(error, "payload"))
    }
}

/// Checks the header and returns the key id. Other members are not parsed: a key in `jku`, `jwk`, `x5u` or `x5c` is never
/// used.
fn read_header(bytes: &[u8]) -> Result<String, Error> {
    let header = json::members(bytes).map_err(|error| unreadable(error, "header"))?;
    if header.text("alg").as_deref() != Some(ALGORITHM) {
        return Err(Error::WrongAlgorithm);
    }
    if let Some(member) = REJECTED_HEADERS.into_iter().find(|member| header.contains(member)) {
        return Err(Error::UnsupportedHeader { member });
    }
    match header.text("kid") {
        Some(kid) if !kid.is_empty() => Ok(kid.into_owned()),
        _ => Err(Error::MissingKeyId),
    }
}

fn unreadable(error: json::Error, part: &'static str) -> Error {
    match error {
        json::Error::Duplicate(member) => Error::DuplicateMember { part, member },
        json::Error::Syntax(_) => Error::Json { part },
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
