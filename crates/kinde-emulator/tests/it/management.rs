//! The Management API: shapes, pages and errors.

use std::collections::BTreeSet;

use kinde_emulator::config::{Missing, Unknowns};
use kinde_emulator::{Config, Emulator, NewUser, Profile, TokenSpec};
use reqwest::Method;
use serde_json::{Value, json};

use crate::receiver::{client, get, start};
use crate::shapes::check;

struct Api {
    base: String,
    token: String,
}

impl Api {
    fn new(emulator: &Emulator) -> Self {
        Self { base: emulator.issuer().to_owned(), token: emulator.m2m_token(&TokenSpec::default()) }
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = get(&format!("{}{path}", self.base), Some(&self.token)).await;
        check("GET", path, status, &body, Missing::Null);
        (status, body)
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}{path}", self.base);
        let request = client().request(method.clone(), url).bearer_auth(&self.token).json(body);
        let response = request.send().await.unwrap();
        let (status, body) = (response.status().as_u16(), response.json().await.unwrap());
        check(method.as_str(), path, status, &body, Missing::Null);
        (status, body)
    }
}

async fn tenant_of(count: usize, config: Config) -> (Emulator, Api) {
    let emulator = Emulator::start(config).await.unwrap();
    for number in 0..count {
        emulator.import_user(NewUser::named(&format!("user{number}@example.com"), "User", "N")).unwrap();
    }
    let api = Api::new(&emulator);
    (emulator, api)
}

#[tokio::test]
async fn the_pages_contain_every_user_once() {
    let (emulator, api) = tenant_of(250, Config::default()).await;
    let (mut seen, mut path, mut pages) = (Vec::new(), "/api/v1/users?page_size=100".to_owned(), 0);
    loop {
        let (status, page) = api.get(&path).await;
        assert_eq!((status, &page["code"]), (200, &json!("OK")));
        seen.extend(page["users"].as_array().unwrap().iter().map(|user| user["id"].to_string()));
        pages += 1;
        let Some(next) = page["next_token"].as_str() else { break };
        path = format!("/api/v1/users?page_size=100&next_token={next}");
    }
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!((pages, seen.len(), unique.len()), (3, 250, 250));
    assert_eq!(emulator.requests("users"), 3);
    assert_eq!(api.get("/api/v1/users").await.1["users"].as_array().unwrap().len(), 10);
    let (status, refusal) = api.get("/api/v1/users?page_size=501").await;
    assert_eq!((status, &refusal["errors"][0]["code"]), (400, &json!("PAGE_SIZE_LIMIT_EXCEEDED")));
}

#[tokio::test]
async fn a_deletion_between_pages_skips_no_other_user() {
    let (emulator, api) = tenant_of(30, Config::default()).await;
    let first = api.get("/api/v1/users?page_size=10").await.1;
    emulator.delete_user(first["users"][0]["id"].as_str().unwrap(), Profile::Remove).unwrap();
    let next = first["next_token"].as_str().unwrap();
    let second = api.get(&format!("/api/v1/users?page_size=10&next_token={next}")).await.1;
    assert_eq!(second["users"][0]["email"], "user10@example.com");
}

#[tokio::test]
async fn a_listed_user_has_the_fields_of_the_openapi_document() {
    let (emulator, api) = tenant_of(1, Config::default()).await;
    let id = emulator.users()[0].id.clone();
    let names = |user: &Value| user.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let common = ["created_on", "email", "failed_sign_ins", "first_name", "id", "is_suspended", "last_name"];
    let listed = &api.get("/api/v1/users").await.1["users"][0];
    let rest = ["last_organization_sign_ins", "last_signed_in", "phone", "picture", "provided_id"];
    let last = ["total_sign_ins", "username"];
    assert_eq!(names(listed), [common.as_slice(), &rest, &last].concat());
    assert_eq!(listed["last_signed_in"], Value::Null);
    let created = listed["created_on"].as_str().unwrap();
    assert!(created.ends_with("+00:00") && created.len() == "2025-02-12T18:02:23.614638+00:00".len());

    emulator.sign_in(&id).unwrap();
    let path = format!("/api/v1/user?id={id}&expand=organizations,identities,billing");
    let (status, single) = api.get(&path).await;
    assert_eq!((status, &single["preferred_email"]), (200, &json!("user0@example.com")));
    assert!(single.get("email").is_none() && single.get("code").is_none());
    assert_eq!(
        (&single["total_sign_ins"], &single["organizations"]),
        (&json!(1), &json!(["org_590d7f1a86a"]))
    );
    assert_eq!(single["identities"][0]["type"], "email");
    assert!(single["billing"]["customer_id"].is_string() && single["last_signed_in"].is_string());
}

#[tokio::test]
async fn the_filters_find_users() {
    let (emulator, api) = tenant_of(20, Config::default()).await;
    let users = emulator.users();
    let count = async |query: String| {
        api.get(&format!("/api/v1/users?{query}")).await.1["users"].as_array().unwrap().len()
    };
    assert_eq!(count(format!("user_id={},{}", users[3].id, users[15].id)).await, 2);
    assert_eq!(count("email=USER7@example.com".to_owned()).await, 1);
    assert_eq!(count("has_organization=false".to_owned()).await, 0);
    emulator.sign_in(&users[4].id).unwrap();
    assert_eq!(count("active_since=2024-01-01T00:00:00Z".to_owned()).await, 1);
    assert_eq!(api.get("/api/v1/users?next_token=nonsense").await.0, 400);
}

