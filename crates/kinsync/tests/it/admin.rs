//! The admin routes: accepted and refused requests, also forged ones.

use kinsync::http::{
    route::{Audience, Route},
    routes::routes,
};
use serde_json::Value;

use crate::server::{Server, TOKEN};

#[test]
fn without_an_admin_token_the_admin_routes_are_disabled_and_name_the_setting() {
    let server = Server::start(&[("KINSYNC_ADMIN_TOKEN", "")]);
    for headers in [&[][..], &[("authorization", "Bearer ")][..], &[("authorization", "Bearer anything")][..]]
    {
        let (status, body) = server.request("GET", "/api/admin/users", headers, "");
        assert_eq!(status, 403);
        assert!(body.contains("KINSYNC_ADMIN_TOKEN"), "{body}");
    }
}

#[test]
fn only_the_right_token_opens_every_admin_route() {
    // Each request comes from another address, or wrong tokens would cause a pause.
    let server = Server::start(&[("KINSYNC_TRUSTED_PROXIES", "127.0.0.1")]);
    let mut requests = 0_u32;
    let mut status = |method: &str, path: &str, authorization: &[(&str, &str)]| {
        requests += 1;
        let client = std::net::Ipv4Addr::from(requests).to_string();
        server.request(method, path, &[authorization, &[("x-forwarded-for", &client)]].concat(), "")
    };
    let operator = |route: &Route| route.audience == Audience::Operator;
    let routes = routes().into_iter().filter(operator);
    let routes = routes.map(|route| (route.verb.as_str(), route.path.replace("{id}", "1")));
    let almost = format!("Bearer {}", &TOKEN[1..]);
    let longer = format!("Bearer {TOKEN}x");
    for (method, path) in routes {
        let path = path.as_str();
        assert_eq!(status(method, path, &[]).0, 401, "{method} {path} without a token");
        for wrong in [almost.as_str(), longer.as_str(), "Bearer ", "Basic eDp5", TOKEN, "Bearer \u{fc}"] {
            let (status, _) = status(method, path, &[("authorization", wrong)]);
            assert_eq!(status, 401, "{method} {path} with {wrong}");
        }
        let right = format!("bearer {TOKEN}");
        let (status, body) = status(method, path, &[("authorization", &right)]);
        assert!(
            matches!(status, 200 | 404) && !body.contains("no-route")
                || body.contains("KINDE_M2M_CLIENT_ID")
                || body.contains("bad-parameter"),
            "{method} {path}: {status} {body}"
        );
    }
}

#[test]
fn two_authorization_headers_are_refused_even_if_one_is_right() {
    let server = Server::start(&[]);
    let right = format!("Bearer {TOKEN}");
    for pair in [["Bearer wrong", &right], [&right, "Bearer wrong"], [&right, &right]] {
        let headers = pair.map(|value| ("authorization", value));
        assert_eq!(server.request("GET", "/api/admin/stats", &headers, "").0, 401, "{pair:?}");
    }
}

#[test]
fn no_spelling_of_a_path_goes_round_the_token() {
    let server = Server::start(&[]);
    let tricks = [
        "//api/admin/users",
        "/api//admin/users",
        "/api/admin/./users",
        "/api/admin/.",
        "/api/admin/../admin/users",
        "/api/webhook/../admin/users",
        "/api/%61dmin/users",
        "/api/admin%2fusers",
        "/api/%2e/admin/users",
        "/API/ADMIN/USERS",
        "/api/admin/users/",
        "/api/admin/users;x=1",
        "/health/../api/admin/users",
        "/api/admin/users%00",
    ];
    let overrides = [
        ("x-original-url", "/api/admin/users"),
        ("x-rewrite-url", "/api/admin/users"),
        ("x-http-method-override", "GET"),
    ];
    for path in tricks {
        let (status, body) = server.request("GET", path, &overrides, "");
        assert!(matches!(status, 400 | 401 | 404), "{path}: {status} {body}");
    }
    let (status, _) = server.request("GET", "http://localhost/api/admin/users", &[], "");
    assert_eq!(status, 401, "the absolute form of a target is the same route");
}

