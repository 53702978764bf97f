//! The routes for users with an access token, on the real binary with a local Kinde.

use kinde_emulator::{Emulator, Fault, FaultKind, NewUser, TokenSpec};
use kinsync_testing::tokens::{AUDIENCE, refused, spec};
use serde_json::Value;

use crate::server::{Server, TOKEN};

/// Every route for users with an access token.
const GUARDED: [&str; 6] = [
    "/api/me",
    "/api/profile",
    "/auth/verify",
    "/auth/ext-authz/user",
    "/auth/ext-authz/user/",
    "/auth/ext-authz/user/any/path",
];

struct Deployment {
    kinde: Emulator,
    server: Server,
    user: String,
    token: String,
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map(str::trim)
    }
}

impl Deployment {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(vars: &'static [(&str, &str)]) -> Self {
        let kinde = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
        let issuer = kinde.issuer().to_owned();
        let server = tokio::task::spawn_blocking(move || {
            Server::start(&[vars, &[("KINDE_DOMAIN", &issuer)]].concat())
        });
        let user = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
        let token = kinde.access_token(&user, &TokenSpec::default()).unwrap();
        Self { kinde, server: server.await.unwrap(), user, token }
    }

    async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let mut all: Vec<_> = [("authorization", &*bearer), ("host", "test"), ("connection", "close")].into();
        all.extend(headers);
        let head = all.iter().fold(String::new(), |head, (name, value)| head + name + ": " + value + "\r\n");
        let request = format!("{method} {path} HTTP/1.1\r\n{head}\r\n");
        let mut stream = self.server.connect();
        let exchange = move || {
            use std::io::{Read, Write};
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        let text = tokio::task::spawn_blocking(exchange).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), body: serde_json::from_str(body).unwrap_or_default() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_is_answered_and_the_rest_is_filled_in_from_kinde() {
    let deployment = Deployment::start().await;
    let first = deployment.request("GET", "/api/me", &[]).await;
    assert_eq!(
        (first.status, first.body["kindeId"].as_str()),
        (200, Some(&*deployment.user)),
        "{}",
        first.body
    );
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(2);
    loop {
        let me = deployment.request("GET", "/api/me", &[]).await.body;
        if me["firstName"] == "Ada" {
            assert_eq!((&me["email"], &me["source"]), (&"ada@example.com".into(), &"profile".into()));
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the user is never filled in: {me}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(deployment.kinde.requests("profile"), 1, "one question for all of these requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_refreshed_once_a_minute_and_known_when_it_did_not_change() {
    let deployment = Deployment::start().await;
    let first = deployment.request("GET", "/api/profile", &[]).await;
    assert_eq!((first.status, &first.body["firstName"]), (200, &"Ada".into()));
    let again = deployment.request("GET", "/api/profile", &[]).await;
    assert_eq!(again.header("x-kinsync-profile"), Some("recent"));
    let tag = again.header("etag").unwrap();
    let known = deployment.request("GET", "/api/me", &[("if-none-match", tag)]).await;
    assert_eq!((known.status, known.header("etag")), (304, Some(tag)));
    assert_eq!(deployment.kinde.requests("profile"), 1);
    let wrong = deployment.request("GET", "/api/profile?refresh=perhaps", &[]).await;
    assert_eq!(wrong.status, 400);
    let head = deployment.request("HEAD", "/api/me", &[]).await;
    assert_eq!((head.status, head.header("etag"), &head.body), (200, Some(tag), &Value::Null));
    assert!(head.header("content-length").is_some_and(|length| length != "0"), "{}", head.head);
    let posted = deployment.request("POST", "/api/me", &[]).await;
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_users_are_kept_in_memory_than_the_setting_says() {
    const REQUESTS: usize = 100;
    let mut deployment = Deployment::with(&[("KINSYNC_CACHED_USERS", "1")]).await;
    let other =
        deployment.kinde.import_user(NewUser::named("grace@example.com", "Grace", "Hopper")).unwrap().id;
    let mut other = deployment.kinde.access_token(&other, &TokenSpec::default()).unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(deployment.request("GET", "/api/me", &[]).await.status, 200);
        std::mem::swap(&mut deployment.token, &mut other);
    }
    let metrics = deployment.server.request("GET", "/metrics", &[], "").1;
    let loads = metrics
        .lines()
        .find_map(|line| {
            line.strip_prefix(r#"kinsync_store_call_duration_seconds_count{store="embedded",op="load"} "#)
        })
        .unwrap_or_else(|| panic!("{metrics}"));
    // There is room for one of the two, so that the other one is loaded each time.
    assert!(loads.parse::<usize>().unwrap() >= REQUESTS / 2, "{loads} loads for {REQUESTS} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_kinde_is_down_a_profile_is_answered_from_the_store_and_marked() {
    let deployment = Deployment::start().await;
    deployment.kinde.set_fault(Fault::always(FaultKind::Status { status: 503 }).on("profile"));
    let answer = deployment.request("GET", "/api/profile?refresh=true", &[]).await;
    assert_eq!((answer.status, answer.header("x-kinsync-profile")), (200, Some("unavailable")));
    assert_eq!(answer.body["kindeId"].as_str(), Some(&*deployment.user));
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_auth_names_the_user_for_any_method() {
    let deployment = Deployment::start().await;
    for method in ["GET", "POST", "DELETE", "OPTIONS"] {
        let answer = deployment.request(method, "/auth/verify", &[("x-kinsync-user-id", "kp_admin")]).await;
        assert_eq!(
            (answer.status, answer.header("x-kinsync-user-id")),
            (200, Some(&*deployment.user)),
            "{method}"
        );
        assert!(answer.header("x-kinsync-email").is_some() && answer.header("x-kinsync-org").is_some());
        assert_eq!(
            answer.header("x-kinsync-degraded"),
            Some(""),
            "a proxy that copies it needs one: {method}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_auth_answers_the_same_whatever_path_envoy_puts_behind_it() {
    let mut deployment = Deployment::start().await;
    // From here on the address is known.
    assert_eq!(deployment.request("GET", "/api/profile", &[]).await.status, 200);
    let what = |answer: &Answer| {
        let own = ["x-kinsync-user-id", "x-kinsync-email", "x-kinsync-org", "x-kinsync-degraded"];
        let names = own.into_iter().chain(["www-authenticate", "cache-control"]);
        let headers = names.map(|name| answer.header(name).map(str::to_owned)).collect::<Vec<_>>();
        (answer.status, headers, answer.body.clone())
    };
    let paths = ["/", "/notes", "/notes/1?text=a%2Fb", "/auth/verify", "/api/webhook", "//a/../b"];
    for status in [200, 401] {
        let plain = deployment.request("GET", "/auth/verify", &[]).await;
        assert_eq!(plain.status, status, "{}", plain.body);
        for path in paths {
            for method in ["GET", "POST"] {
                let appended = deployment.request(method, &format!("/auth/ext-authz/user{path}"), &[]).await;
                assert_eq!(what(&appended), what(&plain), "{method} {path}");
            }
        }
        deployment.token.push('x');
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_guarded_route_refuses_a_missing_a_wrong_and_a_deleted_users_token() {
    let mut deployment = Deployment::start().await;
    let deleted = format!(
        r#"{{"type":"user.deleted","event_id":"e1","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"{}"}}}}}}"#,
        deployment.user
    );
    assert_eq!(deployment.server.deliver(&deleted).0, 200);
    deployment.server.wait_for(&format!("/api/admin/users/{}", deployment.user), |status, _| status == 200);
    for route in GUARDED {
        let answer = deployment.request("GET", route, &[]).await;
        assert_eq!((answer.status, &answer.body["reason"]), (403, &"deleted".into()), "{route}");
    }
    deployment.token.push('x');
    for route in GUARDED {
        let answer = deployment.request("GET", route, &[]).await;
        assert_eq!(answer.status, 401, "{route}");
        assert!(answer.body["reason"].is_string(), "{route}: {}", answer.body);
        let (status, body) = deployment.server.request("GET", route, &[], "");
        assert_eq!(status, 401, "{route}");
        assert!(body.contains(r#""reason":"no_token""#), "{route}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_reason_on_every_guarded_route_and_in_the_metrics() {
    let canary = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = format!("http://{}", canary.local_addr().unwrap());
    let mut deployment = Deployment::with(&[("KINDE_AUDIENCE", AUDIENCE)]).await;
    let table = refused(&deployment.kinde, &deployment.user, &address);
    let mut reasons = std::collections::BTreeMap::new();
    for (reason, token) in table {
        deployment.token = token;
        for route in GUARDED {
            let answer = deployment.request("GET", route, &[]).await;
            assert_eq!((answer.status, &answer.body["reason"]), (401, &reason.into()), "{route}");
            assert_eq!(answer.body["type"], "urn:problem-type:kinsync:unauthenticated");
            *reasons.entry(reason).or_insert(0) += 1;
        }
    }
    let (_, metrics) = deployment.server.request("GET", "/metrics", &[], "");
    for (reason, count) in reasons {
        let line = format!(r#"kinsync_authentication_failures_total{{reason="{reason}"}} {count}"#) + "\n";
        assert!(metrics.contains(&line), "{line} is missing in\n{metrics}");
    }
    let (_, users) = deployment.server.request(
        "GET",
        "/api/admin/users",
        &[("authorization", &format!("Bearer {TOKEN}"))],
        "",
    );
    assert!(users.contains(r#""users":[]"#), "no user was created: {users}");
    deployment.token =
        deployment.kinde.access_token(&deployment.user, &spec(&serde_json::json!({}))).unwrap();
    assert_eq!(deployment.request("GET", "/api/me", &[]).await.status, 200, "a valid token is accepted");
    let called = tokio::time::timeout(std::time::Duration::from_millis(100), canary.accept()).await;
    assert!(called.is_err(), "a token made the server call out");
}

const CORS: &[(&str, &str)] = &[("KINSYNC_CORS_ORIGINS", "https://app.example.com, http://localhost:5173")];

#[tokio::test(flavor = "multi_thread")]
async fn a_front_end_of_an_allowed_origin_reads_the_user_and_the_errors() {
    let mut deployment = Deployment::with(CORS).await;
    let origin = ("origin", "https://app.example.com");
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").map(str::to_owned);
    for route in ["/api/me", "/api/profile"] {
        let preflight = [
            origin,
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "authorization"),
        ];
        let answer = deployment.request("OPTIONS", route, &preflight).await;
        assert_eq!((answer.status, allowed(&answer).as_deref()), (204, Some(origin.1)), "{route}");
        assert!(answer.header("access-control-allow-headers").unwrap().contains("authorization"));
        let answer = deployment.request("GET", route, &[origin]).await;
        assert_eq!((answer.status, allowed(&answer).as_deref()), (200, Some(origin.1)), "{route}");
        assert_eq!(answer.header("access-control-allow-credentials"), None, "no cookie carries the token");
        let answer = deployment.request("GET", route, &[("origin", "https://other.example.com")]).await;
        assert_eq!((answer.status, allowed(&answer)), (200, None), "{route}");
        let answer = deployment.request("POST", route, &[origin]).await;
        assert_eq!((answer.status, allowed(&answer).as_deref()), (405, Some(origin.1)), "{route}");
    }
    deployment.token = "expired".into();
    for route in ["/api/me", "/api/profile"] {
        let answer = deployment.request("GET", route, &[origin]).await;
        assert_eq!((answer.status, allowed(&answer).as_deref()), (401, Some(origin.1)), "{route}");
    }
    let answer = deployment
        .request("OPTIONS", "/auth/verify", &[origin, ("access-control-request-method", "GET")])
        .await;
    assert_eq!((answer.status, allowed(&answer)), (401, None), "the proxy answers its own preflights");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_configured_origins_no_response_has_cors_headers() {
    let deployment = Deployment::start().await;
    let answer = deployment.request("GET", "/api/me", &[("origin", "https://app.example.com")]).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
    let preflight = [("origin", "https://app.example.com"), ("access-control-request-method", "GET")];
    assert_eq!(deployment.request("OPTIONS", "/api/me", &preflight).await.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_the_configured_cookie_is_accepted_and_in_no_other() {
    let deployment = Deployment::with(&[("KINSYNC_TOKEN_COOKIE", "session_token")]).await;
    let without = Deployment::start().await;
    let get = |deployment: &Deployment, name: &str, route: &str| {
        let cookie = format!("theme=dark; {name}={}", deployment.token);
        deployment.server.request("GET", route, &[("cookie", &cookie)], "").0
    };
    for route in GUARDED {
        assert_eq!(get(&deployment, "session_token", route), 200, "{route}");
        assert_eq!(get(&deployment, "token", route), 401, "{route}");
        assert_eq!(get(&without, "session_token", route), 401, "{route} without the setting");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_in_a_request_of_another_site_and_two_cookies_are_refused() {
    let deployment = Deployment::with(&[("KINSYNC_TOKEN_COOKIE", "session_token")]).await;
    let cookie = format!("session_token={}", deployment.token);
    let twice = format!("{cookie}; {cookie}");
    let other_site =
        [("cookie", &*cookie), ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    let both = [("cookie", &*cookie), ("authorization", "Basic x")];
    for route in GUARDED {
        let refused = |method, headers: &[(&str, &str)], reason: &str| {
            let (status, body) = deployment.server.request(method, route, headers, "");
            assert!(status == 401 && body.contains(reason), "{method} {route}: {status} {body}");
        };
        let methods: &[&str] = if route.starts_with("/auth") { &["GET", "POST"] } else { &["GET"] };
        for method in methods {
            refused(method, &other_site, "cross_site_cookie");
            refused(method, &[("cookie", &*twice)], "several_tokens");
            refused(method, &both, "not_a_bearer_token");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_too_long_for_a_header_is_left_out_and_named() {
    let deployment = Deployment::start().await;
    let unknown = "x-kinsync-roles, x-kinsync-permissions";
    let usual = deployment.request("GET", "/auth/verify", &[]).await;
    assert_eq!(usual.header("x-kinsync-omitted"), Some(unknown));
    let org = "o".repeat(600);
    let token = deployment
        .kinde
        .access_token(&deployment.user, &spec(&serde_json::json!({ "org_code": org })))
        .unwrap();
    let bearer = format!("Bearer {token}");
    let deployment = Deployment { token, ..deployment };
    let answer = deployment.request("GET", "/auth/verify", &[]).await;
    assert_eq!(answer.status, 200, "{bearer}");
    assert_eq!(
        (answer.header("x-kinsync-org"), answer.header("x-kinsync-omitted")),
        (Some(""), Some(&*format!("x-kinsync-org, {unknown}")))
    );
    assert_eq!(answer.header("x-kinsync-user-id"), Some(&*deployment.user));
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_auth_marks_unknown_roles_and_refuses_what_needs_one() {
    let mut deployment = Deployment::start().await;
    let answer = deployment.request("GET", "/auth/verify", &[]).await;
    let unknown = Some("x-kinsync-roles, x-kinsync-permissions");
    assert_eq!((answer.header("x-kinsync-roles"), answer.header("x-kinsync-omitted")), (Some(""), unknown));
    assert_eq!(answer.header("x-kinsync-org"), Some(deployment.kinde.config().org_code.as_str()));
    let me = deployment.request("GET", "/api/me", &[]).await;
    assert_eq!(me.body.get("organizations"), None, "what no source has listed is absent");
    for query in ["?role=admin", "?permission=read&role=admin"] {
        let answer = deployment.request("POST", &format!("/auth/verify{query}"), &[]).await;
        let kind = "urn:problem-type:kinsync:roles-unknown";
        assert_eq!((answer.status, &answer.body["type"]), (403, &kind.into()), "{}", answer.body);
    }
    for query in ["?roles=admin", "?role=", "?role=admin&text=a"] {
        assert_eq!(
            deployment.request("GET", &format!("/auth/verify{query}"), &[]).await.status,
            400,
            "{query}"
        );
    }
    for (path, status) in [
        ("/auth/verify/", 400),
        ("/auth/verify/?role=admin", 400),
        ("/auth/verify/users?role=admin", 400),
        ("/auth/ext-authz", 404),
        ("/auth/ext-authz/", 400),
        ("/auth/ext-authz//users", 400),
        ("/auth/ext-authz/roles=admin/users", 400),
        ("/auth/ext-authz/role=admin/users?role=nobody", 403),
        ("/auth/ext-authz/user/users?role=nobody", 200),
    ] {
        assert_eq!(deployment.request("GET", path, &[]).await.status, status, "{path}");
    }
    deployment.token.push('x');
    assert_eq!(
        deployment.request("GET", "/auth/verify?roles=admin", &[]).await.status,
        401,
        "first the token"
    );
    let (_, metrics) = deployment.server.request("GET", "/metrics", &[], "");
    let line = "kinsync_authorizations_refused_total{reason=\"roles_unknown\"} 3\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_of_the_token_count_where_the_setting_allows_it() {
    let mut deployment = Deployment::with(&[("KINSYNC_UNKNOWN_ROLES", "token")]).await;
    let claims = serde_json::json!({"roles": [{"id": "r-1", "key": "admin", "name": "Admin"}], "permissions": ["read"]});
    deployment.token = deployment.kinde.access_token(&deployment.user, &spec(&claims)).unwrap();
    let answer = deployment.request("GET", "/auth/verify?role=admin&permission=read,write", &[]).await;
    let of = |name| answer.header(name);
    assert_eq!(
        (answer.status, of("x-kinsync-roles"), of("x-kinsync-permissions"), of("x-kinsync-omitted")),
        (200, Some("admin"), Some("read"), Some(""))
    );
    let answer = deployment.request("GET", "/auth/verify?role=owner", &[]).await;
    assert_eq!((answer.status, &answer.body["reason"]), (403, &"missing_role".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_identity_fits_into_what_proxies_accept_and_more_is_left_out() {
    let mut deployment = Deployment::with(&[("KINSYNC_UNKNOWN_ROLES", "token")]).await;
    let with = async |deployment: &mut Deployment, permissions: usize| {
        let permissions: Vec<String> = (0..permissions).map(|n| format!("permission:{n:08}")).collect();
        let claims = serde_json::json!({
            "org_code": "o".repeat(512), "roles": ["r".repeat(512)], "permissions": permissions,
            "email": format!("{}@example.com", "e".repeat(500)),
        });
        deployment.token = deployment.kinde.access_token(&deployment.user, &spec(&claims)).unwrap();
        deployment.request("GET", "/auth/verify", &[]).await
    };
    let longest = with(&mut deployment, 51).await;
    assert_eq!((longest.status, longest.header("x-kinsync-omitted")), (200, Some("")), "{}", longest.head);
    assert_eq!(longest.header("x-kinsync-permissions").unwrap().len(), 51 * 20 - 1);
    assert!(longest.head.len() + 256 < 4096, "with the longest id: {}", longest.head.len());
    let more = with(&mut deployment, 150).await;
    assert_eq!(more.header("x-kinsync-permissions"), Some(""), "a part would look complete");
    assert_eq!(more.header("x-kinsync-omitted"), Some("x-kinsync-permissions"));
    let required = deployment.request("GET", "/auth/verify?permission=permission:00000149", &[]).await;
    assert_eq!(required.status, 200, "a permission without a header can be required");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_not_ready_for_deliveries_and_ready_for_logins() {
    let deployment = Deployment::with(&[
        ("KINSYNC_QUEUE_MAX_ENTRIES", "1"),
        ("MONGODB_URI", "mongodb://127.0.0.1:9/?directConnection=true"),
    ])
    .await;
    let ready = |role: &str| deployment.server.request("GET", &format!("/health/ready{role}"), &[], "").0;
    deployment.server.wait_for("/health/ready?for=logins", |status, _| status == 200);
    assert_eq!(ready(""), 200);
    assert_eq!(deployment.server.deliver(r#"{"type":"user.created","event_id":"e1","timestamp":"2026-01-01T00:00:00Z","user":{"id":"a"}}"#).0, 200);
    assert_eq!(ready(""), 503);
    assert_eq!(ready("?for=deliveries"), 503);
    assert_eq!(ready("?for=logins"), 200);
    assert_eq!(ready("?for=everything"), 400);
}

#[test]
fn without_an_issuer_the_server_is_ready_for_deliveries_only() {
    let server = Server::start(&[]);
    let ready = |role: &str| server.request("GET", &format!("/health/ready{role}"), &[], "");
    assert_eq!(ready("?for=deliveries").0, 200);
    let (status, body) = ready("?for=logins");
    assert!(status == 503 && body.contains("KINDE_DOMAIN"), "{status} {body}");
}
