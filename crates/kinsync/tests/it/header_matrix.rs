//! The identity of a signed-in user cannot be forged, widened or narrowed through a documented proxy: requests with header
//! tricks on plain sockets, behind each proxy of the guide.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crate::{
    deployment::{Deployment, named},
    forward_auth::{Proxy, ROOT, identity},
};

/// What no application may see.
const CANARY: &str = "kp_canary";
/// Every header that kinsync writes.
const NAMES: [&str; 8] =
    ["user-id", "email", "org", "degraded", "omitted", "profile", "roles", "permissions"];

/// An application that keeps the heads of its requests.
struct Application {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Application {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heads);
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                kept.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
                _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
            }
        });
        Self { port, heads }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.heads.lock().unwrap())
    }
}

/// A request and what its sender expects.
struct Trick {
    what: &'static str,
    /// After the `Host`.
    lines: String,
    body: &'static str,
    expect: Expect,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    /// The application sees the user of the token, once.
    User,
    /// The same, or the proxy or kinsync refuses the request.
    UserOrRefusal,
    /// The application sees nothing.
    Refusal,
}

fn tricks(token: &str, other: &str) -> Vec<Trick> {
    let bearer = format!("authorization: Bearer {token}\r\n");
    let cookie = format!("cookie: token={token}\r\n");
    let trick =
        |what, lines: String, expect| Trick { what, lines: bearer.clone() + &lines, body: "", expect };
    let every = |line: &dyn Fn(&str) -> String| NAMES.map(|name| line(&format!("x-kinsync-{name}"))).concat();
    let chunked = |what, lines: &str, body| Trick {
        what,
        lines: format!("{bearer}transfer-encoding: chunked\r\n{lines}"),
        body,
        expect: Expect::UserOrRefusal,
    };
    let without_token = |what, lines| Trick { what, lines, body: "", expect: Expect::Refusal };
    vec![
        trick("the names", every(&|name| format!("{name}: {CANARY}\r\n")), Expect::User),
        trick("capitals", every(&|name| format!("{}: {CANARY}\r\n", name.to_uppercase())), Expect::User),
        trick(
            "underscores",
            every(&|name| format!("{}: {CANARY}\r\n", name.replace('-', "_"))),
            Expect::User,
        ),
        trick(
            "one underscore",
            every(&|name| format!("{}: {CANARY}\r\n", name.replacen('-', "_", 1))),
            Expect::User,
        ),
        trick(
            "two of each",
            every(&|name| format!("{name}: {CANARY}\r\n{name}: {CANARY}\r\n")),
            Expect::User,
        ),
        trick(
            "an empty one and another",
            format!("x-kinsync-user-id:\r\nx-kinsync-user-id: {CANARY}\r\n"),
            Expect::User,
        ),
        trick("hop by hop", every(&|name| format!("connection: {name}\r\n")), Expect::User),
        trick(
            "hop by hop, in a list",
            format!("connection: close, {}\r\n", NAMES.map(|n| format!("X-Kinsync-{n}")).join(",")),
            Expect::User,
        ),
        trick(
            "hop by hop, with spaces",
            "connection: keep-alive ,\tx-kinsync-user-id , x-kinsync-org\r\n".into(),
            Expect::User,
        ),
        trick("the token, hop by hop", "connection: authorization\r\n".into(), Expect::UserOrRefusal),
        trick("a space before the colon", format!("x-kinsync-user-id : {CANARY}\r\n"), Expect::UserOrRefusal),
        trick("a folded line", format!("x-a: b\r\n x-kinsync-user-id: {CANARY}\r\n"), Expect::UserOrRefusal),
        trick("a bare line feed", format!("x-a: b\nx-kinsync-user-id: {CANARY}\r\n"), Expect::UserOrRefusal),
        trick(
            "a bare carriage return",
            format!("x-a: b\rx-kinsync-user-id: {CANARY}\r\n"),
            Expect::UserOrRefusal,
        ),
        trick(
            "another path",
            "x-original-url: /other\r\nx-rewrite-url: /other\r\nx-forwarded-uri: /other\r\n".into(),
            Expect::User,
        ),
        trick(
            "another method",
            "x-http-method-override: OPTIONS\r\nx-forwarded-method: OPTIONS\r\n".into(),
            Expect::User,
        ),
        trick("a second token", format!("authorization: Bearer {other}\r\n"), Expect::Refusal),
        trick("the same token twice", bearer.clone(), Expect::Refusal),
        trick("a token of another in a cookie", format!("cookie: token={other}\r\n"), Expect::User),
        Trick { what: "a cookie alone", lines: cookie.clone(), body: "", expect: Expect::User },
        trick("a second host", "host: other.example\r\n".into(), Expect::UserOrRefusal),
        chunked(
            "a trailer",
            "trailer: x-kinsync-user-id\r\n",
            "1\r\na\r\n0\r\nx-kinsync-user-id: kp_canary\r\n\r\n",
        ),
        chunked(
            "a smuggled request",
            "content-length: 5\r\n",
            "0\r\n\r\nGET /other HTTP/1.1\r\nhost: a\r\nx-kinsync-user-id: kp_canary\r\n\r\n",
        ),
        without_token("a name without a token", every(&|name| format!("{name}: {CANARY}\r\n"))),
        without_token("an empty token", format!("authorization: Bearer \r\nx-kinsync-user-id: {CANARY}\r\n")),
        without_token("two cookies", format!("{cookie}cookie: token={other}\r\n")),
        without_token(
            "a cookie in a request of another site",
            format!("{cookie}origin: https://evil.example\r\nsec-fetch-site: cross-site\r\n"),
        ),
        without_token("a broken token", format!("authorization: Bearer {token}x\r\n")),
        without_token(
            "a preflight of an unknown origin",
            "origin: https://evil.example\r\naccess-control-request-method: GET\r\n".into(),
        ),
    ]
}

