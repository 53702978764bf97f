//! Kinde's own scheme: the body is a compact RS256 JWT.
//!
//! A webhook of Kinde has none of the registered claims (no `iss`, no `exp`), and the same keys sign access, ID and
//! machine tokens: only the shape tells them apart. What stands inside `data` is not looked at here: an event whose
//! signature is right is a delivery, also when nobody understands it.

use std::borrow::Cow;

use super::{Delivery, Scheme, VerificationError};
use crate::json::{Members, is_id};
use crate::jwks::Jwks;
use crate::jws::Unverified;

/// Claims of tokens for people and machines. No webhook has any of them, and every such token has one.
const TOKEN_CLAIMS: [&str; 5] = ["sub", "azp", "scp", "gty", "exp"];

pub(super) async fn verify(jwks: Option<&Jwks>, body: &[u8]) -> Result<Delivery, VerificationError> {
    let jwks = jwks.ok_or(VerificationError::SchemeNotConfigured { scheme: Scheme::KindeJwt })?;
    let token = std::str::from_utf8(body)
        .map_err(|_| VerificationError::MalformedToken { problem: "it is not text".to_owned() })?;
    let token = Unverified::parse(token, usize::MAX)?;
    let key = jwks.key(token.kid()).await?;
    let verified = token.verify(&key)?;
    let (event_id, event_type) = check_shape(&verified.members()?)?;
    Ok(Delivery::from_verified_parts(event_id, event_type, Scheme::KindeJwt, verified.into_payload(), None))
}

/// Returns the event's id and type.
fn check_shape(claims: &Members<'_>) -> Result<(String, String), VerificationError> {
    if let Some(claim) = TOKEN_CLAIMS.into_iter().find(|claim| claims.get(claim).is_some()) {
        return Err(VerificationError::TokenNotWebhook { claim });
    }
    let begins = |claim, with: fn(u8) -> bool| {
        let found = claims.get(claim).filter(|value| value.bytes().next().is_some_and(with));
        found.ok_or(VerificationError::MissingClaim { claim })
    };
    let id = |claim| {
        let text = begins(claim, |first| first == b'"')?;
        let text = serde_json::from_str::<Cow<'_, str>>(text).map(Cow::into_owned).ok();
        text.filter(|text| is_id(text)).ok_or(VerificationError::MissingClaim { claim })
    };
    let (event_type, event_id) = (id("type")?, id("event_id")?);
    // A text in what was seen; Kinde's API description says a number.
    begins("timestamp", |first| matches!(first, b'"' | b'-' | b'0'..=b'9'))?;
    begins("data", |first| first == b'{')?;
    Ok((event_id, event_type))
}
