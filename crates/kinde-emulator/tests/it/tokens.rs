//! Keys, OAuth, tokens for applications, and forged tokens.

use kinde_emulator::config::{Application, Unknowns};
use kinde_emulator::{Alg, Config, Emulator, MintOptions, NewUser, RoleEdit, Signer, TokenSpec, User};
use serde_json::{Value, json};

use crate::receiver::{claims, client, get, is_signed_by, part};

async fn emulator() -> (Emulator, User) {
    let emulator = Emulator::start(Config::default()).await.unwrap();
    let user = emulator.create_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    (emulator, user)
}

async fn token(emulator: &Emulator, form: &[(&str, &str)]) -> (u16, Value) {
    let url = format!("{}/oauth2/token", emulator.issuer());
    let response = client().post(url).form(form).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn the_keys_have_two_urls_and_reject_credentials() {
    let (emulator, _) = emulator().await;
    let discovery = get(&format!("{}/.well-known/openid-configuration", emulator.issuer()), None).await.1;
    assert_eq!(discovery["issuer"], emulator.issuer());
    let (status, keys) = get(discovery["jwks_uri"].as_str().unwrap(), None).await;
    assert_eq!((status, &keys), (200, &emulator.jwks()));
    assert_eq!(keys["keys"][0]["kid"].as_str().unwrap().split(':').count(), 16);
    let url = format!("{}/.well-known/jwks.json", emulator.issuer());
    assert_eq!(get(&url, None).await, (200, keys));
    assert_eq!(get(&url, Some("anything")).await.0, 403);
    assert_eq!(emulator.requests("jwks"), 3);
}

#[tokio::test]
async fn client_credentials_return_an_m2m_token_for_the_api_audience_only() {
    let (emulator, _) = emulator().await;
    let audience = emulator.api_audience();
    let config = emulator.config().clone();
    let form = |secret, audience, scope| {
        [
            ("grant_type", "client_credentials"),
            ("client_id", config.client_id.as_str()),
            ("client_secret", secret),
            ("audience", audience),
            ("scope", scope),
        ]
    };
    let (status, answer) = token(&emulator, &form(&config.client_secret, &audience, "read:users")).await;
    assert_eq!(
        (status, &answer["token_type"], &answer["expires_in"]),
        (200, &json!("Bearer"), &json!(86400))
    );
    let minted = claims(answer["access_token"].as_str().unwrap());
    assert_eq!(minted["gty"], json!(["client_credentials"]));
    assert_eq!((&minted["scp"], &minted["scope"]), (&json!(["read:users"]), &json!("read:users")));
    assert!(minted.get("sub").is_none());

    let refused = [("wrong", audience.as_str(), ""), (&config.client_secret, "https://other", "")];
    for (secret, audience, scope) in refused {
        let (status, answer) = token(&emulator, &form(secret, audience, scope)).await;
        assert!(status >= 400 && answer["error"].is_string(), "{answer}");
    }
    assert_eq!(emulator.requests("token"), 3);
}

#[tokio::test]
async fn tokens_have_the_claims_of_kinde() {
    let (emulator, user) = emulator().await;
    let access = claims(&emulator.access_token(&user.id, &TokenSpec::default()).unwrap());
    let names: Vec<&String> = access.as_object().unwrap().keys().collect();
    let wanted =
        ["aud", "azp", "exp", "feature_flags", "iat", "iss", "jti", "org_code", "permissions", "scp", "sub"];
    assert_eq!(names, wanted, "no email");
    assert_eq!((&access["aud"], &access["sub"]), (&json!([]), &json!(user.id)));
    assert_eq!(access["exp"].as_i64().unwrap() - access["iat"].as_i64().unwrap(), 86400);

    let spec = TokenSpec {
        email: Some(true),
        expires_in: Some(-60),
        audience: Some(vec!["api".to_owned()]),
        claims: json!({"sub": null, "extra": 1}).as_object().unwrap().clone(),
        ..TokenSpec::default()
    };
    let changed = claims(&emulator.access_token(&user.id, &spec).unwrap());
    assert_eq!((&changed["email"], &changed["extra"]), (&json!("ada@example.com"), &json!(1)));
    assert!(changed.get("sub").is_none() && changed["exp"].as_i64() < changed["iat"].as_i64());

    let id = claims(&emulator.id_token(&user.id, &TokenSpec::default()).unwrap());
    assert_eq!((&id["name"], &id["given_name"]), (&json!("Ada Lovelace"), &json!("Ada")));
    assert!(id.get("scp").is_none() && id["org_codes"].is_array());
}

#[tokio::test]
async fn a_token_has_the_permissions_in_its_organization_and_roles_if_the_application_requests_them() {
    let (emulator, user) = emulator().await;
    let role =
        emulator.create_role(RoleEdit { name: Some("Admin".into()), ..RoleEdit::keyed("admin") }).unwrap();
    let given = emulator.create_permission(RoleEdit::keyed("read")).unwrap();
    emulator.set_role_permissions(&role.id, &[given.id], &[]).unwrap();
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    emulator.add_to_organization(&user.id, "org_2", &keys(&["admin"]), &keys(&["write"])).unwrap();
    let minted = |spec: TokenSpec| emulator.access_token(&user.id, &spec).map(|token| claims(&token));
    let of = |org: &str| TokenSpec { org: Some(org.to_owned()), ..TokenSpec::default() };
    let first = minted(TokenSpec::default()).unwrap();
    assert_eq!((&first["org_code"], &first["permissions"]), (&json!(emulator.config().org_code), &json!([])));
    let other = minted(of("org_2")).unwrap();
    assert_eq!((&other["org_code"], &other["permissions"]), (&json!("org_2"), &json!(["read", "write"])));
    assert!(other.get("roles").is_none(), "an application has to add them");
    let with_roles = minted(TokenSpec { roles: Some(true), ..of("org_2") }).unwrap();
    assert_eq!(with_roles["roles"], json!([{"id": role.id, "key": "admin", "name": "Admin"}]));
    let chosen = minted(TokenSpec { permissions: Some(Vec::new()), ..of("org_2") }).unwrap();
    assert_eq!(chosen["permissions"], json!([]));
    assert!(minted(of("org_3")).is_err(), "the user is no member");
}

#[tokio::test]
async fn forged_tokens_have_the_requested_signature() {
    let (emulator, _) = emulator().await;
    let claims = json!({"sub": "kp_1"});
    let mint = |options| emulator.mint(claims.as_object().unwrap(), &options);
    let genuine = mint(MintOptions::default());
    assert!(is_signed_by(&emulator.jwks(), &genuine));

    let foreign = mint(MintOptions { signer: Signer::Foreign, ..MintOptions::default() });
    assert_eq!(part(&foreign, 0)["kid"], emulator.active_kid());
    assert!(!is_signed_by(&emulator.jwks(), &foreign));
    let none = mint(MintOptions { alg: Alg::None, ..MintOptions::default() });
    assert!(none.ends_with('.') && part(&none, 0)["alg"] == "none");
    let confused = mint(MintOptions { alg: Alg::HS256, ..MintOptions::default() });
    assert_eq!(part(&confused, 0)["alg"], "HS256");
    let unknown = mint(MintOptions { kid: Some("aa:bb".to_owned()), ..MintOptions::default() });
    assert_eq!(part(&unknown, 0)["kid"], "aa:bb");
    let without = mint(MintOptions { kid: Some(String::new()), ..MintOptions::default() });
    assert!(part(&without, 0).get("kid").is_none());
}

#[tokio::test]
async fn the_profile_accepts_user_access_tokens_only() {
    let unknowns = Unknowns { suspension_revokes_tokens: true, ..Unknowns::default() };
    let emulator = Emulator::start(Config { unknowns, ..Config::default() }).await.unwrap();
    let user = emulator.create_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    let url = format!("{}/oauth2/v2/user_profile", emulator.issuer());
    let spec = TokenSpec::default();
    let access = emulator.access_token(&user.id, &spec).unwrap();
    let (status, profile) = get(&url, Some(&access)).await;
    assert_eq!(status, 200);
    assert_eq!((&profile["sub"], &profile["id"]), (&json!(user.id), &json!(user.id)));
    assert_eq!((&profile["email"], &profile["email_verified"]), (&json!("ada@example.com"), &json!(true)));
    assert!(profile["updated_at"].is_i64());

    let expired = TokenSpec { expires_in: Some(-1), ..spec.clone() };
    let foreign = MintOptions { signer: Signer::Foreign, ..MintOptions::default() };
    let foreign = TokenSpec { sign: foreign, ..spec.clone() };
    let refused = [
        emulator.id_token(&user.id, &spec).unwrap(),
        emulator.m2m_token(&spec),
        emulator.access_token(&user.id, &expired).unwrap(),
        emulator.access_token(&user.id, &foreign).unwrap(),
    ];
    for token in &refused {
        assert_eq!(get(&url, Some(token)).await.0, 403);
    }
    assert_eq!(get(&url, None).await.0, 403);
    let caller = emulator.m2m_token(&spec);
    let is_active = async || {
        let url = format!("{}/oauth2/introspect", emulator.issuer());
        let asked = client().post(url).bearer_auth(&caller).form(&[("token", access.as_str())]);
        asked.send().await.unwrap().json::<Value>().await.unwrap()["active"].clone()
    };
    assert_eq!(is_active().await, true);
    emulator.suspend(&user.id).unwrap();
    assert_eq!(get(&url, Some(&access)).await.0, 403);
    assert_eq!(is_active().await, false, "both endpoints agree");
    emulator.unsuspend(&user.id).unwrap();
    assert_eq!((get(&url, Some(&access)).await.0, is_active().await), (200, json!(true)));
}

#[tokio::test]
async fn a_test_token_has_the_email_if_the_application_requests_it() {
    for (tenant, application, wanted) in
        [(false, None, false), (true, None, true), (false, Some(true), true), (true, Some(false), false)]
    {
        let mut config = Config::default();
        config.tokens.email_in_access_token = tenant;
        let emulator = Emulator::start(config).await.unwrap();
        let user = emulator.create_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
        let own = Application::public(&emulator.config().app_client_id, "http://localhost:3000/callback");
        emulator.add_application(Application { email_in_access_token: application, ..own });
        let access = claims(&emulator.access_token(&user.id, &TokenSpec::default()).unwrap());
        assert_eq!(access.get("email").is_some(), wanted, "{tenant}, {application:?}");
        let spec = TokenSpec { email: Some(!wanted), ..TokenSpec::default() };
        let access = claims(&emulator.access_token(&user.id, &spec).unwrap());
        assert_eq!(access.get("email").is_some(), !wanted, "the spec takes precedence");
    }
}
