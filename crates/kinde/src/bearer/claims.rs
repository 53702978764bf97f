//! Checks the claims of an access token with a valid signature.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::{AccessToken, Config, VerificationError};
use crate::json::{Members, is_id};

type Claims = Map<String, Value>;

/// Claims that only ID tokens have.
const ID_TOKEN_ONLY: [&str; 3] = ["at_hash", "c_hash", "nonce"];
/// Claims of ID tokens that an application may add to an access token, which then has a scope.
const ID_TOKEN_WITHOUT_SCOPE: [&str; 2] = ["auth_time", "org_codes"];

pub(super) fn read(
    config: &Config,
    issuer: &str,
    claims: Claims,
    now: Timestamp,
) -> Result<AccessToken, VerificationError> {
    reject_machine(&claims)?;
    reject_id_token(&claims, issuer)?;
    let subject = required_text(&claims, "sub")?;
    if subject.is_empty() {
        return Err(VerificationError::MissingClaim { claim: "sub" });
    }
    if !is_id(subject) || subject.trim() != subject {
        return Err(VerificationError::MalformedClaim { claim: "sub" });
    }
    let expires_at = time(&claims, "exp")?.ok_or(VerificationError::MissingClaim { claim: "exp" })?;
    let issued_at = time(&claims, "iat")?;
    check_times(config, &Times { expires_at, issued_at, not_before: time(&claims, "nbf")? }, now)?;
    if !config.audiences.is_empty() {
        check_audience(&claims, &config.audiences)?;
    }
    let client_id = optional_text(&claims, "azp")?;
    check_client(client_id.as_deref(), &config.client_ids)?;
    Ok(AccessToken {
        subject: subject.to_owned(),
        issuer: issuer.to_owned(),
        expires_at,
        issued_at,
        client_id,
        org_code: org_code(&claims),
        email: optional_text(&claims, "email")?,
        claims,
    })
}

/// Checked first: a webhook has no `iss`, and an error about `iss` would not name the cause.
pub(super) fn reject_webhook(claims: &Members<'_>) -> Result<(), VerificationError> {
    if ["event_id", "type", "data"].iter().all(|claim| claims.contains(claim)) {
        return Err(VerificationError::Webhook);
    }
    Ok(())
}

pub(super) fn unverified_issuer<'a>(claims: &Members<'a>) -> Result<Cow<'a, str>, VerificationError> {
    let claim = "iss";
    if !claims.contains(claim) {
        return Err(VerificationError::MissingClaim { claim });
    }
    claims.text(claim).ok_or(VerificationError::MalformedClaim { claim })
}

fn required_text<'a>(claims: &'a Claims, claim: &'static str) -> Result<&'a str, VerificationError> {
    match claims.get(claim) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(VerificationError::MalformedClaim { claim }),
        None => Err(VerificationError::MissingClaim { claim }),
    }
}

/// Null and empty count as absent.
fn optional_text(claims: &Claims, claim: &'static str) -> Result<Option<String>, VerificationError> {
    match claims.get(claim) {
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(Value::Null) | None => Ok(None),
        Some(_) => Err(VerificationError::MalformedClaim { claim }),
    }
}

/// `x-hasura-org-code` is its name in Kinde's format for Hasura. A claim of another type counts as absent: it concerns what
/// the user may do, not which user it is.
fn org_code(claims: &Claims) -> Option<String> {
    let text = |name| claims.get(name).and_then(Value::as_str).filter(|code| !code.is_empty());
    text("org_code").or_else(|| text("x-hasura-org-code")).map(str::to_owned)
}

fn reject_machine(claims: &Claims) -> Result<(), VerificationError> {
    let is_machine = match claims.get("gty") {
        Some(Value::String(grant)) => grant == "client_credentials",
        Some(Value::Array(grants)) => grants.iter().any(|grant| grant == "client_credentials"),
        Some(Value::Null) | None => false,
        Some(_) => return Err(VerificationError::MalformedClaim { claim: "gty" }),
    };
    if is_machine { Err(VerificationError::MachineToken) } else { Ok(()) }
}

fn reject_id_token(claims: &Claims, issuer: &str) -> Result<(), VerificationError> {
    let has = |claim: &&str| claims.contains_key(*claim);
    let has_scope = ["scp", "scope"].iter().any(has);
    let looks_like_id_token =
        || ID_TOKEN_WITHOUT_SCOPE.iter().any(has) || has_id_token_audience(claims, issuer);
    let is_id_token = ID_TOKEN_ONLY.iter().any(has) || (!has_scope && looks_like_id_token());
    if is_id_token { Err(VerificationError::IdToken) } else { Ok(()) }
}

/// The audience of an ID token is the client and, with Kinde, the issuer. The audience of an access token is an API.
fn has_id_token_audience(claims: &Claims, issuer: &str) -> bool {
    let client = claims.get("azp").and_then(Value::as_str);
    let matches =
        |found: &Value| found.as_str().is_some_and(|found| found == issuer || Some(found) == client);
    match claims.get("aud") {
        Some(Value::Array(found)) => found.iter().any(matches),
        Some(found) => matches(found),
        None => false,
    }
}

struct Times {
    expires_at: Timestamp,
    issued_at: Option<Timestamp>,
    not_before: Option<Timestamp>,
}

fn check_times(config: &Config, times: &Times, now: Timestamp) -> Result<(), VerificationError> {
    let leeway = SignedDuration::try_from(config.leeway).unwrap_or(SignedDuration::MAX);
    let is_future = |at: Timestamp| at.duration_since(now) > leeway;
    if now.duration_since(times.expires_at) >= leeway {
        return Err(VerificationError::Expired);
    }
    if times.not_before.is_some_and(is_future) {
        return Err(VerificationError::NotYetValid);
    }
    if times.issued_at.is_some_and(is_future) {
        return Err(VerificationError::IssuedInFuture);
    }
    Ok(())
}

fn check_client(client_id: Option<&str>, accepted: &[String]) -> Result<(), VerificationError> {
    if accepted.is_empty() {
        return Ok(());
    }
    let client_id = client_id.ok_or(VerificationError::MissingClaim { claim: "azp" })?;
    if accepted.iter().any(|known| known == client_id) {
        Ok(())
    } else {
        Err(VerificationError::UnauthorizedClient)
    }
}

/// A string or a list of strings (RFC 7519, 4.1.3).
fn check_audience(claims: &Claims, audiences: &[String]) -> Result<(), VerificationError> {
    let matches = match claims.get("aud") {
        Some(Value::String(found)) => audiences.contains(found),
        Some(Value::Array(found)) if found.iter().all(Value::is_string) => {
            found.iter().filter_map(Value::as_str).any(|found| audiences.iter().any(|known| known == found))
        }
        Some(Value::Null) | None => false,
        Some(_) => return Err(VerificationError::MalformedClaim { claim: "aud" }),
    };
    if matches { Ok(()) } else { Err(VerificationError::WrongAudience) }
}

/// A `NumericDate` (RFC 7519, 2): seconds. A fraction is dropped.
fn time(claims: &Claims, claim: &'static str) -> Result<Option<Timestamp>, VerificationError> {
    let malformed = VerificationError::MalformedClaim { claim };
    let seconds = match claims.get(claim) {
        None => return Ok(None),
        Some(Value::Number(number)) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
        Some(_) => None,
    };
    seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).map(Some).ok_or(malformed)
}

#[expect(clippy::cast_possible_truncation, reason = "the range check keeps it far inside i64")]
fn whole(seconds: f64) -> Option<i64> {
    (seconds.abs() < 1e12).then_some(seconds as i64)
}
