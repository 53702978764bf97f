use serde_json::json;

use super::*;
use crate::patch::Patch;

const OBSERVED: &str = r#"{"data":{"user":{"email":"someone@example.com","first_name":"K","id":"kp_0",
  "is_password_reset_requested":false,"is_suspended":true,"last_name":"","organizations":[
  {"code":"org_1","permissions":null,"roles":[{"id":"r1","key":"admin","new":1}]}],"phone":null,"username":null}},
  "event_id":"event_0190932d7592c68bda50d62b2ffa8cbb","source":"user",
  "timestamp":"2024-07-09T02:29:08.242969+10:00","type":"user.created"}"#;

fn decode_value(value: &Value) -> Result<Event, Error> {
    decode(&serde_json::to_vec(value).unwrap())
}

fn user_of(event: Event) -> User {
    match event.body {
        Body::UserCreated(user) | Body::UserUpdated(user) => user,
        other => panic!("no user in {other:?}"),
    }
}

#[test]
fn a_user_created_event_of_kinde_is_decoded_completely() {
    let event = decode(OBSERVED.as_bytes()).unwrap();
    assert_eq!(event.id.as_deref(), Some("event_0190932d7592c68bda50d62b2ffa8cbb"));
    assert_eq!(event.time.unwrap().to_string(), "2024-07-08T16:29:08.242969Z");
    assert_eq!(event.source.as_deref(), Some("user"));
    assert!(event.extra.is_empty());
    let user = user_of(event);
    assert_eq!(user.id, "kp_0");
    assert_eq!(user.email, Patch::Value("someone@example.com".to_owned()));
    assert_eq!(user.last_name, Patch::Value(String::new()));
    assert_eq!((user.phone, user.username), (Patch::Null, Patch::Null));
    assert_eq!(user.is_suspended, Patch::Value(true));
    let organizations = user.organizations.into_value().unwrap();
    assert_eq!(organizations[0].code, "org_1");
    assert_eq!(organizations[0].permissions, Patch::Null);
    let role = &organizations[0].roles.value().unwrap()[0];
    assert_eq!((role.id.as_deref(), role.key.as_deref()), (Some("r1"), Some("admin")));
    assert_eq!(role.extra["new"], 1);
}

#[test]
fn both_shapes_are_decoded_to_the_same_event() {
    let nested = json!({"type": "user.updated", "data": {"user": {"id": "kp_1", "email": "a@example.com"}}});
    let flat = json!({"type": "user.updated", "user": {"id": "kp_1", "email": "a@example.com"}});
    assert_eq!(decode_value(&nested).unwrap(), decode_value(&flat).unwrap());
}

#[test]
fn absent_null_and_empty_are_distinguished() {
    for (email, expect) in [
        (json!({}), Patch::Absent),
        (json!({"email": null}), Patch::Null),
        (json!({"email": ""}), Patch::Null),
        (json!({"email": "$$NOW"}), Patch::Value("$$NOW".to_owned())),
    ] {
        let mut user = email;
        user["id"] = json!("kp_1");
        let event = decode_value(&json!({"type": "user.created", "user": user})).unwrap();
        assert_eq!(user_of(event).email, expect);
    }
}

#[test]
fn event_timestamp_takes_precedence_over_timestamp() {
    let mut event =
        json!({"type": "x", "timestamp": "2024-05-01T00:00:01Z", "event_timestamp": "2024-05-01T00:00:00Z"});
    assert_eq!(decode_value(&event).unwrap().time.unwrap().to_string(), "2024-05-01T00:00:00Z");
    event["event_timestamp"] = Value::Null;
    assert_eq!(decode_value(&event).unwrap().time.unwrap().to_string(), "2024-05-01T00:00:01Z");
}

#[test]
fn organizations_without_a_code_are_skipped() {
    let organizations = json!([{}, {"code": null}, {"code": ""}, null,
        {"code": "org_1", "roles": ["admin", {"key": "owner"}], "kept": true}]);
    let event = json!({"type": "user.created", "user": {"id": "kp_1", "organizations": organizations}});
    let organizations = user_of(decode_value(&event).unwrap()).organizations.into_value().unwrap();
    assert_eq!(organizations.len(), 1);
    let keys: Vec<_> =
        organizations[0].roles.value().into_iter().flatten().map(|role| role.key.as_deref()).collect();
    assert_eq!(keys, [Some("admin"), Some("owner")]);
    assert_eq!(organizations[0].extra["kept"], true);
}

#[test]
fn unknown_fields_and_types_are_kept() {
    let event = decode_value(
        &json!({"type": "user.deleted", "v": 2, "data": {"user": {"id": "kp_1", "why": "x"}, "by": "y"}}),
    );
    let event = event.unwrap();
    assert_eq!(event.body, Body::UserDeleted { id: "kp_1".to_owned() });
    assert_eq!(Value::Object(event.extra), json!({"v": 2, "data": {"user": {"why": "x"}, "by": "y"}}));

    let event = decode_value(&json!({"type": "invoice.created", "data": [1]})).unwrap();
    assert_eq!(event.body, Body::Unknown(json!([1])));
    let event = decode_value(&json!({"type": "invoice.created", "number": 7})).unwrap();
    assert_eq!(event.body, Body::Unknown(json!({"number": 7})));
    let event =
        decode_value(&json!({"type": "customer.plan_changed", "data": {"org_code": "org_1"}})).unwrap();
    assert_eq!(event.body, Body::Customer { data: json!({"org_code": "org_1"}) });
    let event = decode_value(&json!({"type": "passkey.added", "data": {}})).unwrap();
    assert_eq!(event.body, Body::Passkey { data: json!({}) });
}

