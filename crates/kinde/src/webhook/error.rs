//! Why a webhook request is refused, said to operators and to metrics.

use super::Scheme;
use crate::{jwks, jws};

/// Why a request is not a delivery. Nothing of the request is in it but names of members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerificationError {
    /// No scheme's signature is there.
    #[error(
        "the request is not signed: send Kinde's JWT as the body, or `x-kinde-signature: sha256=<hex of HMAC-SHA256 of the raw body>`, or the headers of Standard Webhooks"
    )]
    MissingSignature,
    /// The signature cannot be one.
    #[error("the signature cannot be read: {problem}")]
    MalformedSignature {
        /// What is wrong and how it should be.
        problem: &'static str,
    },
    /// The signature is not of this body under any configured secret or key.
    #[error(
        "the signature does not match: check that both sides have the same secret or tenant, and that nothing between them changes the body"
    )]
    SignatureMismatch {
        /// The scheme it was checked by.
        scheme: Scheme,
    },
    /// The scheme that the request uses is off.
    #[error("the request is signed by the scheme `{scheme}`, which is not configured here: set {}", needs(*.scheme))]
    SchemeNotConfigured {
        /// The scheme it uses.
        scheme: Scheme,
    },
    /// The signed time is too far from now.
    #[error(
        "`webhook-timestamp` is too far from the time of this machine: check both clocks, and that the sender signs each attempt anew"
    )]
    StaleTimestamp,
    /// The body is not a compact JWS as Kinde sends it.
    #[error("the body is not a token as Kinde sends it: {problem}")]
    MalformedToken {
        /// What is wrong.
        problem: String,
    },
    /// The token's `alg` is not RS256.
    #[error("the token is not signed with RS256, the only algorithm that Kinde uses")]
    WrongAlgorithm,
    /// The token has no `kid`.
    #[error("the token does not name its key (`kid`)")]
    MissingKeyId,
    /// No key of the tenant has the token's `kid`.
    #[error("the token is signed with a key that the tenant does not have: check the Kinde domain")]
    UnknownKey,
    /// The token has a header that changes what the signature means.
    #[error("the token has the header `{member}`, which is not supported")]
    UnsupportedHeader {
        /// The header.
        member: &'static str,
    },
    /// The token is signed, but it is an access, ID or machine token.
    #[error("the body is a token of a user or machine (it has `{claim}`), not a webhook")]
    TokenNotWebhook {
        /// The claim that no webhook has.
        claim: &'static str,
    },
    /// The token is signed, but lacks what every webhook of Kinde has.
    #[error("the token is not a webhook: `{claim}` is missing or of the wrong type")]
    MissingClaim {
        /// The claim.
        claim: &'static str,
    },
    /// Two members of the token's header or payload have the same name.
    #[error("the token has the member {member:?} more than once")]
    DuplicateMember {
        /// Its name.
        member: String,
    },
    /// The tenant's keys could not be fetched: nobody knows whether the request is good.
    #[error("the keys of the tenant cannot be fetched now: the sender should try again")]
    KeysUnavailable,
}

impl VerificationError {
    /// A stable label, for metrics and problem documents.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MissingSignature => "missing_signature",
            Self::MalformedSignature { .. } => "malformed_signature",
            Self::SignatureMismatch { .. } => "signature_mismatch",
            Self::SchemeNotConfigured { .. } => "scheme_not_configured",
            Self::StaleTimestamp => "stale_timestamp",
            Self::MalformedToken { .. } => "malformed_token",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::MissingKeyId => "missing_key_id",
            Self::UnknownKey => "unknown_key",
            Self::UnsupportedHeader { member } if *member == "crit" => "critical_header",
            Self::UnsupportedHeader { .. } => "unsupported_header",
            Self::TokenNotWebhook { .. } => "token_not_webhook",
            Self::MissingClaim { .. } => "missing_claim",
            Self::DuplicateMember { .. } => "duplicate_member",
            Self::KeysUnavailable => "keys_unavailable",
        }
    }

    /// True when the request may be good and cannot be verified now: answer 503, not 401.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::KeysUnavailable)
    }
}

fn needs(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::KindeJwt => "the Kinde domain",
        Scheme::Hmac => "a webhook secret",
        Scheme::StandardWebhooks => "a webhook secret, with Standard Webhooks on",
    }
}

impl From<jws::Error> for VerificationError {
    fn from(error: jws::Error) -> Self {
        match error {
            jws::Error::WrongAlgorithm => Self::WrongAlgorithm,
            jws::Error::MissingKeyId => Self::MissingKeyId,
            jws::Error::UnsupportedHeader { member } => Self::UnsupportedHeader { member },
            jws::Error::DuplicateMember { member, .. } => Self::DuplicateMember { member },
            jws::Error::SignatureMismatch => Self::SignatureMismatch { scheme: Scheme::KindeJwt },
            jws::Error::TooLong { .. }
            | jws::Error::Parts
            | jws::Error::Encoding { .. }
            | jws::Error::Json { .. } => Self::MalformedToken { problem: error.to_string() },
        }
    }
}

impl From<jwks::Error> for VerificationError {
    fn from(error: jwks::Error) -> Self {
        match error {
            jwks::Error::UnknownKey => Self::UnknownKey,
            jwks::Error::Unavailable => Self::KeysUnavailable,
        }
    }
}
