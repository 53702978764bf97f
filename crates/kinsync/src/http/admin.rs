//! Routes for who has the admin token. The check stands in every handler's signature, so that no path trick and no
//! forgotten layer can go round it. Without a token set, they are closed.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, Path, Query, State},
};
use http::{header, request};
use kinsync_engine::{
    explain::explain,
    queue::DeadLetter,
    reconcile::{self, record},
    store::{EventFilter, LoggedEvent, Row, UserFilter},
};
use kinsync_tower::Problem;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::answer::{Failure, Result};
use crate::{
    app::{AppState, ReconcilerHandle},
    json as shape,
};

/// The longest page of a list.
const MAX_LIMIT: usize = 1000;
/// The page when nobody says how long.
const LIMIT: usize = 100;

/// Proof that the request carries the admin token.
#[derive(Debug)]
pub struct Admin;

impl FromRequestParts<Arc<AppState>> for Admin {
    type Rejection = Failure;

    async fn from_request_parts(head: &mut request::Parts, state: &Arc<AppState>) -> Result<Self> {
        let Some(expected) = &state.admin_token else {
            return Err(Problem::Closed { what: "admin routes", opened_by: "KINSYNC_ADMIN_TOKEN" }.into());
        };
        let Some(token) = head.headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()))
        else {
            return Err(Problem::NoToken.into());
        };
        if expected.matches(token) { Ok(Self) } else { Err(Problem::WrongToken.into()) }
    }
}

/// The token of `Bearer <token>`; the scheme is case-insensitive (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Parameters of the query; what is wrong with them is said.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<AppState>> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(head: &mut request::Parts, _: &Arc<AppState>) -> Result<Self> {
        match Query::try_from_uri(&head.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(Problem::BadParameter { detail: error.body_text() }.into()),
        }
    }
}

/// Which users to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsersQuery {
    email: Option<String>,
    #[serde(default)]
    deleted: bool,
    after: Option<String>,
    limit: Option<usize>,
}

/// Which events to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    user: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

/// Which dead letters to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLettersQuery {
    after: Option<u64>,
    limit: Option<usize>,
}

fn limit(asked: Option<usize>) -> Result<usize> {
    match asked.unwrap_or(LIMIT) {
        0 => Err(Problem::BadParameter { detail: "`limit` must be more than 0".into() }.into()),
        limit => Ok(limit.min(MAX_LIMIT)),
    }
}

fn dead_letter_id(text: &str) -> Result<u64> {
    text.parse()
        .map_err(|_| Problem::BadParameter { detail: "the id of a dead letter is a number".into() }.into())
}

/// GET /api/admin/stats
pub async fn stats(_: Admin, State(state): State<Arc<AppState>>) -> Result<Json<Value>> {
    let counts = state.store.counts().await?;
    Ok(Json(json!({ "store": counts, "queue": shape::queue(&state.queue.stats()) })))
}

/// GET /api/admin/users
pub async fn users(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Params(query): Params<UsersQuery>,
) -> Result<Json<Value>> {
    let limit = limit(query.limit)?;
    let filter = UserFilter { email: query.email, with_deleted: query.deleted, after: query.after, limit };
    let rows = state.store.users(&filter).await?;
    let next = if rows.len() < limit { None } else { rows.last().map(|row| row.id.to_string()) };
    let users: Vec<Value> = rows.iter().map(shape_of).collect();
    Ok(Json(json!({ "users": users, "next": next })))
}

/// GET /api/admin/users/{id}
pub async fn user(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let no_user = || Failure(Problem::NotFound { what: "user" });
    let id = kinsync_core::UserId::parse(&id).map_err(|_| no_user())?;
    let found = state.store.load(&[id]).await?.into_iter().next().flatten();
    found.as_ref().map(|row| Json(shape_of(row))).ok_or_else(no_user)
}

fn shape_of(row: &Row) -> Value {
    shape::user(&row.document())
}

/// GET /api/admin/events
pub async fn events(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Params(query): Params<EventsQuery>,
) -> Result<Json<Value>> {
    let limit = limit(query.limit)?;
    let filter = EventFilter { user: query.user, event_type: query.event_type, after: query.after, limit };
    let found = state.store.events(&filter).await?;
    let next = if found.len() < limit { None } else { found.last().map(|event| event.event_id.clone()) };
    let events: Vec<Value> = found.iter().map(shape::event).collect();
    Ok(Json(json!({ "events": events, "next": next })))
}

/// GET /api/admin/events/{id}
pub async fn event(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let found: Option<LoggedEvent> = state.store.event(&id).await?;
    let event = found.ok_or(Failure(Problem::NotFound { what: "event" }))?;
    Ok(Json(shape::event_with_payload(&event)))
}

/// GET /api/admin/dead-letters
pub async fn dead_letters(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Params(query): Params<DeadLettersQuery>,
) -> Result<Json<Value>> {
    let limit = limit(query.limit)?;
    let found = state.queue.dead_letters(query.after, limit).await?;
    let next = if found.len() < limit { None } else { found.last().map(|letter| letter.id) };
    let letters: Vec<Value> = found.iter().map(shape::dead_letter).collect();
    Ok(Json(json!({ "deadLetters": letters, "next": next })))
}

/// GET /api/admin/dead-letters/{id}
pub async fn dead_letter(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let id = dead_letter_id(&id)?;
    let found: Vec<DeadLetter> = state.queue.dead_letters(id.checked_sub(1), 1).await?;
    let letter = found.into_iter().find(|letter| letter.id == id);
    let letter = letter.ok_or(Failure(Problem::NotFound { what: "dead letter" }))?;
    Ok(Json(shape::dead_letter_with_payload(&letter)))
}

