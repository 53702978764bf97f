//! The reasons why a webhook request is rejected.

use std::time::Duration;

use super::Scheme;
use crate::{jwks, jws};

/// The reason why a request is not a delivery. Contains nothing of the request but names of members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerificationError {
    /// The request has no signature of any scheme.
    #[error(
        "the request is not signed: send Kinde's JWT as the body, or `x-kinde-signature: sha256=<hex of HMAC-SHA256 of the raw body>`, or the headers of Standard Webhooks"
    )]
    MissingSignature,
    /// The signature has an invalid form.
    #[error("the signature cannot be read: {problem}")]
    MalformedSignature {
        /// The problem and the expected form.
        problem: &'static str,
    },
    /// The signature does not match the body under any configured secret or key.
    #[error(
        "the signature does not match: check that both sides use the same secret or tenant, and that no proxy changes the body"
    )]
    SignatureMismatch {
        /// The scheme of the signature.
        scheme: Scheme,
    },
    /// The scheme of the request is off.
    #[error("the request is signed by the scheme `{scheme}`, which is not configured: set {}", needs(*.scheme))]
    SchemeNotConfigured {
        /// The scheme of the request.
        scheme: Scheme,
    },
    /// The signed time differs too much from the current time.
    #[error(
        "`webhook-timestamp` differs too much from the time of this machine: check both clocks, and that the sender signs each attempt again"
    )]
    StaleTimestamp,
    /// The body is not a compact JWS.
    #[error("the body is not a token as Kinde sends it: {problem}")]
    MalformedToken {
        /// The problem.
        problem: String,
    },
    /// `alg` of the token is not RS256.
    #[error("the token is not signed with RS256, the only algorithm that Kinde uses")]
    WrongAlgorithm,
    /// The token has no `kid`.
    #[error("the token does not name its key (`kid`)")]
    MissingKeyId,
    /// The tenant has no key with the `kid` of the token.
    #[error("the token is signed with a key that the tenant does not have: check the Kinde domain")]
    UnknownKey,
    /// The token has a header that changes the meaning of the signature.
    #[error("the token has the header `{member}`, which is not supported")]
    UnsupportedHeader {
        /// The header.
        member: &'static str,
    },
    /// A member of the token's header is duplicated.
    #[error("the header of the token has the duplicate member {member:?}")]
    DuplicateMember {
        /// The name of the member.
        member: String,
    },
    /// The token has a valid signature but is an access, ID or machine token.
    #[error("the body is a token of a user or machine (it has `{claim}`), not a webhook")]
    TokenNotWebhook {
        /// A claim that no webhook has.
        claim: &'static str,
    },
    /// The tenant's current keys are not known, so the request cannot be verified now.
    #[error("the keys of the tenant are not available now: the sender should try again")]
    KeysUnavailable {
        /// Time until the keys can be fetched again.
        retry_after: Duration,
    },
}

impl VerificationError {
    /// Returns a stable label for metrics and problem documents.
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
            Self::DuplicateMember { .. } => "duplicate_member",
            Self::TokenNotWebhook { .. } => "token_not_webhook",
            Self::KeysUnavailable { .. } => "keys_unavailable",
        }
    }

    /// Returns true if the request may be genuine and cannot be verified now: respond with 503, not 401.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::KeysUnavailable { .. })
    }

    /// Returns the time to give in `Retry-After` with a 503.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::KeysUnavailable { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// Returns true if a genuine sender can cause this error, for example with a secret that only one side has changed.
    ///
    /// Count these for an alarm that the webhook is about to be disabled. The others come from requests without a
    /// plausible signature, which any client can send.
    pub const fn can_come_from_genuine_sender(&self) -> bool {
        match self {
            Self::SignatureMismatch { .. }
            | Self::SchemeNotConfigured { .. }
            | Self::StaleTimestamp
            | Self::UnknownKey
            | Self::KeysUnavailable { .. } => true,
            Self::MissingSignature
            | Self::MalformedSignature { .. }
            | Self::MalformedToken { .. }
            | Self::WrongAlgorithm
            | Self::MissingKeyId
            | Self::UnsupportedHeader { .. }
            | Self::DuplicateMember { .. }
            | Self::TokenNotWebhook { .. } => false,
        }
    }
}

fn needs(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::KindeJwt => "the Kinde domain",
        Scheme::Hmac => "a webhook secret",
        Scheme::StandardWebhooks => "a Standard Webhooks secret",
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
            | jws::Error::HeaderTooLong
            | jws::Error::PartCount
            | jws::Error::Encoding { .. }
            | jws::Error::Json { .. } => Self::MalformedToken { problem: error.to_string() },
        }
    }
}

impl From<jwks::Error> for VerificationError {
    fn from(error: jwks::Error) -> Self {
        match error {
            jwks::Error::UnknownKey => Self::UnknownKey,
            jwks::Error::Unavailable { retry_after } => Self::KeysUnavailable { retry_after },
        }
    }
}
