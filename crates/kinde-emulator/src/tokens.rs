//! Tokens as Kinde issues them, and forged ones.
//!
//! Source of the claims: <https://docs.kinde.com/build/tokens/about-access-tokens/>.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::keys::{Key, Keyring, hmac_sha256, jws_message};
use crate::user::User;

/// The claims of a token.
pub type Claims = Map<String, Value>;

/// Changes to a token; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenSpec {
    /// Seconds until it expires; negative for an expired token.
    pub expires_in: Option<i64>,
    /// `aud`.
    pub audience: Option<Vec<String>>,
    /// `scp`, and `scope` of an M2M token.
    pub scopes: Option<Vec<String>>,
    /// Organization of a user's access token, of which the user must be a member; `None` is the first one.
    pub org: Option<String>,
    /// `permissions` of a user's access token; `None`: those in the organization, given by roles or assigned.
    pub permissions: Option<Vec<String>>,
    /// Whether a user's access token has `roles`, those in the organization; `None` is the configured default.
    pub roles: Option<bool>,
    /// Whether a user's access token has `email`; `None` is the configured default.
    pub email: Option<bool>,
    /// Claims that replace others at the end; `null` removes a claim.
    pub claims: Claims,
    /// Its signature.
    pub sign: MintOptions,
}

/// The signature of a token, for forged tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MintOptions {
    /// Algorithm.
    pub alg: Alg,
    /// The signing key.
    pub signer: Signer,
    /// `kid` of the header; `None` is that of the active key, an empty text omits it.
    pub kid: Option<String>,
}

/// The algorithm of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Alg {
    /// The algorithm of Kinde.
    #[default]
    RS256,
    /// HMAC with the PEM of the public key as the secret: the algorithm confusion attack.
    HS256,
    /// No signature.
    #[serde(rename = "none")]
    None,
}

/// The signing key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signer {
    /// The tenant's active key.
    #[default]
    Tenant,
    /// A key that is not published, with the `kid` of the active key.
    Foreign,
}

/// A compact JWS signed according to `options` with the key `signer`.
pub(crate) fn forge(payload: &Value, options: &MintOptions, active: &Key, signer: &Key) -> String {
    let alg = serde_json::to_value(options.alg).expect("an enum without data serializes to text");
    let mut header = json!({"alg": alg, "typ": "JWT"});
    match options.kid.as_deref() {
        Some("") => {}
        Some(kid) => header["kid"] = json!(kid),
        None => header["kid"] = json!(active.kid),
    }
    let message = jws_message(&header, payload);
    let signature = match options.alg {
        Alg::RS256 => signer.sign(message.as_bytes()),
        Alg::HS256 => hmac_sha256(signer.public_pem().as_bytes(), message.as_bytes()),
        Alg::None => Vec::new(),
    };
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Returns the claims of an unexpired token that a published key signed.
pub(crate) fn verify(token: &str, keys: &Keyring, now: i64) -> Option<Claims> {
    let (message, signature) = token.rsplit_once('.')?;
    let (header, payload) = message.split_once('.')?;
    let header: Value = decode(header)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let kid = header["kid"].as_str()?;
    let is_valid = header["alg"] == "RS256" && keys.verifies(kid, message.as_bytes(), &signature);
    let claims: Claims = is_valid.then(|| decode(payload))??;
    (claims.get("exp")?.as_i64()? > now).then_some(claims)
}

fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// The claims that all tokens have.
pub(crate) struct Issue<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) client_id: &'a str,
    pub(crate) now: i64,
    pub(crate) expires_in: i64,
    pub(crate) jti: String,
}

/// Claims of an access token that come from the tenant.
pub(crate) struct Access {
    /// Whether it has `email`.
    pub(crate) email: bool,
    /// `org_code`.
    pub(crate) org_code: Option<String>,
    /// `permissions`.
    pub(crate) permissions: Vec<String>,
    /// `roles`, as objects with `id`, `key` and `name`.
    pub(crate) roles: Option<Value>,
}

impl Issue<'_> {
    fn claims(&self, rest: Value) -> Claims {
        let mut claims = as_object(rest);
        claims.append(&mut as_object(json!({
            "iss": self.issuer,
            "azp": self.client_id,
            "iat": self.now,
            "exp": self.now + self.expires_in,
            "jti": self.jti,
        })));
        claims
    }

    pub(crate) fn access(
        &self,
        user: &User,
        spec: &TokenSpec,
        audience: &[String],
        access: Access,
    ) -> Claims {
        let scopes = spec.scopes.clone().unwrap_or_else(default_scopes);
        let mut claims = self.claims(json!({
            "aud": spec.audience.as_deref().unwrap_or(audience),
            "sub": user.id,
            "scp": scopes,
            "org_code": access.org_code,
            "permissions": spec.permissions.as_ref().unwrap_or(&access.permissions),
            "feature_flags": {},
        }));
        if access.email {
            claims.insert("email".to_owned(), json!(user.email));
        }
        claims.extend(access.roles.map(|roles| ("roles".to_owned(), roles)));
        overlay(claims, &spec.claims)
    }

    pub(crate) fn id(&self, user: &User, spec: &TokenSpec) -> Claims {
        let audience = vec![self.issuer.to_owned(), self.client_id.to_owned()];
        let orgs: Vec<&str> = user.organizations.iter().map(|org| org.code.as_str()).collect();
        let claims = self.claims(json!({
            "aud": spec.audience.as_ref().unwrap_or(&audience),
            "sub": user.id,
            "at_hash": "VZ6cU0Ay0RKB5EosbWuTCQ",
            "auth_time": user.last_signed_in.map_or(self.now, jiff::Timestamp::as_second),
            "email": user.email,
            "given_name": user.first_name,
            "family_name": user.last_name,
            "name": user.full_name(),
            "org_codes": orgs,
            "picture": user.picture,
            "provided_id": user.provided_id,
            "updated_at": user.updated_on.as_second(),
        }));
        overlay(claims, &spec.claims)
    }

    pub(crate) fn m2m(&self, spec: &TokenSpec, audience: &[String], scopes: &[String]) -> Claims {
        let scopes = spec.scopes.as_deref().unwrap_or(scopes);
        let claims = self.claims(json!({
            "aud": spec.audience.as_deref().unwrap_or(audience),
            "gty": ["client_credentials"],
            "scope": scopes.join(" "),
            "scp": scopes,
            "v": "2",
        }));
        overlay(claims, &spec.claims)
    }
}

fn default_scopes() -> Vec<String> {
    ["openid", "profile", "email", "offline"].map(str::to_owned).to_vec()
}

fn as_object(value: Value) -> Claims {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("built by json! with braces"),
    }
}

fn overlay(mut claims: Claims, changes: &Claims) -> Claims {
    for (name, value) in changes {
        if value.is_null() {
            claims.remove(name);
        } else {
            claims.insert(name.clone(), value.clone());
        }
    }
    claims
}
