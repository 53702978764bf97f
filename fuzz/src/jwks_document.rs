//! Every JWKS document is rejected or becomes a key set, and no key set verifies a token that its keys did not sign.

use std::sync::OnceLock;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use kinde::Jwks;
use kinde::bearer::{Config, Verifier};

/// Claims of an access token, with signatures that belong to no key.
fn tokens() -> &'static [String] {
    static TOKENS: OnceLock<Vec<String>> = OnceLock::new();
    TOKENS.get_or_init(|| {
        use base64::Engine as _;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let claims = br#"{"iss":"https://acme.kinde.com","sub":"kp_1","azp":"a","iat":1699999999,"exp":1700003600,"scp":[]}"#;
        let algorithms = ["RS256", "none", "HS256", "PS256", "ES256"];
        let with = |algorithm: &str| {
            let header = format!(r#"{{"alg":"{algorithm}","kid":"x","typ":"JWT"}}"#);
            let signatures = [&[][..], &[0; 256], &[1; 256], &[0; 32], &[0xff; 512]];
            let unsigned = format!("{}.{}", encode(header.as_bytes()), encode(claims));
            signatures.map(|signature| format!("{unsigned}.{}", encode(signature)))
        };
        algorithms.into_iter().flat_map(with).collect()
    })
}

pub fn run(document: &[u8]) {
    let domain = kinde::parse_domain("https://acme.kinde.com").expect("a domain");
    let Ok(jwks) = Jwks::from_document(&domain, document) else { return };
    assert!(jwks.status().key_count <= document.len() / 10, "more keys than the document has room for");
    let issuers = vec![(jwks.issuer().to_owned(), jwks)];
    let verifier = Verifier::new(Config { issuers, ..Config::default() });
    let now = Timestamp::from_second(1_700_000_000).expect("an instant");
    for token in tokens() {
        let verified = verifier.verify(token, now).now_or_never().expect("a fixed key set never waits");
        assert!(verified.is_err(), "a signature of no key was accepted");
    }
}
