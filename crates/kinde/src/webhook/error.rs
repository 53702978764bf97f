//! The reasons why a webhook request is rejected.

use std::time::Duration;

use super::Scheme;
use crate::labels::labels;
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
    /// The body is not a token that Kinde's keys can have signed.
    #[error("the body is not a token as Kinde sends it: {0}")]
    Token(jws::Error),
    /// The tenant has no key with the `kid` of the token, or its keys are not known, so the request cannot be verified now.
    #[error(transparent)]
    Key(#[from] jwks::Error),
    /// The token has a valid signature but is an access, ID or machine token.
    #[error("the body is a token of a user or machine (it has `{claim}`), not a webhook")]
    TokenNotWebhook {
        /// A claim that no webhook has.
        claim: &'static str,
    },
}

labels! {
    /// Every [`Self::reason`].
    REASONS,
    /// Returns a stable label for metrics and problem documents.
    reason of VerificationError {
        Self::MissingSignature => "missing_signature",
        Self::MalformedSignature { .. } => "malformed_signature",
        Self::SchemeNotConfigured { .. } => "scheme_not_configured",
        Self::StaleTimestamp => "stale_timestamp",
        Self::TokenNotWebhook { .. } => "token_not_webhook",
    }
    inner {
        Self::SignatureMismatch { .. } => jws::Error::SignatureMismatch.reason(), &[];
        Self::Token(error) => error.reason(), jws::Error::REASONS;
        Self::Key(error) => error.reason(), jwks::Error::REASONS;
    }
}

impl VerificationError {
    /// Returns true if the request may be genuine and cannot be verified now: respond with 503, not 401.
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

    /// Returns true if a genuine sender can cause this error, for example with a secret that only one side has changed.
    ///
    /// Count these for an alarm that the webhook is about to be disabled. The others come from requests without a
    /// plausible signature, which any client can send.
    pub const fn can_come_from_genuine_sender(&self) -> bool {
        match self {
            Self::SignatureMismatch { .. }
            | Self::SchemeNotConfigured { .. }
            | Self::StaleTimestamp
            | Self::Key(_) => true,
            Self::MissingSignature
            | Self::MalformedSignature { .. }
            | Self::Token(_)
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
            jws::Error::SignatureMismatch => Self::SignatureMismatch { scheme: Scheme::KindeJwt },
            error => Self::Token(error),
        }
    }
}
