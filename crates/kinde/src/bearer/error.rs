//! The reasons why a bearer token is rejected.

use std::time::Duration;

use crate::labels::labels;
use crate::{jwks, jws};

/// The reason why a token is not an accepted access token. Contains nothing of the token but names of claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerificationError {
    /// The token is not a JWS that Kinde's keys can have signed, or its signature does not match.
    #[error(transparent)]
    Token(#[from] jws::Error),
    /// The issuer has no key with the `kid` of the token, or its keys are not known, so the token cannot be verified now.
    #[error(transparent)]
    Key(#[from] jwks::Error),
    /// The credential is an API key that Kinde issued to a user or an organization.
    #[error("the credential is a Kinde API key, not an access token: API keys are not supported here")]
    ApiKey,
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
}

labels! {
    /// Every [`Self::reason`].
    REASONS,
    /// Returns a stable label for metrics and problem documents.
    reason of VerificationError {
        Self::ApiKey => "api_key",
        Self::UnknownIssuer => "unknown_issuer",
        Self::OtherTenant => "other_tenant",
        Self::MissingClaim { claim: "sub" } => "missing_subject",
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
    }
    inner {
        Self::Token(error) => error.reason(), jws::Error::REASONS;
        Self::Key(error) => error.reason(), jwks::Error::REASONS;
    }
}

impl VerificationError {
    /// Returns true if the token may be valid and cannot be verified now: respond with 503, not 401.
    pub const fn is_unavailable(&self) -> bool {
        self.retry_after().is_some()
    }

    /// Returns the time for `Retry-After` with a 503.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Key(error) => error.retry_after(),
            _ => None,
        }
    }
}