/// POST /api/admin/dead-letters/{id}/retry
pub async fn retry_dead_letter(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let id = dead_letter_id(&id)?;
    state.queue.retry_dead_letter(id).await?;
    tracing::info!(id, "an operator put a dead letter back into the queue");
    Ok(Json(json!({ "id": id, "status": "queued" })))
}

/// DELETE /api/admin/dead-letters/{id}
pub async fn drop_dead_letter(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let id = dead_letter_id(&id)?;
    state.queue.drop_dead_letter(id).await?;
    tracing::info!(id, "an operator dropped a dead letter");
    Ok(Json(json!({ "id": id, "status": "dropped" })))
}

/// Events of one user that an explanation looks at.
const EXPLAINED: usize = 1000;

/// GET /api/admin/users/{id}/explain: what was told of the user, what became of it, and what a scan would do
pub async fn explain_user(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let no_user = || Failure(Problem::NotFound { what: "user" });
    let user = kinsync_core::UserId::parse(&id).map_err(|_| no_user())?;
    let row = state.store.load(std::slice::from_ref(&user)).await?.pop().flatten();
    let filter = EventFilter { user: Some(id), limit: EXPLAINED, ..EventFilter::default() };
    let events = state.store.events(&filter).await?;
    if row.is_none() && events.is_empty() {
        return Err(no_user());
    }
    let told = explain(row.as_ref(), &events);
    Ok(Json(json!({
        "user": row.as_ref().map(shape_of),
        "told": told.iter().map(shape::told).collect::<Vec<_>>(),
        "olderEventsLeftOut": events.len() == EXPLAINED,
        "nextScan": next_scan(&state, user).await,
    })))
}

/// How long Kinde is waited for: what the store and the log know is told without it, well before the deadline of the
/// request.
const LOOK: Duration = Duration::from_secs(5);

/// What a scan would do about this user, as Kinde is now.
async fn next_scan(state: &AppState, user: kinsync_core::UserId) -> Value {
    let Some(reconcile) = &state.reconcile else {
        return json!({ "unknown": "set KINDE_M2M_CLIENT_ID, so that Kinde can be asked" });
    };
    match tokio::time::timeout(LOOK, reconcile.reconciler.look(&[user])).await {
        Ok(Ok(tally)) => match tally.examples.first() {
            None => json!({ "drift": null }),
            Some(drift) => json!({ "drift": drift.kind, "fields": drift.fields }),
        },
        Ok(Err(error)) => json!({ "unknown": kinsync_tower::problem::chain(&error) }),
        Err(_) => {
            json!({ "unknown": format!("kinde did not answer within {LOOK:?}; ask again in a moment") })
        }
    }
}

/// GET /api/admin/runs
pub async fn runs(_: Admin, State(state): State<Arc<AppState>>) -> Result<Json<Value>> {
    let runs = record::runs(&*state.store).await?;
    Ok(Json(json!({ "runs": runs.iter().map(shape::run).collect::<Vec<_>>() })))
}

/// GET /api/admin/runs/{id}
pub async fn run(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let runs = record::runs(&*state.store).await?;
    let run = runs.iter().find(|run| run.id == id).ok_or(Failure(Problem::NotFound { what: "run" }))?;
    Ok(Json(shape::run_with_examples(run)))
}

/// GET /api/admin/drift: what the newest complete scan found, and how the webhook seems to be
pub async fn drift(_: Admin, State(state): State<Arc<AppState>>) -> Result<Json<Value>> {
    let runs = record::runs(&*state.store).await?;
    let newest = runs.iter().find(|run| run.is_whole());
    let silence = state.reconcile.as_ref().and_then(|reconcile| reconcile.status.borrow().silence.clone());
    Ok(Json(json!({ "run": newest.map(shape::run_with_examples), "webhookSilent": silence })))
}

/// What kind of scan is asked for; an empty body asks for a usual one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScanBody {
    /// The run whose held deletions it carries out.
    approve: Option<String>,
}

/// POST /api/admin/reconcile: a scan soon, by some process that shares the store
pub async fn reconcile(_: Admin, State(state): State<Arc<AppState>>, body: Bytes) -> Result<Json<Value>> {
    reconciler(&state)?;
    let Some(run) = scan_body(&body)?.approve else {
        state.ask_for_scan().await?;
        tracing::info!("an operator asked for a scan");
        return Ok(Json(json!({ "status": "asked" })));
    };
    if !reconcile::is_held(&*state.store, &run).await? {
        let detail = reconcile::Error::NothingHeld { run }.to_string();
        return Err(Problem::BadParameter { detail }.into());
    }
    state.approve(&run).await?;
    tracing::info!(run, "an operator approved the deletions that a run held");
    Ok(Json(json!({ "status": "asked", "approve": run })))
}

fn scan_body(body: &[u8]) -> Result<ScanBody> {
    if body.trim_ascii().is_empty() {
        return Ok(ScanBody::default());
    }
    let wrong =
        |error| Problem::BadParameter { detail: format!("the body is `{{\"approve\": \"RUN\"}}`: {error}") };
    Ok(serde_json::from_slice(body).map_err(wrong)?)
}

/// POST /api/admin/users/{id}/check: Kinde is asked about this user, soon
pub async fn check_user(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    reconciler(&state)?;
    let user = kinsync_core::UserId::parse(&id)
        .map_err(|error| Problem::BadParameter { detail: format!("the id of the user: {error}") })?;
    state.ask_for_check(user).await?;
    tracing::info!(user = id, "an operator asked for a check of a user");
    Ok(Json(json!({ "user": id, "status": "asked" })))
}

fn reconciler(state: &AppState) -> Result<&ReconcilerHandle> {
    let closed = Problem::Closed { what: "scans", opened_by: "KINDE_M2M_CLIENT_ID" };
    state.reconcile.as_ref().ok_or(Failure(closed))
}