#[test]
fn bad_parameters_are_reported_and_a_page_is_never_longer_than_the_limit() {
    let server = Server::start(&[]);
    for path in [
        "/api/admin/users?limit=0",
        "/api/admin/users?limit=-1",
        "/api/admin/users?limit=many",
        "/api/admin/users?emial=a",
        "/api/admin/users?deleted=perhaps",
        "/api/admin/events?limit=1&limit=2",
    ] {
        let (status, problem) = server.admin(path);
        assert_eq!(status, 400, "{path}: {problem}");
        assert!(problem["detail"].is_string(), "{path}: {problem}");
    }
    let (status, page) = server.admin("/api/admin/users?limit=1000000000");
    assert_eq!((status, &page["next"]), (200, &Value::Null));
    let (status, page) = server.admin("/api/admin/users?email[$gt]=");
    assert_eq!(status, 400, "an operator is no parameter: {page}");
}

#[test]
fn pages_follow_each_other_without_a_gap() {
    let server = Server::start(&[]);
    for n in 0..5 {
        server.deliver(&format!(
            r#"{{"type":"user.created","event_id":"e{n}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"u{n}"}}}}}}"#
        ));
    }
    server.wait_for("/api/admin/stats", |_, stats| stats["store"]["liveUsers"] == 5);
    let (mut seen, mut path) = (Vec::new(), "/api/admin/users?limit=2".to_owned());
    loop {
        let (_, page) = server.admin(&path);
        seen.extend(
            page["users"].as_array().unwrap().iter().map(|u| u["kindeId"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/api/admin/users?limit=2&after={next}");
    }
    assert_eq!(seen, ["u0", "u1", "u2", "u3", "u4"]);
}

#[test]
fn organizations_and_their_members_are_listed() {
    let server = Server::start(&[]);
    let deliver = |n: u32, kind: &str, data: &str| {
        let at = format!("2026-01-01T00:00:{n:02}Z");
        server.deliver(&format!(r#"{{"type":"{kind}","event_id":"o{n}","timestamp":"{at}","data":{data}}}"#));
    };
    for (n, code) in [(1, "org_a"), (2, "org_b"), (3, "org_c")] {
        let data = format!(r#"{{"organization":{{"code":"{code}","name":"Name {n}","handle":null}}}}"#);
        deliver(n, "organization.created", &data);
    }
    deliver(4, "role.created", r#"{"role":{"id":"r1","key":"admin","name":"Admin"}}"#);
    for (n, roles) in [(5, r#"[{"id":"r1","key":"admin"}]"#), (6, "null")] {
        let organizations = format!(r#"[{{"code":"org_a","roles":{roles},"permissions":null}}]"#);
        let data = format!(r#"{{"user":{{"id":"u{n}","organizations":{organizations}}}}}"#);
        deliver(n, "user.created", &data);
    }
    deliver(7, "role.updated", r#"{"role":{"id":"r1","key":"owner","name":"Owner"}}"#);
    deliver(8, "organization.deleted", r#"{"organization":{"code":"org_c"}}"#);
    server.wait_for("/api/admin/users?role=owner", |_, page| {
        page["users"].as_array().is_some_and(|u| u.len() == 1)
    });
    server.wait_for("/api/admin/organizations/org_c", |_, one| one["deletedAt"].is_string());
    let list = |path: &str, list: &str, id: &str| {
        let (status, page) = server.admin(path);
        assert_eq!(status, 200, "{path}: {page}");
        let items = page[list].as_array().unwrap().iter();
        items.map(|item| item[id].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let organizations =
        |query: &str| list(&format!("/api/admin/organizations{query}"), "organizations", "code");
    assert_eq!(organizations(""), ["org_a", "org_b"]);
    assert_eq!(organizations("?deleted=true&after=org_a"), ["org_b", "org_c"]);
    assert_eq!(server.admin("/api/admin/organizations?limit=1").1["next"], "org_a");
    let (_, one) = server.admin("/api/admin/organizations/org_a");
    let counted_at = &one["membersAsOf"];
    assert!(counted_at.is_string(), "{one}");
    let counted =
        serde_json::json!({ "code": "org_a", "name": "Name 1", "memberCount": 2, "membersAsOf": counted_at });
    assert_eq!(one, counted);
    assert_eq!(server.admin("/api/admin/organizations").1["organizations"][1]["memberCount"], 0);
    assert_eq!(server.admin("/api/admin/organizations/r1").0, 404, "a role is no organization");
    assert_eq!(list("/api/admin/roles", "roles", "id"), ["r1"]);
    let role = serde_json::json!({ "id": "r1", "key": "owner", "name": "Owner" });
    assert_eq!(server.admin("/api/admin/roles/r1").1, role, "its permissions are unknown");
    assert_eq!(server.admin("/api/admin/roles/org_a").0, 404, "an organization is no role");
    let users = |query: &str| list(&format!("/api/admin/users?{query}"), "users", "kindeId");
    assert_eq!(users("organization=org_a"), ["u5", "u6"]);
    assert_eq!(users("organization=org_a&role=owner"), ["u5"]);
    assert_eq!(users("role=owner"), ["u5"]);
    assert_eq!(users("role=admin"), Vec::<String>::new());
    assert_eq!(users("organization=org_b"), Vec::<String>::new());
    let page = server.admin("/api/admin/users?organization=org_a&limit=1").1;
    assert_eq!(
        (&page["next"], &page["users"][0]["organizations"][0]["roles"][0]),
        (&"u5".into(), &"owner".into())
    );
    let memberships =
        |user: &str| server.admin(&format!("/api/admin/users/{user}/explain")).1["memberships"].clone();
    let known = |one: Value| serde_json::json!({ "areAllKnown": true, "list": [one] });
    let unknown = serde_json::json!({ "code": "org_a", "roles": ["owner"] });
    assert_eq!(memberships("u5"), known(unknown), "what the role gives is unknown");
    let none = serde_json::json!({ "code": "org_a", "roles": [], "permissions": [] });
    assert_eq!(memberships("u6"), known(none));
    deliver(9, "user.updated", r#"{"user":{"id":"u5","organizations":null}}"#);
    server.wait_for("/api/admin/users?organization=org_a", |_, page| {
        page["users"].as_array().is_some_and(|users| users.len() == 1)
    });
    let explained = server.admin("/api/admin/users/u5/explain").1;
    let part =
        |observation: usize, part: usize| explained["observations"][observation]["fields"][part].clone();
    let roles = part(0, 1);
    let by = roles["supersededBy"].as_str().unwrap();
    assert!(by.starts_with("user.updated "), "{explained}");
    let superseded = serde_json::json!({
        "field": "organizations", "part": "roles", "organization": "org_a", "value": ["owner"], "isCurrent": false,
        "supersededBy": by, "supersededByEntries": ["o9"],
    });
    assert_eq!(roles, superseded, "by key, although the user no longer has the role");
    let others = serde_json::json!({
        "field": "organizations", "part": "member", "value": false, "isCurrent": true,
    });
    assert_eq!(part(1, 0), others);
}

#[test]
fn unknown_routes_and_methods_are_problem_documents() {
    let server = Server::start(&[]);
    for (method, path, expect) in [
        ("GET", "/nowhere", 404),
        ("POST", "/health", 405),
        ("BREW", "/health", 405),
        ("GET", "/api/webhook", 405),
    ] {
        let (status, body) = server.request(method, path, &[], "");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &problem["status"]), (expect, &Value::from(expect)), "{method} {path}");
        assert!(body.ends_with("}\n"), "{body}");
    }
    for path in ["/", "/openapi.json", "/metrics"] {
        assert!(server.request("GET", path, &[], "").1.ends_with('\n'), "{path}");
    }
    assert!(server.request("GET", "/", &[], "").1.contains("/api/webhook"));
}

#[test]
fn a_405_names_every_method_of_its_path() {
    let server = Server::start(&[("KINDE_DOMAIN", "https://acme.kinde.com")]);
    for (path, allow) in [
        ("/health", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/api/me", "GET, HEAD"),
        ("/api/profile", "GET, HEAD"),
        ("/api/webhook", "POST"),
        ("/api/admin/users/x/check", "POST"),
        ("/api/admin/dead-letters/1", "GET, HEAD, DELETE"),
        ("/api/admin/dead-letters/1/retry", "POST"),
    ] {
        let (status, head, body) = server.exchange("PATCH", path);
        assert_eq!(status, 405, "{path}: {body}");
        assert!(head.contains(&format!("\r\nallow: {allow}\r\n")), "{path}: {head}");
        assert!(body.contains(allow), "{path}: {body}");
    }
}

#[test]
fn without_an_issuer_the_routes_of_users_name_the_setting_that_enables_them() {
    let server = Server::start(&[]);
    for path in ["/api/me", "/api/profile", "/auth/verify", "/auth/ext-authz/user/x"] {
        let (status, body) = server.request("GET", path, &[], "");
        assert_eq!(status, 403, "{path}: {body}");
        assert!(body.contains("KINDE_DOMAIN"), "{path}: {body}");
    }
}

#[test]
fn every_route_is_counted_from_the_start_and_after_each_answer() {
    let server = Server::start(&[]);
    let (_, before) = server.request("GET", "/metrics", &[], "");
    for route in routes() {
        for class in ["2xx", "4xx", "5xx"] {
            let series =
                format!("kinsync_http_requests_total{{route=\"{}\",status=\"{class}\"}} 0", route.path);
            assert!(before.contains(&series) || route.path == "/metrics", "{series} is not in\n{before}");
        }
    }
    server.admin("/api/admin/users/kp_1");
    server.request("GET", "/nowhere", &[], "");
    server.request("POST", "/api/webhook", &[], "{}");
    let (_, after) = server.request("GET", "/metrics", &[], "");
    for route in ["/api/admin/users/{id}", "unmatched", "/api/webhook"] {
        let series = format!("kinsync_http_requests_total{{route=\"{route}\",status=\"4xx\"}} 1");
        assert!(after.contains(&series), "{series} is not in\n{after}");
    }
}

#[test]
fn the_description_of_the_server_is_public() {
    let server = Server::start(&[]);
    let (status, body) = server.request("GET", "/openapi.json", &[], "");
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &document["openapi"]), (200, &Value::from("3.1.0")));
    let (_, index) = server.request("GET", "/", &[], "");
    for route in routes() {
        assert!(!document["paths"][route.path].is_null(), "{} is not in /openapi.json", route.path);
        assert!(index.contains(route.path), "{} is not in the index:\n{index}", route.path);
    }
}

#[test]
fn health_and_metrics_move_to_their_own_address() {
    // A free port for a moment: the server takes it next.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(&[("KINSYNC_METRICS_BIND", &free.to_string())]);
    assert_eq!(server.request("GET", "/metrics", &[], "").0, 404);
    let mut stream = std::net::TcpStream::connect(free).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let (status, body) = crate::server::answer(&mut stream);
    assert_eq!(status, 200);
    assert!(body.contains("kinsync_queue_depth"));
    let mut stream = std::net::TcpStream::connect(free).unwrap();
    std::io::Write::write_all(
        &mut stream,
        b"GET /api/admin/users HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .unwrap();
    assert_eq!(crate::server::answer(&mut stream).0, 404, "the other address has nothing else");
}
