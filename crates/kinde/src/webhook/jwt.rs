//! Kinde's own scheme: the body is a compact RS256 JWT.
//!
//! A webhook of Kinde has none of the registered claims (no `iss`, no `exp`), and the same keys sign access, ID and
//! machine tokens: only the shape tells them apart.

use serde_json::{Map, Value};

use super::{Delivery, Refusal, Scheme};
use crate::json::is_id;
use crate::jwks::Jwks;
use crate::jws::Unverified;

/// Claims of tokens for people and machines. No webhook has any of them, and every such token has one.
const TOKEN_CLAIMS: [&str; 5] = ["sub", "azp", "scp", "gty", "exp"];

pub(super) async fn verify(jwks: Option<&Jwks>, body: &[u8]) -> Result<Delivery, Refusal> {
    let jwks = jwks.ok_or(Refusal::SchemeNotConfigured { scheme: Scheme::KindeJwt })?;
    let token = std::str::from_utf8(body)
        .map_err(|_| Refusal::MalformedToken { problem: "it is not text".to_owned() })?;
    let token = Unverified::parse(token, usize::MAX)?;
    let key = jwks.key(token.kid()).await?;
    let verified = token.verify(&key)?;
    let claims = verified.claims()?;
    let (event_id, event_type) = check_shape(&claims)?;
    Ok(Delivery::from_verified_parts(event_id, event_type, Scheme::KindeJwt, verified.into_payload(), None))
}

/// Returns the event's id and type.
fn check_shape(claims: &Map<String, Value>) -> Result<(String, String), Refusal> {
    if let Some(claim) = TOKEN_CLAIMS.into_iter().find(|claim| claims.contains_key(*claim)) {
        return Err(Refusal::TokenNotWebhook { claim });
    }
    let text = |claim| claims.get(claim).and_then(Value::as_str).ok_or(Refusal::MissingClaim { claim });
    let id = |claim| {
        text(claim).and_then(|text| {
            if is_id(text) { Ok(text.to_owned()) } else { Err(Refusal::MissingClaim { claim }) }
        })
    };
    let (event_type, event_id) = (id("type")?, id("event_id")?);
    text("timestamp")?;
    if !claims.get("data").is_some_and(Value::is_object) {
        return Err(Refusal::MissingClaim { claim: "data" });
    }
    Ok((event_id, event_type))
}