#[test]
fn every_published_type_is_decoded() {
    for (event_type, subject, id) in [
        ("user.created", "user", "id"),
        ("user.updated", "user", "id"),
        ("user.deleted", "user", "id"),
        ("user.authenticated", "user", "id"),
        ("user.authentication_failed", "user", "id"),
        ("access_request.created", "access_request", "user_id"),
        ("subscriber.created", "subscriber", "id"),
        ("organization.created", "organization", "code"),
        ("organization.updated", "organization", "code"),
        ("organization.deleted", "organization", "code"),
        ("role.created", "role", "id"),
        ("role.updated", "role", "id"),
        ("role.deleted", "role", "id"),
        ("permission.created", "permission", "id"),
        ("permission.updated", "permission", "id"),
        ("permission.deleted", "permission", "id"),
    ] {
        let event = decode_value(&json!({"type": event_type, "data": {subject: {id: "x"}}})).unwrap();
        assert!(!matches!(event.body, Body::Unknown(_)), "{event_type}");
        assert!(event.extra.is_empty(), "{event_type}");
        let without = decode_value(&json!({"type": event_type, "data": {}}));
        assert!(matches!(without, Err(Error::MissingField { .. })), "{event_type}");
    }
}

#[test]
fn a_sign_in_contains_the_address_of_the_client() {
    let event =
        json!({"type": "user.authenticated", "data": {"user": {"id": "kp_1"}}, "ip_address": "192.0.2.1"});
    let body = decode_value(&event).unwrap().body;
    assert_eq!(body.user_id(), Some("kp_1"));
    assert!(matches!(body, Body::UserAuthenticated { ip_address: Some(ip), .. } if ip == "192.0.2.1"));
}

#[test]
fn errors_name_the_field_and_the_problem() {
    let long = "x".repeat(257);
    for (event, message) in [
        (json!({}), "`type` is missing"),
        (json!({"type": 1}), "`type` is a number, not a string"),
        (json!({"type": ""}), "`type` is not an identifier: 1 to 256 bytes without control characters"),
        (json!({"type": "user.created"}), "`user` is missing"),
        (json!({"type": "user.created", "data": []}), "`data` is a list, not an object"),
        (json!({"type": "user.created", "data": {"user": {}}}), "`data.user.id` is missing"),
        (
            json!({"type": "user.created", "data": {"user": {"id": 7}}}),
            "`data.user.id` is a number, not a string",
        ),
        (json!({"type": "user.created", "user": "kp_1"}), "`user` is a string, not an object"),
        (
            json!({"type": "user.deleted", "user": {"id": "a\u{0}b"}}),
            "`user.id` is not an identifier: 1 to 256 bytes without control characters",
        ),
        (
            json!({"type": "user.deleted", "user": {"id": long}}),
            "`user.id` is not an identifier: 1 to 256 bytes without control characters",
        ),
        (
            json!({"type": "user.created", "user": {"id": "a", "is_suspended": "no"}}),
            "`user.is_suspended` is a string, not true or false",
        ),
        (
            json!({"type": "user.created", "user": {"id": "a", "email": {"$gt": ""}}}),
            "`user.email` is an object, not a string",
        ),
        (
            json!({"type": "user.created", "user": {"id": "a", "organizations": [{"code": "o", "roles": [1]}]}}),
            "`user.organizations[0].roles[0]` is a number, not an object or a string",
        ),
        (json!({"type": "x", "timestamp": "yesterday"}), "`timestamp` is not a time"),
        (
            json!({"type": "x", "event_id": "\n"}),
            "`event_id` is not an identifier: 1 to 256 bytes without control characters",
        ),
    ] {
        assert_eq!(decode_value(&event).unwrap_err().to_string(), message, "{event}");
    }
    let twice = br#"{"type":"user.deleted","user":{"id":"a","id":"b"}}"#;
    assert!(matches!(decode(twice), Err(Error::DuplicateMember { member }) if member == "id"));
    for payload in [b"".as_slice(), b"[]", b"\xff", b"nope", b"\xef\xbb\xbf{}"] {
        assert!(matches!(decode(payload), Err(Error::NotAnObject(_))));
    }
}

#[test]
fn the_list_of_decoded_members_is_complete() {
    let mut user: Value = User::MEMBERS.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    user["id"] = json!("kp_1");
    user["other"] = json!(1);
    let user = user_of(decode_value(&json!({ "type": "user.updated", "data": { "user": user } })).unwrap());
    assert_eq!(user.extra.keys().collect::<Vec<_>>(), ["other"]);
}
