//! Roles and permissions in the organization of the token: from the store, fresh, and refused where they are not known.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kinde_emulator::{Emulator, NewUser, TokenSpec};
use kinsync_core::{Entry, Fact, Field, Organization, Profile, Value, Version, What};
use kinsync_engine::internal::{
    directory::{self, Change, Kind},
    store::Store,
};
use kinsync_testing::mongo::TestMongo;
use kinsync_tower::{
    CurrentUser, KinsyncLayer, Requirement,
    authenticator::{Config, UnknownRoles},
    require::RequireLayer,
    require_any_permission, require_any_role, require_permission, require_role,
};
use serde_json::json;
use tokio::time::Instant;
use tower::{BoxError, Layer, ServiceExt, service_fn};

use crate::process::{DEADLINE, Process, embedded, kinde, observe, on_mongo, refused_within_a_second, until};

const ORG: &str = "org_acme";

/// A token for [`ORG`] that claims the role `admin` and the permission `claimed`.
fn token(kinde: &Emulator) -> (String, String) {
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let claims = json!({"org_code": ORG, "roles": [{"id": "r-1", "key": "admin", "name": "Admin"}], "permissions": ["claimed"]});
    let claims = claims.as_object().unwrap().clone();
    let token = kinde.access_token(&ada, &TokenSpec { claims, ..TokenSpec::default() }).unwrap();
    (ada, token)
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn member(roles: &[&str], permissions: &[&str]) -> Organization {
    Organization { roles: Some(keys(roles)), permissions: Some(keys(permissions)), ..Organization::new(ORG) }
}

async fn set(store: &Arc<dyn Store>, user: &str, organizations: Vec<Organization>) {
    let profile = Profile::new().with(Field::Organizations, Value::Organizations(organizations));
    observe(store, user, What::Fields(profile)).await;
}

/// Stores that a role gives no permission: otherwise the permissions of its members are unknown.
async fn gives_nothing(store: &Arc<dyn Store>, role: &str) {
    gives(store, role, &[]).await;
}

async fn gives(store: &Arc<dyn Store>, role: &str, permissions: &[&str]) {
    let entry =
        Entry::observed([(Fact::Permissions, Value::Codes(keys(permissions)))], &Version::provisional());
    let listed = Change { kind: Kind::Role, id: role.to_owned(), entry };
    directory::observe(&**store, vec![listed]).await.unwrap();
}

/// Sends a request through both layers; returns the status, the last part of the type and the detail of a problem.
async fn send(process: &Process, layers: &[RequireLayer], token: &str) -> (StatusCode, String, String) {
    let service =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())));
    let mut service = tower::util::BoxCloneService::new(
        service.map_response(|answer| answer.map(|body| body.map_err(BoxError::from).boxed())),
    );
    for layer in layers {
        let inner = layer.layer(service).map_response(|answer| answer.map(BodyExt::boxed));
        service = tower::util::BoxCloneService::new(inner);
    }
    let request = Request::get("/").header("authorization", format!("Bearer {token}")).body(()).unwrap();
    let answer =
        KinsyncLayer::new(process.authenticator.clone()).layer(service).oneshot(request).await.unwrap();
    let (head, body) = answer.into_parts();
    let body: serde_json::Value =
        serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let kind = text("type").rsplit(':').next().unwrap_or_default().to_owned();
    (head.status, format!("{kind} {}", text("reason")).trim().to_owned(), text("detail"))
}

async fn check(process: &Process, layers: &[RequireLayer], token: &str, expect: &str) {
    let (status, found, detail) = send(process, layers, token).await;
    let is_ok = if expect.is_empty() { StatusCode::OK } else { StatusCode::FORBIDDEN };
    assert_eq!((status, found.as_str()), (is_ok, expect), "{layers:?}: {detail}");
}

