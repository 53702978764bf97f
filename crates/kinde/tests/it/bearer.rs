//! Access tokens: which are accepted, and why others are rejected.

use kinde::bearer::{AccessToken, Config, FlagValue, Role, VerificationError, Verifier};
use kinde::jws::MAX_TOKEN_BYTES;
use serde_json::{Value, json};

use crate::support::{
    ISSUER, KID, access_claims, fixed_jwks, foreign_key, header, id_token_claims, machine_claims, now,
    tenant_jwks, tenant_key, webhook_claims, with,
};

fn config() -> Config {
    Config { issuers: vec![(ISSUER.to_owned(), tenant_jwks())], ..Config::default() }
}

async fn verify_with(config: Config, claims: &Value) -> Result<AccessToken, VerificationError> {
    Verifier::new(config).verify(&tenant_key().sign(&header(), claims), now()).await
}

async fn verify(claims: &Value) -> Result<AccessToken, VerificationError> {
    verify_with(config(), claims).await
}

async fn check(changes: Value, reason: &str) {
    let found = verify(&with(access_claims(), &changes)).await;
    assert_eq!(found.map_err(|error| error.reason()).unwrap_err(), reason, "{changes}");
}

#[tokio::test]
async fn the_claims_of_an_access_token_are_read() {
    let token = verify(&with(access_claims(), &json!({"email": "a@example.com"}))).await.unwrap();
    assert_eq!((token.subject.as_str(), token.issuer.as_str()), ("kp_1", ISSUER));
    assert_eq!(token.expires_at.as_second(), now().as_second() + 86_400);
    assert_eq!(token.issued_at, Some(now()));
    assert_eq!(token.client_id.as_deref(), Some("dee7f3c57b3c47e8b96edde2c7ecab7d"));
    assert_eq!(token.org_code.as_deref(), Some("org_1"));
    assert_eq!(token.email.as_deref(), Some("a@example.com"));
    assert_eq!(token.claims["permissions"], json!(["create:x"]));
    assert!(!format!("{token:?}").contains("example.com"));
}

#[tokio::test]
async fn the_claims_of_the_organization_are_read_in_each_shape_that_kinde_has_sent() {
    let read = async |changes: Value| verify(&with(access_claims(), &changes)).await.unwrap();
    let objects = json!([{"id": "r-1", "key": "admin", "name": "Admin"}]);
    for name in ["roles", "x-hasura-roles"] {
        let token = read(json!({ name: objects })).await;
        assert_eq!(token.roles().unwrap(), [Role { id: Some("r-1"), key: "admin", name: Some("Admin") }]);
    }
    let token =
        read(json!({"roles": ["admin", "viewer"], "permissions": [{"id": "p-1", "key": "edit"}]})).await;
    assert_eq!(token.roles().unwrap().iter().map(|role| role.key).collect::<Vec<_>>(), ["admin", "viewer"]);
    assert_eq!(token.permissions().unwrap(), ["edit"]);
    let hasura = json!({"org_code": null, "x-hasura-org-code": "org_2", "permissions": null,
        "x-hasura-permissions": ["read"], "x-hasura-org-codes": ["org_2", "org_3"]});
    let token = read(hasura).await;
    assert_eq!(token.org_code.as_deref(), Some("org_2"));
    assert_eq!(
        (token.permissions().unwrap(), token.org_codes().unwrap()),
        (vec!["read"], vec!["org_2", "org_3"])
    );
    let token = read(json!({"roles": [], "permissions": []})).await;
    assert_eq!((token.roles().unwrap().len(), token.permissions().unwrap().len()), (0, 0), "empty is known");
}

#[tokio::test]
async fn an_odd_claim_of_the_organization_is_absent_and_refuses_no_token() {
    let odd = [
        json!(7),
        json!("admin"),
        json!({"key": "admin"}),
        json!(["admin", 7]),
        json!([{"id": "r-1"}]),
        json!([null]),
    ];
    for odd in odd.into_iter().chain([Value::Null]) {
        let changes = json!({"roles": odd, "permissions": odd, "org_codes": odd});
        let token = verify(&with(access_claims(), &changes)).await.unwrap();
        assert_eq!((token.roles(), token.permissions(), token.org_codes()), (None, None, None), "{odd}");
    }
    for odd in [json!(7), json!(["org_1"]), json!({}), json!("")] {
        let token = verify(&with(access_claims(), &json!({ "org_code": odd }))).await.unwrap();
        assert_eq!(token.org_code, None, "{odd}");
    }
}

