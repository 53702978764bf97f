//! Sign-in to an application: login page, codes with PKCE, refresh tokens, custom domains, logout.

use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kinde_emulator::config::{Application, Unknowns};
use kinde_emulator::{Config, Emulator, Fault, FaultKind, NewUser, TokenSpec, User, UserEdit};
use reqwest::redirect::Policy;
use reqwest::{Response, header};
use serde_json::{Value, json};
use url::Url;

use crate::receiver::{DEADLINE, claims, get, is_signed_by, start};

const CALLBACK: &str = "http://localhost:3000/callback";
const VERIFIER: &str = "a-verifier-of-at-least-forty-three-letters-00";
const SCOPE: &str = "openid profile email offline";

/// A browser and the back end of an application at one domain.
struct Browser {
    client: reqwest::Client,
    base: String,
    host: Option<String>,
    client_id: String,
    cookie: Option<String>,
}

impl Browser {
    fn new(emulator: &Emulator) -> Self {
        let client = reqwest::Client::builder().timeout(DEADLINE).no_proxy().redirect(Policy::none());
        Self {
            client: client.build().unwrap(),
            base: emulator.issuer().to_owned(),
            host: None,
            client_id: emulator.config().app_client_id.clone(),
            cookie: None,
        }
    }

    fn auth_url(&self, more: &[(&str, &str)]) -> Url {
        let challenge = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, VERIFIER.as_bytes()));
        let mut url: Url = format!("{}/oauth2/auth", self.base).parse().unwrap();
        let usual = [
            ("client_id", self.client_id.as_str()),
            ("redirect_uri", CALLBACK),
            ("response_type", "code"),
            ("scope", SCOPE),
            ("state", "a state & more"),
            ("nonce", "n1"),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        let kept = usual.iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name));
        url.query_pairs_mut().extend_pairs(kept.chain(more).filter(|(_, value)| !value.is_empty()));
        url
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Response {
        for (name, value) in [(header::HOST, &self.host), (header::COOKIE, &self.cookie)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        request.send().await.unwrap()
    }

    async fn open(&self, more: &[(&str, &str)]) -> Response {
        self.send(self.client.get(self.auth_url(more))).await
    }

    async fn submit(&self, more: &[(&str, &str)], form: &[(&str, &str)]) -> Response {
        self.send(self.client.post(self.auth_url(more)).form(form)).await
    }

    async fn code(&self, user: &User) -> String {
        let response = self.submit(&[], &[("user", &user.id)]).await;
        parameter(&response, "code").expect("a code")
    }

    async fn token(&self, form: &[(&str, &str)]) -> (u16, Value) {
        let request = self.client.post(format!("{}/oauth2/token", self.base)).form(form);
        let response = self.send(request).await;
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn redeem(&self, code: &str) -> (u16, Value) {
        self.token(&self.code_form(code)).await
    }

    fn code_form<'a>(&'a self, code: &'a str) -> [(&'a str, &'a str); 5] {
        [
            ("grant_type", "authorization_code"),
            ("client_id", &self.client_id),
            ("code", code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", VERIFIER),
        ]
    }

    async fn refresh(&self, token: &str) -> (u16, Value) {
        let form =
            [("grant_type", "refresh_token"), ("client_id", &self.client_id), ("refresh_token", token)];
        self.token(&form).await
    }
}

fn location(response: &Response) -> Option<Url> {
    response.headers().get(header::LOCATION)?.to_str().ok()?.parse().ok()
}

fn parameter(response: &Response, name: &str) -> Option<String> {
    location(response)?.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn text<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer}"))
}

async fn tenant_with_user(config: Config) -> (Emulator, User, Browser) {
    let emulator = Emulator::start(config).await.unwrap();
    let ada = emulator.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    let browser = Browser::new(&emulator);
    (emulator, ada, browser)
}

#[tokio::test]
async fn the_page_lists_users_and_escapes_their_text() {
    let (emulator, ada, browser) = tenant_with_user(Config::default()).await;
    emulator.import_user(NewUser::named("x@example.com", "<script>alert(1)</script>", "\"'")).unwrap();
    let response = browser.open(&[("login_hint", "\"><b>ada")]).await;
    assert_eq!(response.status(), 200);
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("'self' http://localhost:3000;"));
    let html = response.text().await.unwrap();
    assert!(html.contains(&ada.id) && html.contains("ada@example.com"));
    assert!(!html.contains("<script") && html.contains("&lt;script&gt;") && !html.contains("<b>"), "{html}");
    assert!(html.contains("state=a+state+%26+more&amp;nonce"), "the forms send the request again");
}

