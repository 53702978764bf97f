//! The scheme of Kinde itself: the body is a compact RS256 JWT.
//!
//! A webhook of Kinde has no registered claim (no `iss`, no `exp`), and the same keys sign access tokens, ID tokens and
//! machine tokens, so the claims distinguish a webhook from a token. Everything else is left to the decoder: a request
//! with a valid signature is a delivery even if its payload cannot be understood.
//!
//! Relays and shells add white space or quotes to a body, so both are removed before verification.

use std::borrow::Cow;

use super::delivery::{Delivery, Envelope};
use super::{Scheme, VerificationError};
use crate::json;
use crate::jwks::Jwks;
use crate::jws::Unverified;

/// Claims of access tokens, ID tokens and machine tokens. No webhook has any of them, and every token has at least one.
const TOKEN_CLAIMS: [&str; 5] = ["sub", "azp", "scp", "gty", "exp"];

pub(super) async fn verify(jwks: Option<&Jwks>, body: &[u8]) -> Result<Delivery, VerificationError> {
    let jwks = jwks.ok_or(VerificationError::SchemeNotConfigured { scheme: Scheme::KindeJwt })?;
    let token = token_of(body);
    let (verified, _) = jwks.verify::<VerificationError>(Unverified::parse(&token, usize::MAX)?).await?;
    let payload = verified.into_payload();
    // Duplicates and bytes that are not UTF-8 are accepted here, so that they cannot hide a claim of a token.
    let text = json::text(&payload);
    let claims = json::members_with_duplicates(&text);
    if let Some(claim) = TOKEN_CLAIMS.into_iter().find(|claim| claims.contains(claim)) {
        return Err(VerificationError::TokenNotWebhook { claim });
    }
    let envelope = Envelope::of(&claims);
    drop(text);
    Ok(Delivery::of_kinde(payload, envelope))
}

/// Returns true if the body looks like a compact JWS, with optional white space or as a JSON string.
///
/// `eyJ` is base64url for `{"`. No JSON object and no JSON array begins with it.
pub(super) fn is_compact_jws(body: &[u8]) -> bool {
    let body = body.trim_ascii();
    let body = body.strip_prefix(b"\"").map_or(body, <[u8]>::trim_ascii_start);
    #[expect(clippy::naive_bytecount, reason = "bodies are short")]
    let dots = || body.iter().filter(|byte| **byte == b'.').count();
    body.starts_with(b"eyJ") && dots() == 2
}

/// The token in a body, without white space around it and without the quotes of a JSON string.
fn token_of(body: &[u8]) -> Cow<'_, str> {
    let body = json::text(body.trim_ascii());
    if !body.starts_with('"') {
        return body;
    }
    match serde_json::from_str::<String>(&body) {
        Ok(token) => Cow::Owned(token.trim_ascii().to_owned()),
        Err(_) => body,
    }
}
