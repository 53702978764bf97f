//! Every response of the Management API has the members and types of Kinde's `OpenAPI` document.
//!
//! The table in `document` describes the responses of the document for the routes of the emulator. An unknown member or a
//! wrong type is an error. The document requires no member; the emulator sends all members except those of `expand`
//! and, depending on the settings, absent texts.

use std::time::Duration;

use kinde_emulator::config::{Generated, Limits, Missing, Unknowns};
use kinde_emulator::{Config, Emulator, Fault, FaultKind, NewUser, Profile, TokenSpec};
use reqwest::Method;
use serde_json::{Value, json};

mod document;

use crate::receiver::client;
use document::{ANSWERS, CREATED, ERRORS, NOT_FOUND, USERS};

/// The shape of a value.
enum Shape {
    Text,
    /// A text, or `null` for an absent value, which Kinde sends although the document does not allow it.
    MissingText,
    Flag,
    Count,
    /// Any object.
    Open,
    /// A date in ISO 8601, which the document declares as a number.
    Time,
    OrNull(&'static Shape),
    /// A member that `expand` adds.
    Expanded(&'static Shape),
    List(&'static Shape),
    Object(&'static [(&'static str, Shape)]),
}

use Shape::{Count, Expanded, Flag, List, MissingText, Object, Open, OrNull, Text, Time};

/// Whether a path has the form of a pattern.
fn has_form(path: &str, pattern: &str) -> bool {
    let parts = pattern.split('/').zip(path.split('/'));
    pattern.split('/').count() == path.split('/').count()
        && parts.into_iter().all(|(pattern, part)| pattern.starts_with('{') || pattern == part)
}

/// The path of the first member with a different shape.
fn misfit(value: &Value, shape: &Shape, missing: Missing, path: &str) -> Option<String> {
    let fits = match shape {
        Text => value.is_string(),
        MissingText => value.is_string() || value.is_null() && missing == Missing::Null,
        Flag => value.is_boolean(),
        Count => value.is_i64() || value.is_u64(),
        Open => value.is_object(),
        Time => value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok()),
        Expanded(shape) => return misfit(value, shape, missing, path),
        OrNull(shape) => return if value.is_null() { None } else { misfit(value, shape, missing, path) },
        List(shape) => {
            let Some(items) = value.as_array() else { return Some(format!("{path} is no list")) };
            return items.iter().find_map(|item| misfit(item, shape, missing, &format!("{path}[]")));
        }
        Object(members) => {
            let Some(object) = value.as_object() else { return Some(format!("{path} is no object")) };
            let absent = members.iter().find(|(name, shape)| {
                let is_optional =
                    matches!((shape, missing), (Expanded(_), _) | (MissingText, Missing::Absent));
                !is_optional && !object.contains_key(*name)
            });
            if let Some((name, _)) = absent {
                return Some(format!("{path}.{name} is missing"));
            }
            return object.iter().find_map(|(name, value)| {
                let path = format!("{path}.{name}");
                match members.iter().find(|(known, _)| known == name) {
                    Some((_, shape)) => misfit(value, shape, missing, &path),
                    None => Some(format!("{path} is not in the document")),
                }
            });
        }
    };
    (!fits).then(|| format!("{path} is {value}"))
}

/// Fails if a response of the Management API does not have the shape of the document.
pub(crate) fn check(method: &str, path: &str, status: u16, body: &Value, missing: Missing) {
    let path = path.split('?').next().unwrap_or_default().trim_start_matches("/api/v1/");
    let answer = ANSWERS.iter().find(|(verb, known, _)| *verb == method && has_form(path, known));
    let success = match answer {
        Some((verb, known, _)) if CREATED.contains(&(*verb, *known)) => 201,
        _ => 200,
    };
    let shape = match (status, answer) {
        (_, Some((_, _, shape))) if status == success => shape,
        (404, None) => &NOT_FOUND,
        (400 | 403 | 404 | 429 | 500.., Some(_)) => &ERRORS,
        _ => panic!("{method} {path}: no answer {status} is known"),
    };
    let misfit = misfit(body, shape, missing, "answer");
    assert!(misfit.is_none(), "{method} {path} {status}: {}", misfit.unwrap_or_default());
}