#[tokio::test]
async fn a_code_is_exchanged_for_tokens_once() {
    let (emulator, receiver) = start(Config::default()).await;
    let ada = emulator.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    let browser = Browser::new(&emulator);
    let response = browser.submit(&[], &[("email", " ADA@example.com ")]).await;
    assert_eq!(response.status(), 303);
    assert!(location(&response).unwrap().as_str().starts_with("http://localhost:3000/callback?"));
    assert_eq!(parameter(&response, "state").as_deref(), Some("a state & more"));
    assert_eq!(receiver.wait_for(1).await[0].kind(), "user.authenticated");
    assert_eq!(emulator.user(&ada.id).unwrap().total_sign_ins, 1);

    let code = parameter(&response, "code").unwrap();
    let (status, answer) = browser.redeem(&code).await;
    assert_eq!((status, &answer["expires_in"], &answer["scope"]), (200, &json!(86400), &json!(SCOPE)));
    let access = claims(text(&answer, "access_token"));
    assert_eq!((&access["sub"], &access["iss"]), (&json!(ada.id), &json!(emulator.issuer())));
    assert_eq!((&access["azp"], &access["aud"]), (&json!(browser.client_id), &json!([])));
    assert_eq!(access["scp"], json!(["openid", "profile", "email", "offline"]));
    assert!(access.get("email").is_none());
    let id = claims(text(&answer, "id_token"));
    assert_eq!(
        (&id["nonce"], &id["email"], &id["name"]),
        (&json!("n1"), &json!("ada@example.com"), &json!("Ada Lovelace"))
    );
    let hash = digest::digest(&digest::SHA256, text(&answer, "access_token").as_bytes());
    assert_eq!(id["at_hash"], URL_SAFE_NO_PAD.encode(&hash.as_ref()[..16]));
    let profile = format!("{}/oauth2/v2/user_profile", emulator.issuer());
    assert_eq!(get(&profile, Some(text(&answer, "access_token"))).await.1["email"], "ada@example.com");

    let (status, again) = browser.redeem(&code).await;
    assert_eq!((status, &again["error"]), (400, &json!("invalid_grant")));
    assert_eq!(
        browser.refresh(text(&answer, "refresh_token")).await.0,
        400,
        "its refresh token is revoked too"
    );
}

#[tokio::test]
async fn a_code_is_bound_to_its_application_redirect_and_verifier() {
    let (emulator, ada, browser) = tenant_with_user(Config::default()).await;
    emulator.add_application(Application::confidential("back", "secret", CALLBACK));
    let other = Application::public("other", CALLBACK);
    emulator.add_application(other);
    let changes = [
        ("code_verifier", "another"),
        ("code_verifier", ""),
        ("redirect_uri", "http://localhost:3000/callback/"),
        ("client_id", "other"),
        ("client_id", "unknown"),
        ("grant_type", "password"),
    ];
    for (name, value) in changes {
        let code = browser.code(&ada).await;
        let form: Vec<(&str, &str)> =
            browser.code_form(&code).into_iter().filter(|(key, _)| *key != name).collect();
        let (status, answer) = browser.token(&[form.as_slice(), &[(name, value)]].concat()).await;
        assert!((400..=401).contains(&status) && answer["error"].is_string(), "{name}={value}: {answer}");
    }
    let back = Browser { client_id: "back".to_owned(), ..Browser::new(&emulator) };
    for (secret, wanted) in [("secret", 200), ("wrong", 401), ("", 401)] {
        let code = back.code(&ada).await;
        let form = [back.code_form(&code).as_slice(), &[("client_secret", secret)]].concat();
        assert_eq!(back.token(&form).await.0, wanted, "{secret}");
    }
    let plain = [("code_challenge", ""), ("code_challenge_method", "")];
    let code = parameter(&back.submit(&plain, &[("user", &ada.id)]).await, "code").unwrap();
    let form = [("grant_type", "authorization_code"), ("code", &code), ("redirect_uri", CALLBACK)];
    let request = back.client.post(format!("{}/oauth2/token", back.base)).basic_auth("back", Some("secret"));
    assert_eq!(back.send(request.form(&form)).await.status(), 200, "a back end needs no PKCE");

    let mut config = Config::default();
    config.tokens.code_lifetime = Duration::ZERO;
    let (_emulator, ada, browser) = tenant_with_user(config).await;
    assert_eq!(
        browser.redeem(&browser.code(&ada).await).await.1["error"],
        "invalid_grant",
        "the code has expired"
    );
}