#[tokio::test]
async fn no_claim_is_required_that_a_workflow_can_remove() {
    let exp = now().as_second() + 60;
    verify(&json!({"iss": ISSUER, "sub": "kp_1", "exp": exp})).await.unwrap();
    for added in [
        json!({"email": "a@example.com", "scp": null}),
        json!({"name": "A", "given_name": "A", "picture": "x", "updated_at": 1, "scp": null}),
        json!({"org_codes": ["org_1"]}),
        json!({"auth_time": 1}),
        json!({"aud": [ISSUER], "azp": "client"}),
        json!({"aud": ["https://api.example.com"], "scp": null}),
        json!({"type": "custom", "data": {}}),
        json!({"exp": 1_714_636_800.5}),
        json!({"org_code": "", "gty": ["authorization_code"]}),
    ] {
        let token = verify(&with(access_claims(), &added)).await;
        assert!(token.is_ok(), "{added}: {token:?}");
    }
}

#[tokio::test]
async fn tokens_of_other_types_are_rejected_with_their_type() {
    for (claims, reason) in [
        (id_token_claims(), "id_token"),
        (with(id_token_claims(), &json!({"at_hash": null})), "id_token"),
        (with(id_token_claims(), &json!({"at_hash": null, "auth_time": null})), "id_token"),
        (with(access_claims(), &json!({"nonce": "x"})), "id_token"),
        (machine_claims(), "machine_token"),
        (with(machine_claims(), &json!({"gty": "client_credentials", "sub": "kp_1"})), "machine_token"),
        (with(machine_claims(), &json!({"gty": null})), "missing_subject"),
        (with(access_claims(), &json!({"scp": null, "aud": [ISSUER, "x"]})), "id_token"),
        (with(access_claims(), &json!({"scp": null, "aud": ISSUER})), "id_token"),
        (with(access_claims(), &json!({"scp": null, "azp": "client", "aud": ["client"]})), "id_token"),
        (webhook_claims(), "webhook_token"),
        (with(webhook_claims(), &access_claims()), "webhook_token"),
    ] {
        assert_eq!(verify(&claims).await.unwrap_err().reason(), reason, "{claims}");
    }
}

#[tokio::test]
async fn a_claim_of_the_wrong_type_is_malformed_and_not_absent() {
    let at = now().as_second();
    for (changes, reason) in [
        (json!({"sub": null}), "missing_subject"),
        (json!({"sub": ""}), "missing_subject"),
        (json!({"exp": null}), "missing_claim"),
        (json!({"iss": null}), "missing_claim"),
        (json!({"sub": 1}), "malformed_claim"),
        (json!({"sub": "a\u{0}"}), "malformed_claim"),
        (json!({"sub": {"$gt": ""}}), "malformed_claim"),
        (json!({"sub": " kp_1"}), "malformed_claim"),
        (json!({"sub": "kp_1\u{a0}"}), "malformed_claim"),
        (json!({"sub": "\u{2003}kp_1"}), "malformed_claim"),
        (json!({"sub": "x".repeat(257)}), "malformed_claim"),
        (json!({"exp": "9999999999"}), "malformed_claim"),
        (json!({"exp": [at + 60]}), "malformed_claim"),
        (json!({"exp": true}), "malformed_claim"),
        (json!({"exp": 1e300}), "malformed_claim"),
        (json!({"exp": u64::MAX}), "malformed_claim"),
        (json!({"nbf": "1"}), "malformed_claim"),
        (json!({"iat": "1"}), "malformed_claim"),
        (json!({"azp": 1}), "malformed_claim"),
        (json!({"gty": 1}), "malformed_claim"),
        (json!({"iss": [ISSUER]}), "malformed_claim"),
        (json!({"exp": -1}), "expired"),
    ] {
        check(changes, reason).await;
    }
}

#[tokio::test]
async fn the_issuer_must_be_equal_to_a_configured_one() {
    for issuer in [
        "https://acme.kinde.com/",
        "https://acme.kinde.co",
        "https://acme.kinde.com.evil.example",
        "HTTPS://ACME.KINDE.COM",
        "https://evil.example",
        "",
    ] {
        check(json!({ "iss": issuer }), "unknown_issuer").await;
    }
}

#[tokio::test]
async fn keys_of_an_issuer_verify_only_its_own_tokens() {
    let other = "https://login.acme.example";
    let issuers = vec![
        (ISSUER.to_owned(), tenant_jwks()),
        (other.to_owned(), fixed_jwks(&[foreign_key().jwk(KID), foreign_key().jwk("other")])),
    ];
    let verifier = Verifier::new(Config { issuers, ..Config::default() });
    let claims = with(access_claims(), &json!({ "iss": other }));
    let own = foreign_key().sign(&header(), &claims);
    assert_eq!(verifier.verify(&own, now()).await.unwrap().issuer, other);
    let same_kid = tenant_key().sign(&header(), &claims);
    assert_eq!(verifier.verify(&same_kid, now()).await.unwrap_err().reason(), "signature_mismatch");
    let foreign_kid = foreign_key().sign(&with(header(), &json!({"kid": "other"})), &access_claims());
    assert_eq!(verifier.verify(&foreign_kid, now()).await.unwrap_err().reason(), "unknown_key");
}