/// A client that checks the shape of each response.
struct Checked {
    base: String,
    token: String,
    missing: Missing,
}

impl Checked {
    async fn send(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/api/v1/{path}", self.base);
        let request = client().request(method.clone(), url).bearer_auth(&self.token).json(body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.json().await.unwrap();
        check(method.as_str(), path, status, &body, self.missing);
        (status, body)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(Method::GET, path, &json!({})).await
    }
}

async fn tour(missing: Missing) {
    let unknowns = Unknowns { missing_in_api: missing, ..Unknowns::default() };
    let generated = Generated { users: 400, seed: 2, ..Generated::default() };
    let emulator = Emulator::start(Config { unknowns, generated, ..Config::default() }).await.unwrap();
    let token = emulator.m2m_token(&TokenSpec::default());
    let api = Checked { base: emulator.issuer().to_owned(), token, missing };
    let bare = emulator.create_user(NewUser::default()).unwrap();
    let expand = "expand=organizations,identities,billing";
    for path in ["users", &format!("users?page_size=500&{expand}"), "users?email=unknown@x.org"] {
        assert_eq!(api.get(path).await.0, 200);
    }
    for user in [&emulator.users()[0], &bare] {
        assert_eq!(api.get(&format!("user?id={}&{expand}", user.id)).await.0, 200);
    }
    let body = json!({
        "profile": {"given_name": "Ada"},
        "identities": [{"type": "email", "details": {"email": "ada@example.com"}}],
    });
    let made = api.send(Method::POST, "user", &body).await.1;
    for id in [made["id"].as_str().unwrap(), &bare.id] {
        let path = format!("user?id={id}");
        assert_eq!(api.send(Method::PATCH, &path, &json!({"is_suspended": true})).await.0, 200);
        assert_eq!(api.send(Method::DELETE, &path, &json!({})).await.0, 200);
    }
    webhooks(&api).await;
    directory(&api, &emulator.users()[0].id).await;
    let event = emulator.emit("user.deleted", json!({"user": {"id": "kp_1"}})).unwrap();
    assert_eq!(api.get(&format!("events/{}", event.id)).await.0, 200);
    assert_eq!(api.get("event_types").await.0, 200);
    errors(&emulator, &api, &body).await;
}

async fn webhooks(api: &Checked) {
    let body = json!({"endpoint": "http://127.0.0.1:9/x", "name": "mine", "event_types": ["user.created"]});
    let made = api.send(Method::POST, "webhooks", &body).await.1;
    assert_eq!(api.get("webhooks").await.0, 200);
    let path = format!("webhooks/{}", made["webhook"]["id"].as_str().unwrap());
    let described = json!({"description": "ours"});
    assert_eq!(api.send(Method::PATCH, &path, &described).await.0, 200);
    assert_eq!(api.get("webhooks").await.1["webhooks"][0]["description"], "ours");
    assert_eq!(api.send(Method::DELETE, &path, &json!({})).await.0, 200);
    assert_eq!(api.send(Method::DELETE, &path, &json!({})).await.0, 400);
    assert_eq!(api.send(Method::POST, "webhooks", &json!({"name": 1})).await.0, 400);
}

/// Every request for organizations, members, roles, permissions and properties.
async fn directory(api: &Checked, user: &str) {
    let none = json!({});
    let send = async |method, path: &str, body: &Value, status| {
        let (found, body) = api.send(method, path, body).await;
        assert_eq!(found, status, "{path}: {body}");
        body
    };
    let (get, post, patch) = (Method::GET, Method::POST, Method::PATCH);
    let made = send(post.clone(), "organization", &json!({"name": "Acme"}), 200).await;
    let code = made["organization"]["code"].as_str().unwrap();
    let of_code = format!("organization/{code}");
    send(patch.clone(), &of_code, &json!({"handle": "acme", "is_suspended": false}), 200).await;
    send(get.clone(), &format!("organization?code={code}"), &none, 200).await;
    send(get.clone(), "organizations?page_size=1", &none, 200).await;
    let role = send(post.clone(), "roles", &json!({"key": "admin", "name": "Admin"}), 201).await;
    let role = role["role"]["id"].as_str().unwrap();
    send(post.clone(), "roles", &json!({"key": "admin", "name": "Admin"}), 400).await;
    let of_role = format!("roles/{role}");
    send(patch.clone(), &of_role, &json!({"key": "owner", "name": "Owner", "description": "all"}), 201).await;
    send(get.clone(), &of_role, &none, 200).await;
    send(post.clone(), "permissions", &json!({"key": "edit", "name": "Edit"}), 201).await;
    let listed = send(get.clone(), "permissions", &none, 200).await;
    let permission = listed["permissions"][0]["id"].as_str().unwrap();
    let of_permission = format!("permissions/{permission}");
    send(patch.clone(), &of_permission, &json!({"name": "Edits"}), 200).await;
    let change = json!({"permissions": [{"id": permission}]});
    send(patch.clone(), &format!("{of_role}/permissions"), &change, 200).await;
    send(get.clone(), &format!("{of_role}/permissions"), &none, 200).await;

    let members = format!("organizations/{code}/users");
    let member = json!({"users": [{"id": user, "roles": ["owner"]}]});
    send(post.clone(), &members, &member, 200).await;
    send(patch.clone(), &members, &json!({"users": [{"id": user, "roles": []}]}), 200).await;
    let one = format!("{members}/{user}");
    send(post.clone(), &format!("{one}/roles"), &json!({"role_id": role}), 200).await;
    send(post.clone(), &format!("{one}/permissions"), &json!({"permission_id": permission}), 200).await;
    for path in [&members, &format!("{one}/roles"), &format!("{one}/permissions?expand=roles")] {
        send(get.clone(), path, &none, 200).await;
    }
    let listed = send(get.clone(), &format!("{of_role}/users"), &none, 200).await;
    assert_eq!(listed["users"], json!([{"id": user, "org_codes": [code]}]));
    send(get.clone(), &format!("organizations/{code}/roles/{role}/users"), &none, 200).await;
    let property = json!({
        "key": "tier", "name": "Tier", "type": "single_line_text", "context": "usr", "is_private": true,
        "category_id": "cat_1", "description": "The tier",
    });
    send(post.clone(), "properties", &property, 201).await;
    let defined = send(get.clone(), "properties?context=usr", &none, 200).await;
    assert_eq!(
        (&defined["properties"][0]["key"], &defined["properties"][0]["is_private"]),
        (&json!("tier"), &json!(true))
    );
    let properties = format!("users/{user}/properties");
    send(patch.clone(), &properties, &json!({"properties": {"tier": "gold", "seats": 3}}), 200).await;
    send(Method::PUT, &format!("{properties}/tier?value=silver"), &none, 200).await;
    send(get.clone(), &properties, &none, 200).await;
    let found =
        send(get, "search/users?query=*&expand=properties,organizations,identities", &none, 200).await;
    assert_eq!(found["results"][0]["properties"], json!({"seats": "3", "tier": "silver"}));
    for (path, again) in [
        (&format!("{one}/roles/{role}"), 200),
        (&format!("{one}/permissions/{permission}"), 200),
        (&one, 400),
        (&format!("{of_role}/permissions/{permission}"), 200),
        (&of_role, 400),
        (&of_permission, 400),
        (&of_code, 400),
    ] {
        send(Method::DELETE, path, &none, 200).await;
        send(Method::DELETE, path, &none, again).await;
    }
}

async fn errors(emulator: &Emulator, api: &Checked, taken: &Value) {
    api.send(Method::POST, "user", taken).await;
    for (method, path, body) in [
        (Method::POST, "user", taken),
        (Method::PATCH, "user", &json!({})),
        (Method::GET, "user?id=kp_nobody", &json!({})),
        (Method::GET, "users?page_size=501", &json!({})),
        (Method::GET, "events/event_1", &json!({})),
    ] {
        assert_eq!(api.send(method, path, body).await.0, 400, "{path}");
    }
    assert_eq!(api.get("nothing").await.0, 404);
    assert_eq!(api.send(Method::PUT, "unknown/route", &json!({})).await.0, 404);
    let weak = TokenSpec { scopes: Some(Vec::new()), ..TokenSpec::default() };
    let weak = Checked { base: api.base.clone(), token: emulator.m2m_token(&weak), missing: api.missing };
    let forbidden = ANSWERS.iter().filter(|(method, ..)| *method == "GET").map(|(_, path, _)| *path);
    for path in forbidden {
        assert_eq!(weak.get(path).await.0, 403, "{path}");
    }
    for (kind, status) in [
        (FaultKind::UserNotFound { status: 404, id: None }, 404),
        (FaultKind::RateLimit { reset: 1 }, 429),
        (FaultKind::Status { status: 503 }, 503),
    ] {
        emulator.clear_faults();
        emulator.set_fault(Fault::always(kind));
        assert_eq!(api.get("user?id=x").await.0, status);
    }
    emulator.clear_faults();
    emulator.set_fault(Fault::times(FaultKind::EmptyList, 1));
    api.get("users").await;
    emulator.set_fault(Fault::times(FaultKind::EmptyPage, 1));
    api.get("users").await;
    emulator.set_limits(Limits { requests: 1, window: Duration::from_mins(1), concurrency: 0 });
    assert_eq!([api.get("users").await.0, api.get("users").await.0], [200, 429]);
    let removed = emulator.users().len();
    emulator.delete_user(&emulator.users()[0].id, Profile::Keep).unwrap();
    assert_eq!(emulator.user_count(), removed - 1);
}

#[tokio::test]
async fn every_response_has_the_shape_of_the_document() {
    for missing in [Missing::Absent, Missing::Empty, Missing::Null] {
        tour(missing).await;
    }
}

#[test]
fn a_wrong_shape_is_detected() {
    let whole = json!({
        "id": "kp_1",
        "is_suspended": false,
        "total_sign_ins": 0,
        "failed_sign_ins": null,
        "last_signed_in": null,
        "created_on": "2026-01-01T00:00:00.000000+00:00",
        "last_organization_sign_ins": null,
    });
    let answer = |users: Value| json!({"code": "OK", "message": "Success", "users": users});
    let with = |name: &str, value: Value| {
        let mut user = whole.clone();
        user[name] = value;
        answer(json!([user]))
    };
    let found = |value: &Value, missing| misfit(value, &USERS, missing, "answer").unwrap_or_default();
    let misfits = [
        (json!({}), "answer.code is missing"),
        (answer(json!([{}])), "answer.users[].id is missing"),
        (with("id", json!(1)), "answer.users[].id is 1"),
        (with("updated_on", json!("x")), "answer.users[].updated_on is not in the document"),
        (with("email", Value::Null), "answer.users[].email is null"),
        (with("billing", json!({})), "answer.users[].billing.customer_id is missing"),
        (answer(json!({})), "answer.users is no list"),
    ];
    for (value, place) in misfits {
        assert_eq!(found(&value, Missing::Absent), place);
    }
    assert_eq!(found(&answer(json!([whole])), Missing::Absent), "", "texts may be absent here");
    let left_out = found(&answer(json!([whole])), Missing::Null);
    assert!(left_out.ends_with(" is missing"), "and not here: {left_out}");
    assert!(misfit(&json!({"errors": {"code": "A"}}), &ERRORS, Missing::Null, "answer").is_some());
}
