//! Access tokens that must be refused, each with the reason that must be given.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use kinde_emulator::{Alg, Emulator, MintOptions, Signer, TokenSpec};
use serde_json::{Value, json};

/// The audience that whoever refuses these tokens demands.
pub const AUDIENCE: &str = "https://api.example.com";

/// A token for [`AUDIENCE`] with these claims over the usual ones; null takes one away.
pub fn spec(claims: &Value) -> TokenSpec {
    let claims = claims.as_object().expect("an object").clone();
    TokenSpec { audience: Some(vec![AUDIENCE.to_owned()]), claims, ..TokenSpec::default() }
}

fn signed(sign: MintOptions) -> TokenSpec {
    TokenSpec { sign, ..spec(&json!({})) }
}

fn with_alg(alg: Alg) -> TokenSpec {
    signed(MintOptions { alg, ..MintOptions::default() })
}

/// A token with this key id in its header.
pub fn with_kid(kid: &str) -> TokenSpec {
    signed(MintOptions { kid: Some(kid.to_owned()), ..MintOptions::default() })
}

/// A token of this header and these claims, under a signature of something else.
fn made_up(header: &str, claims: &str) -> String {
    format!("{}.{}.{}", BASE64.encode(header), BASE64.encode(claims), BASE64.encode([7; 256]))
}

/// Returns tokens that must be rejected, each with the reason. `canary` is an address that no part may request, whatever a
/// token contains.
pub fn refused(kinde: &Emulator, user: &str, canary: &str) -> Vec<(&'static str, String)> {
    let token = |spec: TokenSpec| kinde.access_token(user, &spec).expect("the user is there");
    let now = crate::wall_clock().as_second();
    let foreign = MintOptions { signer: Signer::Foreign, ..MintOptions::default() };
    let webhook = json!({ "type": "user.created", "event_id": "e", "data": {}, "timestamp": "x" });
    let (kid, issuer) = (kinde.active_kid(), kinde.issuer());
    let header = format!(r#"{{"alg":"RS256","kid":"{kid}"}}"#);
    let claims = format!(r#"{{"iss":"{issuer}","sub":"kp_x","exp":9999999999}}"#);
    let pointing = format!(r#"{{"alg":"RS256","kid":"{kid}","jku":"{canary}/jku","x5u":"{canary}/x5u"}}"#);
    let critical = format!(r#"{{"alg":"RS256","kid":"{kid}","crit":["b64"],"b64":true}}"#);
    let twice = format!(r#"{{"iss":"{issuer}","sub":"kp_x","sub":"kp_y","exp":9999999999}}"#);
    vec![
        ("malformed_token", "abc".to_owned()),
        ("malformed_token", "a.b.c".to_owned()),
        ("token_too_long", "a".repeat(16 * 1024 + 1)),
        ("wrong_algorithm", token(with_alg(Alg::None))),
        ("wrong_algorithm", token(with_alg(Alg::HS256))),
        ("missing_key_id", token(with_kid(""))),
        ("api_key", "k_live_0123456789abcdef".to_owned()),
        ("signature_mismatch", token(signed(foreign))),
        ("signature_mismatch", made_up(&header, &claims)),
        ("critical_header", made_up(&critical, &claims)),
        ("duplicate_member", made_up(&header, &twice)),
        ("unknown_issuer", token(spec(&json!({ "iss": canary })))),
        ("unknown_issuer", token(spec(&json!({ "iss": format!("{issuer}/") })))),
        ("missing_claim", token(spec(&json!({ "iss": null })))),
        ("missing_subject", token(spec(&json!({ "sub": null })))),
        ("missing_claim", token(spec(&json!({ "exp": null })))),
        ("malformed_claim", token(spec(&json!({ "sub": 7 })))),
        ("missing_subject", token(spec(&json!({ "sub": "" })))),
        ("malformed_claim", token(spec(&json!({ "exp": "tomorrow" })))),
        ("expired", token(TokenSpec { expires_in: Some(-120), ..spec(&json!({})) })),
        ("not_yet_valid", token(spec(&json!({ "nbf": now + 3600 })))),
        ("issued_in_future", token(spec(&json!({ "iat": now + 3600 })))),
        ("wrong_audience", token(spec(&json!({ "aud": "https://other.example.com" })))),
        ("wrong_audience", token(spec(&json!({ "aud": [] })))),
        ("wrong_audience", token(spec(&json!({ "aud": null })))),
        ("machine_token", token(spec(&json!({ "gty": "client_credentials" })))),
        ("machine_token", kinde.m2m_token(&spec(&json!({})))),
        ("id_token", kinde.id_token(user, &spec(&json!({}))).expect("the user is there")),
        ("webhook_token", kinde.mint(webhook.as_object().expect("an object"), &MintOptions::default())),
        // The keys are always those of the issuer, whatever address a token names.
        ("signature_mismatch", made_up(&pointing, &claims)),
    ]
}
