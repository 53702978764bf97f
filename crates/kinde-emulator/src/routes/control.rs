//! The control API under `/_emulator`: operations of Kinde's dashboard, and faults.
//!
//! Not part of Kinde. Requests and responses are JSON; an error is `{"error": "…"}`. There is no authentication.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{Application, Limits};
use crate::delivery;
use crate::emulator::Emulator;
use crate::faults::Fault;
use crate::keys::{self, Overlap};
use crate::tenant::{self, Profile};
use crate::tokens::{Claims, MintOptions, TokenSpec};
use crate::user::{NewUser, UserEdit};
use crate::webhook::WebhookSpec;

pub(super) mod directory;

/// Largest number of users in one response.
const MAX_PAGE: usize = 1000;

/// An error response.
pub(super) struct Error(StatusCode, String);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}

impl From<tenant::Error> for Error {
    fn from(error: tenant::Error) -> Self {
        let status = match error {
            tenant::Error::UnknownUser(_)
            | tenant::Error::UnknownOrganization(_)
            | tenant::Error::UnknownRole(_)
            | tenant::Error::UnknownPermission(_) => StatusCode::NOT_FOUND,
            tenant::Error::Taken(_)
            | tenant::Error::Suspended(_)
            | tenant::Error::NotAMember(_)
            | tenant::Error::DefaultOrganization(_)
            | tenant::Error::Used(_) => StatusCode::CONFLICT,
        };
        Self(status, error.to_string())
    }
}

impl From<delivery::Error> for Error {
    fn from(error: delivery::Error) -> Self {
        Self(StatusCode::NOT_FOUND, error.to_string())
    }
}

impl From<keys::Error> for Error {
    fn from(error: keys::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

type Reply = Result<Json<Value>, Error>;

#[expect(clippy::unnecessary_wraps, reason = "all handlers have the same return type")]
fn reply(value: Value) -> Reply {
    Ok(Json(value))
}

pub(super) async fn stats(State(emulator): State<Emulator>) -> Reply {
    reply(json!({
        "issuer": emulator.issuer(),
        "users": emulator.user_count(),
        "deliveries": emulator.stats(),
        "requests": emulator.all_requests(),
        "faults": emulator.faults(),
    }))
}

pub(super) async fn reset(State(emulator): State<Emulator>) -> Reply {
    emulator.reset();
    reply(json!({}))
}

/// A page of the users.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Id of the last user of the page before.
    after: Option<String>,
    limit: usize,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self { after: None, limit: MAX_PAGE }
    }
}

/// Lists a page of users. `next` is the `after` of the next page and is absent on the last page.
pub(super) async fn list_users(State(emulator): State<Emulator>, Query(query): Query<ListQuery>) -> Reply {
    let (users, is_more) = emulator.users_after(query.after.as_deref(), query.limit.clamp(1, MAX_PAGE))?;
    let next = users.last().filter(|_| is_more).map(|user| user.id.clone());
    let mut page = json!({"users": users});
    if let Some(next) = next {
        page["next"] = json!(next);
    }
    reply(page)
}

pub(super) async fn create_user(State(emulator): State<Emulator>, Json(new): Json<NewUser>) -> Reply {
    reply(json!(emulator.create_user(new)?))
}

pub(super) async fn sign_up(State(emulator): State<Emulator>, Json(new): Json<NewUser>) -> Reply {
    reply(json!(emulator.sign_up(new)?))
}

/// One user or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Import {
    Many(Vec<NewUser>),
    One(Box<NewUser>),
}

pub(super) async fn import(State(emulator): State<Emulator>, Json(import): Json<Import>) -> Reply {
    let new = match import {
        Import::Many(list) => list,
        Import::One(user) => vec![*user],
    };
    let users: Result<Vec<_>, _> = new.into_iter().map(|user| emulator.import_user(user)).collect();
    reply(json!({"users": users?}))
}

pub(super) async fn update_user(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Json(edit): Json<UserEdit>,
) -> Reply {
    reply(json!(emulator.update_user(&id, edit)?))
}

#[derive(Deserialize)]
pub(super) struct DeleteQuery {
    #[serde(default)]
    profile: Profile,
}

