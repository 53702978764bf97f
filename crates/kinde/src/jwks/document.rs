//! The JWKS document (RFC 7517): which of its keys are usable.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::jws::Key;

/// Why a document is not a key set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Not JSON of the form `{"keys": […]}`.
    #[error("the response is not a JWKS document")]
    Form(#[source] serde_json::Error),
    /// No key that signs with RS256 and has a `kid` and at least 2048 bits.
    #[error("the JWKS document has no usable key")]
    NoUsableKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    n: String,
    e: String,
}

/// The usable keys by `kid`. Others are skipped, so that a new kind of key does not take the old ones away; of two
/// with the same `kid` the first counts.
pub(super) fn parse(document: &[u8]) -> Result<HashMap<String, Key>, DocumentError> {
    let document: Document = serde_json::from_slice(document).map_err(DocumentError::Form)?;
    let mut keys = HashMap::new();
    for (kid, key) in document.keys.into_iter().filter_map(usable) {
        keys.entry(kid).or_insert(key);
    }
    if keys.is_empty() { Err(DocumentError::NoUsableKey) } else { Ok(keys) }
}

fn usable(jwk: Value) -> Option<(String, Key)> {
    let jwk: Jwk = serde_json::from_value(jwk).ok()?;
    let signs = jwk.kty == "RSA"
        && jwk.usage.as_deref().is_none_or(|usage| usage == "sig")
        && jwk.alg.as_deref().is_none_or(|alg| alg == "RS256");
    if !signs || jwk.kid.is_empty() {
        return None;
    }
    let key = Key::from_components(&jwk.n, &jwk.e).ok()?;
    Some((jwk.kid, key))
}