#[tokio::test]
async fn users_are_created_changed_and_deleted_with_events_from_the_api() {
    let (emulator, receiver) = start(Config::default()).await;
    let api = Api::new(&emulator);
    let body = json!({
        "profile": {"given_name": "Ada", "family_name": "Lovelace"},
        "identities": [{"type": "email", "is_verified": true, "details": {"email": "ada@example.com"}}],
    });
    let (status, made) = api.send(Method::POST, "/api/v1/user", &body).await;
    let identities = json!([{"type": "email", "result": {"created": true}}]);
    assert_eq!((status, &made["created"], &made["identities"]), (200, &json!(true), &identities));
    assert_eq!(api.send(Method::POST, "/api/v1/user", &body).await.0, 400, "the email is in use");

    let path = format!("/api/v1/user?id={}", made["id"].as_str().unwrap());
    let (status, changed) = api.send(Method::PATCH, &path, &json!({"is_suspended": true})).await;
    assert_eq!(
        (status, &changed["is_suspended"], &changed["given_name"]),
        (200, &json!(true), &json!("Ada"))
    );
    let (status, deleted) = api.send(Method::DELETE, &path, &json!({})).await;
    assert_eq!((status, &deleted["code"]), (200, &json!("USER_DELETED")));
    let payloads: Vec<Value> =
        receiver.wait_for(3).await.iter().map(super::receiver::Arrival::payload).collect();
    assert!(payloads.iter().all(|payload| payload["source"] == "api"));

    let event_id = payloads[0]["event_id"].as_str().unwrap();
    let (status, event) = api.get(&format!("/api/v1/events/{event_id}")).await;
    assert_eq!((status, &event["event"]["data"]), (200, &payloads[0]["data"]));
    assert_eq!(event["event"]["timestamp"], payloads[0]["timestamp"]);
}

#[tokio::test]
async fn an_unknown_or_deleted_user_has_the_configured_response() {
    for status in [400, 404] {
        let unknowns = Unknowns { unknown_user_status: status, ..Unknowns::default() };
        let (emulator, api) = tenant_of(1, Config { unknowns, ..Config::default() }).await;
        let id = emulator.users()[0].id.clone();
        emulator.delete_user(&id, Profile::Keep).unwrap();
        let (found, refusal) = api.get(&format!("/api/v1/user?id={id}")).await;
        assert_eq!(found, status);
        assert!(refusal["errors"][0]["code"].is_string());
        assert_eq!(api.get("/api/v1/users").await.1["users"], json!([]));
    }
    let unknowns = Unknowns { list_includes_deleted: true, ..Unknowns::default() };
    let (emulator, api) = tenant_of(2, Config { unknowns, ..Config::default() }).await;
    let users = emulator.users();
    emulator.delete_user(&users[0].id, Profile::Keep).unwrap();
    emulator.delete_user(&users[1].id, Profile::Remove).unwrap();
    assert_eq!(api.get("/api/v1/users").await.1["users"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn webhooks_are_managed_without_showing_whether_they_are_disabled() {
    let (emulator, api) = tenant_of(0, Config::default()).await;
    let body = json!({"endpoint": "http://127.0.0.1:9/x", "name": "mine", "event_types": ["user.created"]});
    let (status, made) = api.send(Method::POST, "/api/v1/webhooks", &body).await;
    assert_eq!((status, &made["webhook"]["endpoint"]), (200, &json!("http://127.0.0.1:9/x")));
    let id = made["webhook"]["id"].as_str().unwrap();
    emulator.disable_webhook(id).unwrap();
    let path = format!("/api/v1/webhooks/{id}");
    assert_eq!(api.send(Method::PATCH, &path, &json!({"name": "ours"})).await.1["webhook"]["id"], id);
    let listed = api.get("/api/v1/webhooks").await.1["webhooks"][0].clone();
    let names: Vec<&String> = listed.as_object().unwrap().keys().collect();
    assert_eq!(names, ["created_on", "description", "endpoint", "event_types", "id", "name"]);
    assert_eq!((&listed["name"], &listed["event_types"]), (&json!("ours"), &json!(["user.created"])));
    assert_eq!(api.send(Method::DELETE, &path, &json!({})).await.0, 200);
    assert_eq!(api.send(Method::DELETE, &path, &json!({})).await.0, 400);
    let types = api.get("/api/v1/event_types").await.1;
    assert!(types["event_types"].as_array().unwrap().iter().any(|kind| kind["code"] == "user.deleted"));
}

#[tokio::test]
async fn an_invalid_token_is_a_403_and_an_unknown_route_a_404() {
    let (emulator, api) = tenant_of(1, Config::default()).await;
    let user = emulator.users()[0].id.clone();
    let url = format!("{}/api/v1/users", emulator.issuer());
    let scopes = TokenSpec { scopes: Some(vec!["read:webhooks".to_owned()]), ..TokenSpec::default() };
    let audience = TokenSpec { audience: Some(vec!["https://other".to_owned()]), ..TokenSpec::default() };
    let refused = [
        emulator.m2m_token(&scopes),
        emulator.m2m_token(&audience),
        emulator.access_token(&user, &TokenSpec::default()).unwrap(),
        "nonsense".to_owned(),
    ];
    for token in &refused {
        let (status, refusal) = get(&url, Some(token)).await;
        assert_eq!(status, 403);
        assert!(refusal["errors"][0]["message"].is_string());
    }
    assert_eq!(get(&url, None).await.0, 403);
    for path in ["/api/v1/user?id=x&is_delete_profile=maybe", "/api/v1/webhooks"] {
        let method = if path.contains("user") { Method::DELETE } else { Method::POST };
        let (status, refusal) = api.send(method, path, &json!({"name": 1})).await;
        assert!(status == 400 && refusal["errors"][0]["code"].is_string(), "{path}");
    }
    let (status, refusal) = api.get("/api/v1/nothing").await;
    assert_eq!((status, &refusal["errors"]["code"]), (404, &json!("ROUTE_NOT_FOUND")));
}