pub(super) async fn delete_user(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Reply {
    emulator.delete_user(&id, query.profile)?;
    reply(json!({"id": id}))
}

pub(super) async fn sign_in(State(emulator): State<Emulator>, Path(id): Path<String>) -> Reply {
    reply(json!(emulator.sign_in(&id)?))
}

pub(super) async fn suspend(State(emulator): State<Emulator>, Path(id): Path<String>) -> Reply {
    reply(json!(emulator.suspend(&id)?))
}

pub(super) async fn unsuspend(State(emulator): State<Emulator>, Path(id): Path<String>) -> Reply {
    reply(json!(emulator.unsuspend(&id)?))
}

#[derive(Deserialize)]
pub(super) struct SwapBody {
    a: String,
    b: String,
}

pub(super) async fn swap_emails(State(emulator): State<Emulator>, Json(body): Json<SwapBody>) -> Reply {
    emulator.swap_emails(&body.a, &body.b)?;
    reply(json!({"a": emulator.user(&body.a), "b": emulator.user(&body.b)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GeneratedBody {
    users: Option<u64>,
    organizations: Option<u64>,
    memberships_per_user: Option<u64>,
    roles: Option<u64>,
}

pub(super) async fn set_generated(
    State(emulator): State<Emulator>,
    Json(body): Json<GeneratedBody>,
) -> Reply {
    emulator.set_generated(|generated| {
        generated.users = body.users.unwrap_or(generated.users);
        generated.organizations = body.organizations.unwrap_or(generated.organizations);
        generated.memberships_per_user = body.memberships_per_user.unwrap_or(generated.memberships_per_user);
        generated.roles = body.roles.unwrap_or(generated.roles);
    });
    let (users, organizations) = (emulator.user_count(), emulator.organizations().len());
    reply(json!({"users": users, "organizations": organizations, "roles": emulator.roles().len()}))
}

pub(super) async fn set_limits(State(emulator): State<Emulator>, Json(limits): Json<Limits>) -> Reply {
    emulator.set_limits(limits);
    reply(json!(limits))
}

#[derive(Deserialize)]
pub(super) struct EmitBody {
    #[serde(rename = "type")]
    kind: String,
    data: Value,
}

pub(super) async fn emit(State(emulator): State<Emulator>, Json(body): Json<EmitBody>) -> Reply {
    reply(json!({"event": emulator.emit(&body.kind, body.data)}))
}

pub(super) async fn faults(State(emulator): State<Emulator>) -> Reply {
    reply(json!({"faults": emulator.faults()}))
}

pub(super) async fn set_fault(State(emulator): State<Emulator>, Json(fault): Json<Fault>) -> Reply {
    emulator.set_fault(fault);
    reply(json!({"faults": emulator.faults()}))
}

pub(super) async fn clear_faults(State(emulator): State<Emulator>) -> Reply {
    emulator.clear_faults();
    reply(json!({"faults": []}))
}

pub(super) async fn webhooks(State(emulator): State<Emulator>) -> Reply {
    reply(json!({"webhooks": emulator.webhooks()}))
}

pub(super) async fn add_webhook(State(emulator): State<Emulator>, Json(spec): Json<WebhookSpec>) -> Reply {
    reply(json!({"id": emulator.add_webhook(spec)}))
}

pub(super) async fn remove_webhook(State(emulator): State<Emulator>, Path(id): Path<String>) -> Reply {
    emulator.remove_webhook(&id)?;
    reply(json!({"id": id}))
}

pub(super) async fn enable_webhook(State(emulator): State<Emulator>, Path(id): Path<String>) -> Reply {
    emulator.enable_webhook(&id)?;
    reply(json!({"id": id, "disabled": false}))
}

pub(super) async fn disable_webhook(State(emulator): State<Emulator>, Path(id): Path<String>) -> Reply {
    emulator.disable_webhook(&id)?;
    reply(json!({"id": id, "disabled": true}))
}

#[derive(Deserialize)]
pub(super) struct RotateBody {
    overlap: Overlap,
}

pub(super) async fn rotate_keys(State(emulator): State<Emulator>, Json(body): Json<RotateBody>) -> Reply {
    let rotating = emulator.clone();
    let rotated = tokio::task::spawn_blocking(move || rotating.rotate_keys(body.overlap)).await;
    let kid = rotated.expect("key generation does not panic")?;
    reply(json!({"kid": kid, "jwks": emulator.jwks()}))
}

pub(super) async fn applications(State(emulator): State<Emulator>) -> Reply {
    reply(json!({"applications": emulator.applications()}))
}

pub(super) async fn add_application(
    State(emulator): State<Emulator>,
    Json(application): Json<Application>,
) -> Reply {
    emulator.add_application(application);
    reply(json!({"applications": emulator.applications()}))
}

#[derive(Deserialize)]
pub(super) struct TokenBody {
    user: String,
    #[serde(default)]
    token: TokenSpec,
}

pub(super) async fn access_token(State(emulator): State<Emulator>, Json(body): Json<TokenBody>) -> Reply {
    reply(json!({"token": emulator.access_token(&body.user, &body.token)?}))
}

pub(super) async fn id_token(State(emulator): State<Emulator>, Json(body): Json<TokenBody>) -> Reply {
    reply(json!({"token": emulator.id_token(&body.user, &body.token)?}))
}

pub(super) async fn m2m_token(State(emulator): State<Emulator>, Json(spec): Json<TokenSpec>) -> Reply {
    reply(json!({"token": emulator.m2m_token(&spec)}))
}

#[derive(Deserialize)]
pub(super) struct MintBody {
    claims: Claims,
    #[serde(default)]
    sign: MintOptions,
}

pub(super) async fn mint(State(emulator): State<Emulator>, Json(body): Json<MintBody>) -> Reply {
    reply(json!({"token": emulator.mint(&body.claims, &body.sign)}))
}

pub(super) async fn deliveries(State(emulator): State<Emulator>) -> Reply {
    reply(json!({"deliveries": emulator.deliveries()}))
}
