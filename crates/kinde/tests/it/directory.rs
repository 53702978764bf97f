//! Organizations, members, roles, permissions and properties: what the client requests and how it reads the responses.

use axum::response::{IntoResponse as _, Response};
use kinde::Patch;
use kinde::management::{Client, Error, Page, Pages};
use serde_json::{Value, json};

use crate::api::{Api, Seen, api_error, api_error_in_object, ok, pass};

/// A tenant that returns this body for every path except the token's.
async fn answering(body: Value) -> (Api, Client) {
    answering_by(move |_| ok(&body)).await
}

async fn answering_by(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> (Api, Client) {
    let api = Api::start(move |seen| if seen.path == "/oauth2/token" { pass() } else { answer(seen) }).await;
    let client = api.client();
    (api, client)
}

async fn first<T>(mut pages: Pages<T>) -> Page<T> {
    pages.next().await.unwrap().expect("a first page")
}

fn text(value: &str) -> Patch<String> {
    Patch::Value(value.to_owned())
}

#[tokio::test]
async fn organizations_are_listed_and_read_with_all_fields() {
    let entry = json!({
        "code": "org_1", "name": "Acme", "handle": null, "is_default": false, "external_id": "a-1",
        "is_auto_membership_enabled": true, "new": 1,
    });
    let (api, client) = answering(json!({"organizations": [entry], "next_token": null})).await;
    let page = first(client.organizations()).await;
    let acme = &page.items[0];
    assert_eq!((acme.code.as_str(), &acme.name, &acme.handle), ("org_1", &text("Acme"), &Patch::Null));
    assert_eq!((&acme.is_default, &acme.external_id), (&Patch::Value(false), &text("a-1")));
    assert_eq!((&acme.is_suspended, acme.created_on, &acme.extra["new"]), (&Patch::Absent, None, &json!(1)));
    assert_eq!(api.seen("/api/v1/organizations")[0].query, "page_size=200");

    let body = json!({
        "code": "org_1", "name": "Acme", "created_on": "2025-04-01T13:04:20+11", "is_suspended": true,
        "is_allow_registrations": null,
    });
    let (api, client) = answering(body).await;
    let acme = client.organization("org_1").await.unwrap().value.unwrap();
    assert_eq!(acme.created_on.unwrap().to_string(), "2025-04-01T02:04:20Z");
    assert_eq!((acme.is_suspended, acme.is_allow_registrations), (Patch::Value(true), Patch::Null));
    assert_eq!(api.seen("/api/v1/organization")[0].query, "code=org_1");
    assert!(matches!(client.organization("org_2").await, Err(Error::WrongObject)));
}

#[tokio::test]
async fn members_have_keys_of_roles_and_may_have_null_fields() {
    let member = json!({
        "id": "kp_1", "email": "", "full_name": "A B", "last_name": null, "first_name": "A", "picture": null,
        "joined_on": "2025-02-12T18:02:23.614638+00:00", "last_accessed_on": null, "is_suspended": true,
        "roles": ["admin"],
    });
    let unknown = json!({"id": null, "roles": null});
    let (api, client) = answering(json!({"organization_users": [member, unknown], "next_token": ""})).await;
    let page = first(client.organization_users("org_1").unwrap()).await;
    let [ada, unknown] = &page.items[..] else { panic!("two members") };
    assert_eq!(
        (ada.id.as_deref(), &ada.email, &ada.roles),
        (Some("kp_1"), &Patch::Null, &Patch::Value(vec!["admin".to_owned()]))
    );
    assert_eq!(ada.joined_on.unwrap().to_string(), "2025-02-12T18:02:23.614638Z");
    assert_eq!((&ada.is_suspended, ada.last_accessed_on), (&Patch::Value(true), None));
    assert_eq!((&unknown.id, &unknown.roles, &unknown.is_suspended), (&None, &Patch::Null, &Patch::Absent));
    assert_eq!(format!("{ada:?}"), "OrganizationUser { id: Some(\"kp_1\"), .. }");
    assert_eq!(page.next_token, None);
    assert_eq!(api.seen("/api/v1/organizations/org_1/users")[0].query, "page_size=200");
}

#[tokio::test]
async fn roles_and_permissions_are_read_with_ids_and_keys() {
    let role =
        json!({"id": "r-1", "key": "admin", "name": "Admin", "description": null, "is_default_role": false});
    let (_api, client) = answering(json!({"roles": [role], "role": role, "next_token": null})).await;
    let listed = first(client.roles()).await.items.remove(0);
    assert_eq!((listed.id.as_str(), &listed.key, &listed.description), ("r-1", &text("admin"), &Patch::Null));
    assert_eq!(client.role("r-1").await.unwrap().value, Some(listed));
    assert!(matches!(client.role("r-2").await, Err(Error::WrongObject)));
    let of_user = client.user_roles("org_1", "kp_1").unwrap().all().await.unwrap().value;
    assert_eq!(of_user[0].key, text("admin"));

    let roles = json!([{"id": "r-1", "key": "admin"}]);
    let permission = json!({"id": "p-1", "key": "edit", "name": "Edit", "description": "d", "roles": roles});
    let (api, client) = answering(json!({"permissions": [permission], "next_token": null})).await;
    let granted = client.user_permissions("org_1", "kp_1").unwrap().all().await.unwrap().value.remove(0);
    assert_eq!((granted.permission.id.as_str(), &granted.permission.key), ("p-1", &text("edit")));
    assert_eq!(granted.roles.value().unwrap()[0].key.as_deref(), Some("admin"));
    let path = "/api/v1/organizations/org_1/users/kp_1/permissions";
    assert_eq!(api.seen(path)[0].query, "expand=roles", "the endpoint documents no page size");
    assert_eq!(first(client.permissions()).await.items[0].key, text("edit"));
    assert_eq!(first(client.role_permissions("r-1").unwrap()).await.items[0].id, "p-1");
    assert_eq!(api.seen("/api/v1/roles/r-1/permissions")[0].query, "page_size=200");

    let users = json!([{"id": "kp_1", "org_codes": ["org_1", "org_2"]}]);
    let (_api, client) = answering(json!({"users": users, "next_token": null})).await;
    assert_eq!(first(client.role_users("r-1").unwrap()).await.items[0].org_codes, ["org_1", "org_2"]);
    let (_api, client) = answering(json!({"users": [{"id": "kp_1"}]})).await;
    let incomplete = client.role_users("r-1").unwrap().next().await;
    assert!(matches!(incomplete, Err(Error::InvalidResponse(_))), "absent codes are not an empty list");
}

#[tokio::test]
async fn a_list_without_a_page_size_is_read_to_its_end() {
    let (_api, client) = answering_by(|seen| match &*seen.query {
        "" => ok(&json!({"roles": [{"id": "r-1"}], "next_token": "b"})),
        "next_token=b" => ok(&json!({"roles": [{"id": "r-2"}], "next_token": ""})),
        _ => api_error(400, "X", "x"),
    })
    .await;
    let roles = client.user_roles("org_1", "kp_1").unwrap().all().await.unwrap().value;
    assert_eq!(roles.iter().map(|role| role.id.as_str()).collect::<Vec<_>>(), ["r-1", "r-2"]);
}

#[tokio::test]
async fn the_search_continues_after_the_last_user_until_a_page_is_empty() {
    let user =
        |id: &str| json!({"id": id, "email": "a@example.com", "properties": {"tier": "gold", "old": null}});
    let (api, client) = answering_by(move |seen| match seen.query.split_once("starting_after=") {
        None => ok(&json!({"results": [user("kp_1"), user("kp_2")]})),
        Some((_, rest)) if rest.starts_with("kp_2") => ok(&json!({"results": [user("kp_3")]})),
        Some(_) => ok(&json!({"results": []})),
    })
    .await;
    let users = client.users_with_properties().all().await.unwrap().value;
    assert_eq!(users.iter().map(|user| user.id.as_str()).collect::<Vec<_>>(), ["kp_1", "kp_2", "kp_3"]);
    let properties = users[0].properties.value().unwrap();
    assert_eq!((&properties["tier"], &properties["old"]), (&text("gold"), &Patch::Null));
    assert_eq!(format!("{:?}", users[0]), "SearchedUser { id: \"kp_1\", .. }");
    let queries: Vec<_> = api.seen("/api/v1/search/users").into_iter().map(|seen| seen.query).collect();
    assert_eq!(queries[1], "page_size=200&starting_after=kp_2&query=*&expand=properties");

    let property = json!({"id": "prop_1", "name": "Tier", "description": null, "key": "tier", "value": null});
    let (_api, client) = answering(json!({"properties": [property], "next_token": null})).await;
    let properties = client.user_properties("kp_1").unwrap().all().await.unwrap().value;
    assert_eq!((properties[0].key.as_str(), &properties[0].value), ("tier", &Patch::Null));
    assert_eq!(format!("{:?}", properties[0]), "Property { key: \"tier\", .. }");
    let (_api, client) = answering(json!({"results": [{"id": "kp_1", "properties": {"tier": 1}}]})).await;
    let error = client.users_with_properties().next().await.unwrap_err();
    assert!(
        matches!(&error, Error::InvalidResponse(source) if source.to_string().contains("`results[0].properties.tier`"))
    );
}

#[tokio::test]
async fn an_unknown_object_is_absent_and_an_unknown_route_is_an_error() {
    for (status, code) in [(404, "ORGANIZATION_NOT_FOUND"), (400, "ORGANIZATION_INVALID"), (404, "X")] {
        let (_api, client) = answering_by(move |_| api_error(status, code, "x")).await;
        assert_eq!(client.organization("org_1").await.unwrap().value, None);
        assert!(
            client.organization_users("org_1").unwrap().next().await.is_err(),
            "a list is never empty by error"
        );
    }
    let (_api, client) = answering_by(|_| api_error_in_object(404, "ROLE_NOT_FOUND")).await;
    assert_eq!(client.role("r-1").await.unwrap().value, None);
    for answer in [|| api_error_in_object(404, "ROUTE_NOT_FOUND"), || api_error(400, "OTHER", "x")] {
        let (_api, client) = answering_by(move |_| answer()).await;
        assert!(matches!(client.role("r-1").await, Err(Error::UnexpectedStatus { .. })));
    }
    for id in ["", "..", "a\nb"] {
        assert!(matches!(client.organization_users(id), Err(Error::InvalidIdentifier)), "{id:?}");
        assert!(matches!(client.user_roles("org_1", id), Err(Error::InvalidIdentifier)), "{id:?}");
    }
}

#[tokio::test]
async fn a_missing_scope_is_named() {
    let (_api, client) = answering_by(|_| api_error(403, "TOKEN_MISSING_SCOPE", "")).await;
    let scope = |error: Error| match error {
        Error::MissingScope { scope } => scope,
        error => panic!("{error}"),
    };
    let named = [
        scope(client.organizations().next().await.unwrap_err()),
        scope(client.organization("o").await.unwrap_err()),
        scope(client.organization_users("o").unwrap().next().await.unwrap_err()),
        scope(client.user_roles("o", "u").unwrap().next().await.unwrap_err()),
        scope(client.user_permissions("o", "u").unwrap().next().await.unwrap_err()),
        scope(client.roles().next().await.unwrap_err()),
        scope(client.role("r").await.unwrap_err()),
        scope(client.role_permissions("r").unwrap().next().await.unwrap_err()),
        scope(client.role_users("r").unwrap().next().await.unwrap_err()),
        scope(client.permissions().next().await.unwrap_err()),
        scope(client.user_properties("u").unwrap().next().await.unwrap_err()),
        scope(client.users_with_properties().next().await.unwrap_err()),
    ];
    let expect = [
        "organizations",
        "organizations",
        "organization_users",
        "organization_user_roles",
        "organization_user_permissions",
        "roles",
        "roles",
        "role_permissions",
        "organization_user_roles",
        "permissions",
        "user_properties",
        "users",
    ];
    assert_eq!(named, expect.map(|scope| format!("read:{scope}")));
}

#[tokio::test]
async fn definitions_of_properties_continue_after_the_last_one() {
    let (api, client) = answering_by(|seen| {
        let body = if seen.query.contains("starting_after=prop_1") {
            json!({"properties": [], "has_more": false})
        } else {
            json!({"properties": [{"id": "prop_1", "key": "plan", "is_private": true, "description": null, "new": 1}]})
        };
        ok(&body)
    })
    .await;
    let defined = client.user_property_definitions().all().await.unwrap().value;
    assert_eq!((defined[0].key.as_str(), &defined[0].is_private), ("plan", &Patch::Value(true)));
    assert_eq!((&defined[0].description, &defined[0].is_kinde_property), (&Patch::Null, &Patch::Absent));
    let requests: Vec<String> =
        api.seen("/api/v1/properties").iter().map(|request| request.query.clone()).collect();
    assert_eq!(requests, ["page_size=200&context=usr", "page_size=200&starting_after=prop_1&context=usr"]);
    for refusal in [api_error(403, "NO", "x"), api_error_in_object(403, "NO")] {
        let body = axum::body::to_bytes(refusal.into_body(), 1000).await.unwrap();
        let answer = move |_: &Seen| (axum::http::StatusCode::FORBIDDEN, body.clone()).into_response();
        let (_api, client) = answering_by(answer).await;
        let error = client.user_property_definitions().all().await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { scope: "read:properties", .. }), "{error:?}");
    }
}