#[tokio::test]
async fn an_invalid_request_is_reported_to_the_user_or_to_the_application() {
    let (_emulator, _, browser) = tenant_with_user(Config::default()).await;
    for change in [("client_id", "unknown"), ("redirect_uri", "http://localhost:3000/callback?x=1")] {
        let response = browser.open(&[change]).await;
        assert!(response.status() == 400 && location(&response).is_none(), "{change:?}");
    }
    let reported = [
        (("response_type", "token"), "unsupported_response_type"),
        (("code_challenge", ""), "invalid_request"),
        (("code_challenge_method", "plain"), "invalid_request"),
        (("audience", "https://other.example"), "invalid_request"),
        (("prompt", "none"), "login_required"),
    ];
    for (change, error) in reported {
        let response = browser.open(&[change]).await;
        assert_eq!(parameter(&response, "error").as_deref(), Some(error), "{change:?}");
        assert_eq!(parameter(&response, "state").as_deref(), Some("a state & more"));
    }
}

#[tokio::test]
async fn a_sign_up_creates_a_user_with_its_events() {
    let (emulator, receiver) = start(Config::default()).await;
    let browser = Browser::new(&emulator);
    let form = [("sign_up", "yes"), ("email", "new@example.com"), ("first_name", "New"), ("last_name", "")];
    let response = browser.submit(&[("prompt", "create")], &form).await;
    let (status, answer) = browser.redeem(&parameter(&response, "code").unwrap()).await;
    assert_eq!(status, 200);
    let mut kinds: Vec<String> =
        receiver.wait_for(2).await.iter().map(super::receiver::Arrival::kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["user.authenticated", "user.created"]);
    let user = emulator.user_by_email("new@example.com").unwrap();
    assert_eq!((&claims(text(&answer, "access_token"))["sub"], user.email_verified), (&json!(user.id), true));
    let again = browser.submit(&[], &form).await;
    assert_eq!(again.status(), 403);
    assert!(again.text().await.unwrap().contains("belongs to another user"));
    assert_eq!(browser.submit(&[], &[("email", "unknown@example.com")]).await.status(), 403);
}

