//! The reasons why a bearer token is rejected.

use std::time::Duration;

use crate::{jwks, jws};

/// The reason why a token is not an accepted access token. Contains nothing of the token but names of claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerificationError {
    /// The token exceeds [`jws::MAX_TOKEN_BYTES`].
    #[error("the token is too long")]
    TooLong,
    /// The credential is an API key that Kinde issued to a user or an organization.
    #[error("the credential is a Kinde API key, not an access token: API keys are not supported here")]
    ApiKey,
    /// The token is not a compact JWS.
    #[error("the token cannot be read: {problem}")]
    MalformedToken {
        /// The problem.
        problem: String,
    },
    /// `alg` is not RS256.
    #[error("the token is not signed with RS256, the only algorithm that Kinde uses")]
    WrongAlgorithm,
    /// The token has no `kid`.
    #[error("the token does not name its key (`kid`)")]
    MissingKeyId,
    /// The issuer has no key with the `kid` of the token.
    #[error("the token is signed with a key that its issuer does not have")]
    UnknownKey,
    /// The token has a header that changes the meaning of the signature.
    #[error("the token has the header `{member}`, which is not supported")]
    UnsupportedHeader {
        /// The header.
        member: &'static str,
    },
    /// A member of the header or of the claims is duplicated.
    #[error("the token has the duplicate member {member:?}")]
    DuplicateMember {
        /// The name of the member.
        member: String,
    },
    /// The signature does not match.
    #[error("the signature of the token does not match")]
    SignatureMismatch,
    /// `iss` is not equal to a configured issuer.
    #[error(
        "the token is from an issuer that is not configured: a custom domain must be listed in addition to the kinde.com one"
    )]
    UnknownIssuer,
    /// The issuer has no key in common with the tenant.
    #[error(
        "the token is from another Kinde tenant: its issuer shares no signing key with the tenant of this server"
    )]
    OtherTenant,
    /// A claim is absent that every access token of a user has.
    #[error("the token has no `{claim}`")]
    MissingClaim {
        /// The claim.
        claim: &'static str,
    },
    /// A claim has the wrong type or an invalid value.
    #[error("`{claim}` of the token has the wrong type or an invalid value")]
    MalformedClaim {
        /// The claim.
        claim: &'static str,
    },
    /// `exp` has passed.
    #[error("the token has expired: refresh it")]
    Expired,
    /// `nbf` is in the future.
    #[error("the token is not valid yet: check the clock")]
    NotYetValid,
    /// `iat` is in the future.
    #[error("the token was issued in the future: check the clock")]
    IssuedInFuture,
    /// `aud` contains none of the configured audiences.
    #[error("the token is for another audience: request the API's `audience` when signing in")]
    WrongAudience,
    /// `azp` is not one of the configured client ids.
    #[error("the token was issued to an application that is not accepted here")]
    UnauthorizedClient,
    /// The token belongs to a machine (`gty: client_credentials`).
    #[error("the token belongs to a machine, not to a user")]
    MachineToken,
    /// The token is an ID token.
    #[error("the token is an ID token: send the access token")]
    IdToken,
    /// The token is a webhook.
    #[error("the token is a webhook of Kinde")]
    Webhook,
    /// The issuer's current keys are not known, so the token cannot be verified now.
    #[error("the keys of the issuer are not available now: try again")]
    KeysUnavailable {
        /// Time until the keys can be fetched again.
        retry_after: Duration,
    },
}

impl VerificationError {
    /// Returns a stable label for metrics and problem documents.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong => "token_too_long",
            Self::ApiKey => "api_key",
            Self::MalformedToken { .. } => "malformed_token",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::MissingKeyId => "missing_key_id",
            Self::UnknownKey => "unknown_key",
            Self::UnsupportedHeader { member } if *member == "crit" => "critical_header",
            Self::UnsupportedHeader { .. } => "unsupported_header",
            Self::DuplicateMember { .. } => "duplicate_member",
            Self::SignatureMismatch => "signature_mismatch",
            Self::UnknownIssuer => "unknown_issuer",
            Self::OtherTenant => "other_tenant",
            Self::MissingClaim { claim } if *claim == "sub" => "missing_subject",
            Self::MissingClaim { .. } => "missing_claim",
            Self::MalformedClaim { .. } => "malformed_claim",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::IssuedInFuture => "issued_in_future",
            Self::WrongAudience => "wrong_audience",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::MachineToken => "machine_token",
            Self::IdToken => "id_token",
            Self::Webhook => "webhook_token",
            Self::KeysUnavailable { .. } => "keys_unavailable",
        }
    }

    /// Returns true if the token may be valid and cannot be verified now: respond with 503, not 401.
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
            jws::Error::HeaderTooLong
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