/// Each request loads the user.
fn fresh(unknown_roles: UnknownRoles) -> Config {
    Config { stale_after: Duration::ZERO, unknown_roles, ..Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_needs_the_roles_and_permissions_of_the_stored_membership() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, fresh(UnknownRoles::UseToken)).await;
    let (ada, token) = token(&kinde);
    gives_nothing(&store, "editor").await;
    let elsewhere = Organization { roles: Some(keys(&["owner"])), ..Organization::new("org_other") };
    set(&store, &ada, vec![elsewhere, member(&["editor"], &["edit:things", "read:things"])]).await;
    let missing_role = "not-permitted missing_role";
    for (layers, expect) in [
        (vec![require_role("editor")], ""),
        (vec![require_role("admin")], missing_role),
        (vec![require_role("owner")], missing_role),
        (vec![require_role("edit")], missing_role),
        (vec![require_any_role(["admin", "editor"])], ""),
        (vec![require_any_role([""; 0])], missing_role),
        (vec![require_permission("edit:things")], ""),
        (vec![require_permission("claimed")], "not-permitted missing_permission"),
        (vec![require_any_permission(["delete:things", "read:things"])], ""),
        (vec![require_role("editor"), require_permission("read:things")], ""),
        (vec![require_role("admin"), require_permission("read:things")], missing_role),
        (vec![require_permission("read:things"), require_role("admin")], missing_role),
    ] {
        check(&process, &layers, &token, expect).await;
    }
    let (_, _, detail) = send(&process, &[require_any_role(["admin", "owner"])], &token).await;
    assert!(detail.contains("one of the roles `admin`, `owner`"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_active_membership_in_the_organization_of_the_token_no_role_counts() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, fresh(UnknownRoles::UseToken)).await;
    let (ada, token) = token(&kinde);
    let layers = [require_role("admin")];
    let suspended = Organization { is_suspended: Some(true), ..member(&["admin"], &[]) };
    for (organizations, expect) in [
        (vec![suspended], "not-permitted suspended_in_organization"),
        (vec![Organization { is_suspended: Some(false), ..member(&["admin"], &[]) }], ""),
        (
            vec![Organization { roles: Some(keys(&["admin"])), ..Organization::new("org_other") }],
            "not-permitted not_a_member",
        ),
        (vec![], "not-permitted not_a_member"),
    ] {
        set(&store, &ada, organizations).await;
        check(&process, &layers, &token, expect).await;
    }
    set(&store, &ada, vec![member(&["admin"], &[])]).await;
    let claims = json!({"org_code": null, "roles": ["admin"]}).as_object().unwrap().clone();
    let without = kinde.access_token(&ada, &TokenSpec { claims, ..TokenSpec::default() }).unwrap();
    check(&process, &layers, &without, "not-permitted no_organization").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_roles_refuse_a_request_unless_those_of_the_token_are_allowed() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let refusing = Process::start(&kinde, &store, fresh(UnknownRoles::Refuse)).await;
    let using_token = Process::start(&kinde, &store, fresh(UnknownRoles::UseToken)).await;
    let (ada, token) = token(&kinde);
    let unknown = "roles-unknown roles_unknown";
    let of = |roles, permissions| Organization { roles, permissions, ..Organization::new(ORG) };
    // Nothing but the token is known of the user at first.
    for organizations in [None, Some(vec![of(None, None)])] {
        if let Some(organizations) = organizations {
            set(&store, &ada, organizations).await;
        }
        for (layer, of_token) in [
            (require_role("admin"), ""),
            (require_role("editor"), "not-permitted missing_role"),
            (require_permission("claimed"), ""),
        ] {
            check(&refusing, std::slice::from_ref(&layer), &token, unknown).await;
            check(&using_token, &[layer], &token, of_token).await;
        }
    }
    let (_, _, detail) = send(&refusing, &[require_role("admin")], &token).await;
    for part in ["the role `admin`", "KINSYNC_RECONCILE_ROLES", "kinsync doctor", "KINSYNC_UNKNOWN_ROLES"] {
        assert!(detail.contains(part), "{part}: {detail}");
    }
    // The permission in the token may be of a former role.
    set(&store, &ada, vec![of(Some(keys(&["unlisted"])), None)]).await;
    for process in [&refusing, &using_token] {
        check(process, &[require_role("admin")], &token, "not-permitted missing_role").await;
        check(process, &[require_permission("claimed")], &token, unknown).await;
    }
    // An empty list is known, and outranks the token.
    set(&store, &ada, vec![of(Some(keys(&[])), Some(keys(&[])))]).await;
    for process in [&refusing, &using_token] {
        check(process, &[require_role("admin")], &token, "not-permitted missing_role").await;
        check(process, &[require_permission("claimed")], &token, "not-permitted missing_permission").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_of_a_role_counts_and_another_is_unknown_while_those_of_the_user_are() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, fresh(UnknownRoles::UseToken)).await;
    let (ada, token) = token(&kinde);
    gives(&store, "editor", &["read:things"]).await;
    let unread = Organization { roles: Some(keys(&["editor"])), ..Organization::new(ORG) };
    set(&store, &ada, vec![unread]).await;
    for (layer, expect) in [
        (require_permission("read:things"), ""),
        (require_any_permission(["delete:things", "read:things"]), ""),
        (require_permission("delete:things"), "roles-unknown roles_unknown"),
        (require_permission("claimed"), "roles-unknown roles_unknown"),
    ] {
        check(&process, &[layer], &token, expect).await;
    }
    set(&store, &ada, vec![member(&["editor"], &[])]).await;
    check(&process, &[require_permission("read:things")], &token, "").await;
    check(&process, &[require_permission("claimed")], &token, "not-permitted missing_permission").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_was_taken_away_is_refused_within_a_second_in_every_process() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    // No request is degraded, however slow the machine is.
    let config = Config { deadline: DEADLINE, ..Config::default() };
    let processes = Process::start_three(&kinde, &store, config).await;
    let (ada, token) = token(&kinde);
    let layers = [require_role("admin")];
    set(&store, &ada, vec![member(&["admin"], &[])]).await;
    for process in &processes {
        until(async || send(process, &layers, &token).await.0 == StatusCode::OK).await;
    }
    set(&store, &ada, vec![member(&[], &[])]).await;
    let changed = Instant::now();
    for process in &processes {
        refused_within_a_second(changed, async || send(process, &layers, &token).await.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_unavailable_the_last_loaded_roles_count_and_others_are_a_503() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    let process = Process::start(&kinde, &store, Config { deadline: DEADLINE, ..Config::default() }).await;
    let (ada, token) = token(&kinde);
    set(&store, &ada, vec![member(&["admin"], &[])]).await;
    check(&process, &[require_role("admin")], &token, "").await;
    let cold = Process::start(&kinde, &store, Config::default()).await;
    server.pause();
    let (status, found, _) = send(&cold, &[require_role("admin")], &token).await;
    assert_eq!((status, found.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "unavailable"));
    tokio::time::sleep(Config::default().stale_after).await;
    check(&process, &[require_role("admin")], &token, "").await;
    check(&process, &[require_role("owner")], &token, "not-permitted missing_role").await;
    server.resume();
}

#[tokio::test]
async fn without_the_authenticating_layer_outside_every_request_is_a_500() {
    let service =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())));
    let answer = require_role("admin").layer(service).oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_reads_the_organization_the_roles_and_the_permissions() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, fresh(UnknownRoles::Refuse)).await;
    let (ada, token) = token(&kinde);
    let current = async || -> CurrentUser {
        let bearer = format!("Bearer {token}").parse().unwrap();
        let headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, bearer)]);
        process.authenticator.authenticate(&headers).await.unwrap()
    };
    let user = current().await;
    assert_eq!((user.organization(), user.roles(), user.permissions()), (Some(ORG), None, None));
    set(&store, &ada, vec![Organization { roles: Some(keys(&["admin"])), ..Organization::new(ORG) }]).await;
    let user = current().await;
    assert_eq!(
        (user.organization(), user.roles(), user.permissions()),
        (Some(ORG), Some(vec!["admin"]), None)
    );
    assert!(Requirement::role("admin").check(&user).is_ok());
    set(&store, &ada, vec![]).await;
    let user = current().await;
    assert_eq!((user.organization(), user.roles(), user.permissions()), (None, Some(vec![]), Some(vec![])));
}