#[tokio::test]
async fn a_suspended_or_deleted_user_cannot_sign_in_or_refresh() {
    let (emulator, receiver) = start(Config::default()).await;
    let ada = emulator.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    let browser = Browser::new(&emulator);
    let waiting = browser.code(&ada).await;
    let answer = browser.redeem(&browser.code(&ada).await).await.1;
    emulator.suspend(&ada.id).unwrap();
    let response = browser.submit(&[], &[("user", &ada.id)]).await;
    assert!(response.status() == 403 && location(&response).is_none());
    assert!(response.text().await.unwrap().contains("is suspended"));
    let arrivals = receiver.wait_for(4).await;
    assert!(arrivals.iter().any(|arrival| arrival.kind() == "user.authentication_failed"));
    assert_eq!(browser.redeem(&waiting).await.1["error"], "invalid_grant");
    let refresh = text(&answer, "refresh_token");
    assert_eq!(browser.refresh(refresh).await.1["error"], "invalid_grant");
    let profile = format!("{}/oauth2/v2/user_profile", emulator.issuer());
    assert_eq!(get(&profile, Some(text(&answer, "access_token"))).await.0, 200, "issued tokens stay valid");
    emulator.unsuspend(&ada.id).unwrap();
    assert_eq!(browser.refresh(refresh).await.0, 200);
    emulator.delete_user(&ada.id, kinde_emulator::Profile::Remove).unwrap();
    assert_eq!(browser.refresh(refresh).await.0, 400);
    assert_eq!(get(&profile, Some(text(&answer, "access_token"))).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_overlap_one_of_many_concurrent_refreshes_succeeds() {
    let mut config = Config::default();
    config.tokens.refresh_overlap = Duration::ZERO;
    let emulator = Emulator::start(config).await.unwrap();
    let user = emulator.create_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    let browser = Browser::new(&emulator);
    for _ in 0..20 {
        let answer = browser.redeem(&browser.code(&user).await).await.1;
        let token = text(&answer, "refresh_token");
        let answers = futures_util::future::join_all((0..16).map(|_| browser.refresh(token))).await;
        assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 1);
    }
}

#[tokio::test]
async fn a_refresh_token_is_replaced_with_a_small_overlap() {
    for (overlap, old_works) in [(Duration::from_mins(1), 200), (Duration::ZERO, 400)] {
        let mut config = Config::default();
        config.tokens.refresh_overlap = overlap;
        let (_emulator, ada, browser) = tenant_with_user(config).await;
        let first = browser.redeem(&browser.code(&ada).await).await.1;
        let (status, second) = browser.refresh(text(&first, "refresh_token")).await;
        assert_eq!(status, 200);
        assert_ne!(first["refresh_token"], second["refresh_token"]);
        assert_ne!(first["access_token"], second["access_token"]);
        assert_eq!(browser.refresh(text(&first, "refresh_token")).await.0, old_works, "{overlap:?}");
        assert_eq!(browser.refresh(text(&second, "refresh_token")).await.0, 200);
    }
    let (_emulator, ada, browser) = tenant_with_user(Config::default()).await;
    let response = browser.submit(&[("scope", "openid offline_access")], &[("user", &ada.id)]).await;
    let answer = browser.redeem(&parameter(&response, "code").unwrap()).await.1;
    assert!(answer.get("refresh_token").is_none() && answer["id_token"].is_string());
    assert!(claims(text(&answer, "id_token")).get("email").is_none(), "no scope `email`");
}

#[tokio::test]
async fn cached_claims_outlive_a_change_of_the_user() {
    for cached in [false, true] {
        let unknowns = Unknowns { refresh_returns_cached_claims: cached, ..Unknowns::default() };
        let mut config = Config { unknowns, ..Config::default() };
        config.tokens.email_in_access_token = true;
        let (emulator, ada, browser) = tenant_with_user(config).await;
        let first = browser.redeem(&browser.code(&ada).await).await.1;
        let edit = UserEdit { email: Some("countess@example.com".to_owned()), ..UserEdit::default() };
        emulator.update_user(&ada.id, edit).unwrap();
        let second = browser.refresh(text(&first, "refresh_token")).await.1;
        assert_eq!(first["access_token"] == second["access_token"], cached);
        let wanted = if cached { "ada@example.com" } else { "countess@example.com" };
        assert_eq!(claims(text(&second, "access_token"))["email"], wanted);
    }
}

#[tokio::test]
async fn an_application_requests_audience_organization_and_email() {
    let (emulator, ada, _) = tenant_with_user(Config::default()).await;
    emulator.add_to_organization(&ada.id, "org_2", &[], &[]).unwrap();
    emulator.add_application(Application {
        audience: vec!["https://api.example.com".to_owned()],
        email_in_access_token: Some(true),
        ..Application::public("mine", CALLBACK)
    });
    let browser = Browser { client_id: "mine".to_owned(), ..Browser::new(&emulator) };
    let more = [("audience", "https://api.example.com"), ("org_code", "org_2")];
    let code = parameter(&browser.submit(&more, &[("user", &ada.id)]).await, "code").unwrap();
    let access = claims(text(&browser.redeem(&code).await.1, "access_token"));
    assert_eq!((&access["aud"], &access["org_code"]), (&json!(["https://api.example.com"]), &json!("org_2")));
    assert_eq!(access["email"], "ada@example.com");
    let outside = browser.submit(&[("org_code", "org_3")], &[("user", &ada.id)]).await;
    assert_eq!(outside.status(), 403, "not a member");
}

#[tokio::test]
async fn a_custom_domain_has_its_own_issuer_and_no_management() {
    let custom_domains = vec!["https://auth.example.com".to_owned(), "localhost".to_owned()];
    let (emulator, ada, main) = tenant_with_user(Config { custom_domains, ..Config::default() }).await;
    let port = emulator.address().port();
    assert_eq!(
        emulator.custom_issuers(),
        ["https://auth.example.com".to_owned(), format!("http://localhost:{port}")]
    );
    let custom = Browser { host: Some("auth.example.com".to_owned()), ..Browser::new(&emulator) };
    let answer = custom.redeem(&custom.code(&ada).await).await.1;
    let token = text(&answer, "access_token");
    assert_eq!(claims(token)["iss"], "https://auth.example.com");
    assert!(is_signed_by(&emulator.jwks(), token), "the same keys");
    assert_eq!(main.refresh(text(&answer, "refresh_token")).await.0, 400);
    assert_eq!(main.redeem(&custom.code(&ada).await).await.0, 400);
    assert_eq!(custom.refresh(text(&answer, "refresh_token")).await.0, 200);

    let at = async |path: &str, token: &str| {
        let request = custom.client.get(format!("{}{path}", custom.base)).bearer_auth(token);
        let response = custom.send(request).await;
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let profile = format!("{}/oauth2/v2/user_profile", emulator.issuer());
    assert_eq!(at("/oauth2/v2/user_profile", token).await.0, 200);
    assert_eq!(get(&profile, Some(token)).await.0, 403, "a token is valid at its own domain only");
    let m2m = emulator.m2m_token(&TokenSpec::default());
    let (status, refusal) = at("/api/v1/users", &m2m).await;
    assert_eq!((status, &refusal["errors"]["code"]), (404, &json!("ROUTE_NOT_FOUND")));
    let config = emulator.config().clone();
    let audience = emulator.api_audience();
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", &config.client_id),
        ("client_secret", &config.client_secret),
        ("audience", &audience),
    ];
    assert_eq!((custom.token(&form).await.0, main.token(&form).await.0), (400, 200));
    let discovery = get(&format!("http://localhost:{port}/.well-known/openid-configuration"), None).await.1;
    assert_eq!(discovery["issuer"], format!("http://localhost:{port}"));
}

#[tokio::test]
async fn a_session_signs_in_silently_until_logout() {
    let (emulator, ada, mut browser) = tenant_with_user(Config::default()).await;
    let response = browser.submit(&[], &[("user", &ada.id)]).await;
    let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Lax"));
    browser.cookie = cookie.split(';').next().map(str::to_owned);
    let silent = browser.open(&[("prompt", "none")]).await;
    assert_eq!(browser.redeem(&parameter(&silent, "code").unwrap()).await.0, 200);
    assert_eq!(browser.open(&[("prompt", "login")]).await.status(), 200, "the login page");
    let logout =
        async |query: &str| browser.send(browser.client.get(format!("{}/logout{query}", browser.base))).await;
    assert_eq!(logout("?redirect=https://evil.example").await.status(), 400);
    assert!(parameter(&browser.open(&[]).await, "code").is_some(), "a rejected logout changes nothing");
    let away = logout("?redirect=http://localhost:3000").await;
    assert_eq!(
        (away.status().as_u16(), &away.headers()["location"]),
        (302, &"http://localhost:3000".parse().unwrap())
    );
    assert!(parameter(&browser.open(&[("prompt", "none")]).await, "code").is_none());
    assert_eq!((emulator.requests("auth"), emulator.requests("logout")), (5, 2));
}

#[tokio::test]
async fn tokens_are_introspected_and_revoked() {
    let (emulator, ada, browser) = tenant_with_user(Config::default()).await;
    let answer = browser.redeem(&browser.code(&ada).await).await.1;
    let token = text(&answer, "access_token");
    let post = async |path: &str, form: &[(&str, &str)]| {
        let request = browser.client.post(format!("{}/oauth2/{path}", browser.base)).form(form);
        browser.send(request.bearer_auth(emulator.m2m_token(&TokenSpec::default()))).await
    };
    let known: Value = post("introspect", &[("token", token)]).await.json().await.unwrap();
    assert_eq!((&known["active"], &known["client_id"]), (&json!(true), &json!(browser.client_id)));
    assert_eq!(known["exp"], claims(token)["exp"]);
    let url = format!("{}/oauth2/introspect", browser.base);
    assert_eq!(browser.client.post(url).form(&[("token", token)]).send().await.unwrap().status(), 403);
    let revoke = async |token: &str| {
        post("revoke", &[("token", token), ("client_id", &browser.client_id)]).await.status().as_u16()
    };
    assert_eq!((revoke(token).await, revoke("unknown").await), (200, 200));
    let unknown: Value = post("introspect", &[("token", token)]).await.json().await.unwrap();
    assert_eq!(unknown, json!({"active": false}));
    let profile = format!("{}/oauth2/v2/user_profile", emulator.issuer());
    assert_eq!(get(&profile, Some(token)).await.0, 403);
    assert_eq!(revoke(text(&answer, "refresh_token")).await, 200);
    assert_eq!(browser.refresh(text(&answer, "refresh_token")).await.0, 400);
    assert_eq!(post("revoke", &[("token", token), ("client_id", "unknown")]).await.status(), 401);
}

#[tokio::test]
async fn the_profile_can_be_slow_and_unavailable() {
    let (emulator, ada, _) = tenant_with_user(Config::default()).await;
    let token = emulator.access_token(&ada.id, &TokenSpec::default()).unwrap();
    let profile = format!("{}/oauth2/v2/user_profile", emulator.issuer());
    emulator.set_fault(Fault::times(FaultKind::Status { status: 503 }, 1).on("profile"));
    assert_eq!(get(&profile, Some(&token)).await.0, 503);
    let slow = Duration::from_millis(60);
    emulator.set_fault(Fault::times(FaultKind::Slow { min: slow, max: slow }, 1).on("profile"));
    let before = tokio::time::Instant::now();
    assert_eq!(get(&profile, Some(&token)).await.0, 200);
    assert!(before.elapsed() >= slow);
}
