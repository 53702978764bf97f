//! The JWKS document (RFC 7517): selects its usable keys.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::jws::Key;

/// Members that hold private or symmetric key material (RFC 7518, 6.3.2 and 6.4.1).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// The reason why a document is not a usable key set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The document is not JSON of the form `{"keys": […]}`.
    #[error("not a JWKS document")]
    Form(#[source] serde_json::Error),
    /// The document has no RSA key with a `kid` and at least 2048 bits that may verify RS256 signatures.
    #[error("the JWKS document has no usable key")]
    NoUsableKey,
}

/// The usable keys of a document.
pub(super) struct Document {
    pub(super) keys: HashMap<String, Key>,
    pub(super) exposes_private_key: bool,
}

#[derive(Deserialize)]
struct KeyList {
    keys: Vec<Value>,
}

/// The members of a JWK that decide whether and how it is used (RFC 7517, 4; RFC 7518, 6.3.1).
#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    n: String,
    e: String,
}

/// Skips unusable keys, so that a new type of key does not remove the usable ones. Of several keys with the same `kid`
/// the first counts.
pub(super) fn parse(document: &[u8]) -> Result<Document, DocumentError> {
    let list: KeyList = serde_json::from_slice(document).map_err(DocumentError::Form)?;
    let exposes_private_key =
        list.keys.iter().any(|jwk| PRIVATE_MEMBERS.iter().any(|member| jwk.get(member).is_some()));
    let mut keys = HashMap::new();
    for (kid, key) in list.keys.into_iter().filter_map(usable) {
        keys.entry(kid).or_insert(key);
    }
    if keys.is_empty() {
        return Err(DocumentError::NoUsableKey);
    }
    Ok(Document { keys, exposes_private_key })
}

fn usable(jwk: Value) -> Option<(String, Key)> {
    let jwk: Jwk = serde_json::from_value(jwk).ok()?;
    let may_verify = jwk.kty == "RSA"
        && jwk.usage.is_none_or(|usage| usage == "sig")
        && jwk.key_ops.is_none_or(|operations| operations.iter().any(|operation| operation == "verify"))
        && jwk.alg.is_none_or(|alg| alg == "RS256");
    if !may_verify || jwk.kid.is_empty() {
        return None;
    }
    let key = Key::from_components(&jwk.n, &jwk.e).ok()?;
    Some((jwk.kid, key))
}