/// Sends a request and returns the response, as text.
fn exchange(port: u16, method: &str, lines: &str, body: &str) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(2))).unwrap();
    let close = if lines.contains("connection") { "" } else { "connection: close\r\n" };
    _ = write!(stream, "{method} /path HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{close}{lines}\r\n{body}");
    let (mut response, mut buffer) = (Vec::new(), [0; 4096]);
    while !is_complete(&response) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => response.extend_from_slice(&buffer[..read]),
        }
    }
    String::from_utf8_lossy(&response).into_owned()
}

/// Whether the whole body has arrived: the connection may stay open.
fn is_complete(response: &[u8]) -> bool {
    let text = String::from_utf8_lossy(response);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = values(head, "content-length").first().and_then(|length| length.parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

fn values(head: &str, wanted: &str) -> Vec<String> {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    headers
        .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
        .map(|(_, value)| value.trim().to_owned())
        .collect()
}

/// Whether a header that an application could take for one of kinsync's has a value of the caller.
fn is_forged(head: &str) -> bool {
    // Some servers take a single carriage return for the end of a line.
    let headers = head.split(['\r', '\n']).filter_map(|line| line.split_once(':'));
    let ours = |name: &str| name.trim().to_lowercase().replace('_', "-").starts_with("x-kinsync");
    headers.into_iter().any(|(name, value)| ours(name) && value.contains(CANARY))
}

/// What the application saw, if it is not what was expected.
fn wrong(trick: &Trick, identity: &[(&str, String); 4], response: &str, heads: &[String]) -> Option<String> {
    let is_answered = response.ends_with("\r\n\r\nok");
    let seen = match heads {
        [] => trick.expect != Expect::User && !is_answered,
        [head] => {
            let is_user = identity.iter().all(|(name, value)| values(head, name) == [value.as_str()]);
            is_user && head.contains(" /path HTTP/1.1") && !is_forged(head) && trick.expect != Expect::Refusal
        }
        _ => false,
    };
    (!seen).then(|| format!("{} ({:?}):\n{heads:#?}\n{response}\n", trick.what, trick.expect))
}

async fn check_behind(proxy: Proxy) {
    let mut deployment = Deployment::comparing_roles().await;
    deployment.apps[0].stop().await.unwrap();
    deployment.apps[0].set("KINSYNC_TOKEN_COOKIE", "token");
    deployment.apps[0].start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let application = Application::start();
    let (_running, url) = proxy.start(&deployment, application.port, folder.path()).await;
    let port = url.rsplit(':').next().unwrap().parse().unwrap();
    let (ada, eve) = (
        deployment.kinde.import_user(named(1)).unwrap().id,
        deployment.kinde.import_user(named(2)).unwrap().id,
    );
    let (token, other) = (deployment.token(&ada), deployment.token(&eve));
    let (org, grants) = (&deployment.kinde.config().org_code, ["editor".to_owned(), "edit".to_owned()]);
    deployment.kinde.add_to_organization(&ada, org, &grants[..1], &grants[1..]).unwrap();
    deployment.until_stored(&ada, bson::doc! { "organizations.roles": "editor" }).await;
    deployment.admin(reqwest::Method::POST, "/api/admin/reconcile").await;
    deployment.until_stored(&ada, bson::doc! { "organizations.permissions": "edit" }).await;
    let identity = identity(&deployment, &token).await;
    let checks = move || {
        application.take();
        let mut failures = String::new();
        for trick in tricks(&token, &other) {
            let method = match trick.what {
                "a preflight of an unknown origin" => "OPTIONS",
                _ if trick.body.is_empty() => "GET",
                _ => "POST",
            };
            let response = exchange(port, method, &trick.lines, trick.body);
            failures.extend(wrong(&trick, &identity, &response, &application.take()));
        }
        assert!(failures.is_empty(), "behind {proxy:?}:\n{failures}");
        preflights(port, &token, &application);
    };
    tokio::task::spawn_blocking(checks).await.unwrap();
}

/// A front end of the named origin gets its preflight answered and can read every response, errors included.
fn preflights(port: u16, token: &str, application: &Application) {
    let origin = "origin: https://app.example.com\r\n";
    let allowed =
        |response: &str| values(response, "access-control-allow-origin") == ["https://app.example.com"];
    let preflight_headers = format!(
        "{origin}access-control-request-method: GET\r\naccess-control-request-headers: authorization\r\n"
    );
    let preflight = exchange(port, "OPTIONS", &preflight_headers, "");
    assert!(preflight.starts_with("HTTP/1.1 20") && allowed(&preflight), "{preflight}");
    assert!(
        values(&preflight, "access-control-allow-headers").concat().contains("authorization"),
        "{preflight}"
    );
    assert_eq!(application.take(), Vec::<String>::new(), "a preflight needs no application");
    let refused = exchange(port, "GET", origin, "");
    assert!(refused.starts_with("HTTP/1.1 401") && allowed(&refused), "{refused}");
    let answered = exchange(port, "GET", &format!("{origin}authorization: Bearer {token}\r\n"), "");
    assert!(answered.starts_with("HTTP/1.1 200") && allowed(&answered), "{answered}");
    let foreign = "origin: https://evil.example\r\naccess-control-request-method: GET\r\n";
    let foreign = exchange(port, "OPTIONS", foreign, "");
    assert!(values(&foreign, "access-control-allow-origin").concat().is_empty(), "{foreign}");
    let other = exchange(
        port,
        "GET",
        &format!("origin: https://evil.example\r\nauthorization: Bearer {token}\r\n"),
        "",
    );
    assert!(
        other.starts_with("HTTP/1.1 200")
            && values(&other, "access-control-allow-origin").concat().is_empty(),
        "{other}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_no_header_changes_the_identity() {
    check_behind(Proxy::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_no_header_changes_the_identity() {
    check_behind(Proxy::Caddy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_traefik_no_header_changes_the_identity() {
    check_behind(Proxy::Traefik).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_envoy_no_header_changes_the_identity() {
    check_behind(Proxy::Envoy).await;
}

/// nginx, Traefik and Envoy cannot remove headers by prefix.
#[test]
fn every_configuration_names_every_header() {
    let mut missing = String::new();
    for name in ["nginx.conf", "traefik-dynamic.yaml", "envoy.yaml"] {
        let text = std::fs::read_to_string(format!("{ROOT}/docs/guides/forward-auth/{name}"))
            .unwrap()
            .to_lowercase();
        for header in NAMES {
            let removed = match name {
                "nginx.conf" => format!("proxy_set_header x-kinsync-{header} "),
                "traefik-dynamic.yaml" => format!("x-kinsync-{header}: \"\""),
                _ => format!("- remove: x-kinsync-{header}\n"),
            };
            if !text.contains(&removed) {
                _ = writeln!(missing, "{name}: {removed}");
            }
        }
    }
    assert!(missing.is_empty(), "{missing}");
}
