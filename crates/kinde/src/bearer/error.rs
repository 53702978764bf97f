//! Why a bearer token is refused, said to operators and to metrics.

use crate::{jwks, jws};

/// Why a token is not an access token of a user. Nothing of the token is in it but names of claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerificationError {
    /// Longer than [`jws::MAX_TOKEN_BYTES`].
    #[error("the token is too long")]
    TooLong,
    /// Not a compact JWS.
    #[error("the token cannot be read: {problem}")]
    MalformedToken {
        /// What is wrong.
        problem: String,
    },
    /// `alg` is not RS256.
    #[error("the token is not signed with RS256, the only algorithm that Kinde uses")]
    WrongAlgorithm,
    /// No `kid`.
    #[error("the token does not name its key (`kid`)")]
    MissingKeyId,
    /// No key of the issuer has the token's `kid`.
    #[error("the token is signed with a key that its issuer does not have")]
    UnknownKey,
    /// A header that changes what the signature means.
    #[error("the token has the header `{member}`, which is not supported")]
    UnsupportedHeader {
        /// The header.
        member: &'static str,
    },
    /// Two members of the header or of the claims have the same name.
    #[error("the token has the member {member:?} more than once")]
    DuplicateMember {
        /// Its name.
        member: String,
    },
    /// The signature does not match.
    #[error("the signature of the token does not match")]
    SignatureMismatch,
    /// `iss` is not one of the configured issuers, to the letter.
    #[error(
        "the token is from an issuer that is not configured: a custom domain must be listed beside the kinde.com one"
    )]
    UnknownIssuer,
    /// A claim that every access token of a user has is absent.
    #[error("the token has no `{claim}`")]
    MissingClaim {
        /// The claim.
        claim: &'static str,
    },
    /// A claim has the wrong type or an impossible value.
    #[error("`{claim}` of the token has the wrong type")]
    MalformedClaim {
        /// The claim.
        claim: &'static str,
    },
    /// Past its `exp`.
    #[error("the token has expired: refresh it")]
    Expired,
    /// Before its `nbf`.
    #[error("the token is not valid yet: check the clock")]
    NotYetValid,
    /// `aud` names none of the configured audiences.
    #[error("the token is for another audience: request the API's `audience` when signing in")]
    WrongAudience,
    /// A token of a machine (`gty: client_credentials`).
    #[error("the token belongs to a machine, not to a user")]
    MachineToken,
    /// An ID token.
    #[error("the token is an ID token: send the access token")]
    IdToken,
    /// A webhook.
    #[error("the token is a webhook of Kinde")]
    Webhook,
    /// The issuer's keys could not be fetched: nobody knows whether the token is good.
    #[error("the keys of the issuer cannot be fetched now: try again")]
    KeysUnavailable,
}

impl VerificationError {
    /// A stable label, for metrics and problem documents.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong => "token_too_long",
            Self::MalformedToken { .. } => "malformed_token",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::MissingKeyId => "missing_key_id",
            Self::UnknownKey => "unknown_key",
            Self::UnsupportedHeader { member } if *member == "crit" => "critical_header",
            Self::UnsupportedHeader { .. } => "unsupported_header",
            Self::DuplicateMember { .. } => "duplicate_member",
            Self::SignatureMismatch => "signature_mismatch",
            Self::UnknownIssuer => "unknown_issuer",
            Self::MissingClaim { claim } if *claim == "sub" => "missing_subject",
            Self::MissingClaim { .. } => "missing_claim",
            Self::MalformedClaim { .. } => "malformed_claim",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongAudience => "wrong_audience",
            Self::MachineToken => "machine_token",
            Self::IdToken => "id_token",
            Self::Webhook => "webhook_token",
            Self::KeysUnavailable => "keys_unavailable",
        }
    }

    /// True when the token may be good and cannot be verified now: answer 503, not 401.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::KeysUnavailable)
    }
}

impl From<jws::Error> for VerificationError {
    fn from(error: jws::Error) -> Self {
        match error {
            jws::Error::TooLong { .. } => Self::TooLong,
            jws::Error::WrongAlgorithm => Self::WrongAlgorithm,
            jws::Error::MissingKeyId => Self::MissingKeyId,
            jws::Error::UnsupportedHeader { member } => Self::UnsupportedHeader { member },
            jws::Error::DuplicateMember { member, .. } => Self::DuplicateMember { member },
            jws::Error::SignatureMismatch => Self::SignatureMismatch,
            jws::Error::Parts | jws::Error::Encoding { .. } | jws::Error::Json { .. } => {
                Self::MalformedToken { problem: error.to_string() }
            }
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