#[tokio::test]
async fn times_are_compared_with_the_leeway() {
    let at = now().as_second();
    for (changes, expect) in [
        (json!({"exp": at + 1}), Ok(())),
        (json!({"exp": at - 59}), Ok(())),
        (json!({"exp": at - 60}), Err("expired")),
        (json!({"exp": at - 61}), Err("expired")),
        (json!({"exp": 0}), Err("expired")),
        (json!({"nbf": at + 60}), Ok(())),
        (json!({"nbf": at + 61}), Err("not_yet_valid")),
        (json!({"iat": at + 60}), Ok(())),
        (json!({"iat": at + 61}), Err("issued_in_future")),
    ] {
        let found = verify(&with(access_claims(), &changes)).await;
        assert_eq!(found.map(|_| ()).map_err(|error| error.reason()), expect, "{changes}");
    }
}

#[tokio::test]
async fn the_audience_is_checked_if_one_is_configured() {
    for (audience, expect) in [
        (json!("api"), Ok(())),
        (json!(["other", "api"]), Ok(())),
        (json!([]), Err("wrong_audience")),
        (json!(null), Err("wrong_audience")),
        (json!("api2"), Err("wrong_audience")),
        (json!(["other"]), Err("wrong_audience")),
        (json!(["api", 1]), Err("malformed_claim")),
        (json!({"api": 1}), Err("malformed_claim")),
        (json!(7), Err("malformed_claim")),
    ] {
        let config = Config { audiences: vec!["api".to_owned(), "api3".to_owned()], ..config() };
        let found = verify_with(config, &with(access_claims(), &json!({ "aud": audience }))).await;
        assert_eq!(found.map(|_| ()).map_err(|error| error.reason()), expect, "{audience}");
    }
}

#[tokio::test]
async fn a_token_that_is_too_long_is_rejected() {
    let token = "a".repeat(MAX_TOKEN_BYTES + 1);
    assert_eq!(Verifier::new(config()).verify(&token, now()).await.unwrap_err().reason(), "token_too_long");
}

#[tokio::test]
async fn the_application_is_checked_if_client_ids_are_configured() {
    for (azp, expect) in [
        (json!("app1"), Ok(())),
        (json!("app3"), Err("unauthorized_client")),
        (json!(null), Err("missing_claim")),
        (json!(""), Err("missing_claim")),
        (json!(["app1"]), Err("malformed_claim")),
    ] {
        let config = Config { client_ids: vec!["app1".to_owned(), "app2".to_owned()], ..config() };
        let found = verify_with(config, &with(access_claims(), &json!({ "azp": azp }))).await;
        assert_eq!(found.map(|_| ()).map_err(|error| error.reason()), expect, "{azp}");
    }
}

#[tokio::test]
async fn an_api_key_of_kinde_has_a_reason_of_its_own() {
    let verifier = Verifier::new(config());
    let error = verifier.verify("k_live_12345678abcdefghijkl", now()).await.unwrap_err();
    assert_eq!(error.reason(), "api_key");
    assert_eq!(verifier.verify("k_test.x.y", now()).await.unwrap_err().reason(), "malformed_token");
}

#[tokio::test]
async fn feature_flags_and_custom_claims_are_read_by_type() {
    let flags = json!({"theme": {"t": "s", "v": "pink"}, "beta": {"t": "b", "v": true}, "seats": {"t": "i", "v": 5},
        "wrong": {"t": "b", "v": "yes"}, "newer": {"t": "j", "v": {}}, "empty": {}});
    let token =
        verify(&with(access_claims(), &json!({"feature_flags": flags, "tier": ["gold"]}))).await.unwrap();
    assert_eq!(token.feature_flag("theme"), Some(FlagValue::Text("pink".to_owned())));
    assert_eq!(token.feature_flag("beta"), Some(FlagValue::Bool(true)));
    assert_eq!(token.feature_flag("seats"), Some(FlagValue::Integer(5)));
    for absent in ["wrong", "newer", "empty", "none"] {
        assert_eq!(token.feature_flag(absent), None, "{absent}");
    }
    assert_eq!(token.claim::<Vec<String>>("tier").unwrap(), Some(vec!["gold".to_owned()]));
    assert_eq!(token.claim::<String>("absent").unwrap(), None);
    assert!(token.claim::<String>("tier").is_err());
}

#[tokio::test]
async fn an_issuer_without_a_key_of_the_tenant_is_one_of_another_tenant() {
    let custom = fixed_jwks(&[tenant_key().jwk("another name")]);
    let with_tenant = |tenant| Config { tenant: Some(tenant), ..config() };
    verify_with(with_tenant(custom), &access_claims()).await.unwrap();
    let other =
        verify_with(with_tenant(fixed_jwks(&[foreign_key().jwk(KID)])), &access_claims()).await.unwrap_err();
    assert_eq!((other.reason(), other.is_unavailable()), ("other_tenant", false));
}
