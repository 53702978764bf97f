//! Routes for operators. [`super::route::operator`] verifies the admin token and records the request before any of these runs.

use std::{sync::Arc, time::Duration};

use kinsync_core::{Fact, UserId, Value};
use kinsync_engine::internal::{
    directory,
    explain::{ExplainedObservation, explain},
    known_users::KnownUser,
    pending_checks::Approval,
    queue::EntryId,
    reconcile::{
        self,
        record::{self, History},
    },
    refused_users,
    store::{EventFilter, EventPosition, LogSource, Store},
};
use kinsync_tower::Problem;

use super::{
    answer::{Failure, Result},
    route::{Body, Id, Params},
};
use crate::{
    api::{
        Time,
        audit::{AuditPage, AuditQuery},
        dead_letters::{DeadLetter, DeadLetterChanged, DeadLetterPage, DeadLetterStatus, DeadLettersQuery},
        events::{Event, EventPage, EventsQuery},
        explain::{Explanation, NextScan, RefusedDocument},
        runs::{DriftReport, Run, RunList, RunSummary, ScanRequest, ScanRequested},
        stats::Stats,
        users::{CheckRequested, User},
    },
    app::AppState,
};

pub mod erase;
pub mod export;
pub mod organizations;
pub mod projections;
pub mod replay;
pub mod users;

/// The longest page of a list.
const MAX_LIMIT: usize = 1000;
/// The longest page of a request without a limit.
const LIMIT: usize = 100;
/// Entries of the log in an explanation.
const EXPLAINED: usize = 1000;
/// How long an explanation waits for Kinde: well below the deadline of the request, so that the data of the store is
/// answered in any case.
const KINDE_TIMEOUT: Duration = Duration::from_secs(5);

fn limit(requested: Option<usize>) -> Result<usize> {
    match requested.unwrap_or(LIMIT) {
        0 => Err(bad_parameter("`limit` must be more than 0")),
        limit => Ok(limit.min(MAX_LIMIT)),
    }
}

fn bad_parameter(detail: impl Into<String>) -> Failure {
    Problem::BadParameter { detail: detail.into() }.into()
}

/// Why a position is refused.
const NO_POSITION: &str = "`after` must be `next` of a page with the same filter";

fn unknown_source() -> Failure {
    let names = LogSource::ALL.map(LogSource::as_str).join(", ");
    bad_parameter(format!("`source` must be one of {names}"))
}

fn not_found(what: &'static str) -> Failure {
    Problem::NotFound { what }.into()
}

/// GET /api/admin/stats
pub async fn stats(state: Arc<AppState>, (): ()) -> Result<Stats> {
    let store = state.engine.store().counts().await?.into();
    Ok(Stats { store, queue: (&state.engine.queue().stats().await?).into() })
}

/// GET /api/admin/audit
pub async fn audit(state: Arc<AppState>, Params(query): Params<AuditQuery>) -> Result<AuditPage> {
    let limit = limit(query.limit)?;
    let (store, now) = (state.engine.store(), state.engine.clock().now());
    let mut found = state.admin.audit().list(&**store, now, query.after.as_deref(), limit + 1).await?;
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().map(|record| record.id.clone()).filter(|_| has_more);
    Ok(AuditPage { records: found.into_iter().map(Into::into).collect(), next })
}

/// GET /api/admin/users/{id}
pub async fn user(state: Arc<AppState>, Id(id): Id) -> Result<User> {
    let id = UserId::parse(&id).map_err(|_| not_found("user"))?;
    let row = state.engine.store().load(&[id]).await?.pop().flatten();
    row.map(|row| row.document()).ok_or_else(|| not_found("user"))
}

/// GET /api/admin/events
pub async fn events(state: Arc<AppState>, Params(query): Params<EventsQuery>) -> Result<EventPage> {
    let limit = limit(query.limit)?;
    let source = query.source.as_deref().map(|name| LogSource::from_name(name).ok_or_else(unknown_source));
    let source = source.transpose()?;
    if query.user.is_none() && query.event_type.is_some() && source.is_some() {
        return Err(bad_parameter(
            "`type` and `source` cannot be combined: an index answers one of them; leave one out, or add `user`",
        ));
    }
    if query.after.as_deref().is_some_and(|after| EventPosition::parse(after).is_none()) {
        return Err(bad_parameter(NO_POSITION));
    }
    let filter = EventFilter {
        id: None,
        user: query.user,
        without_user: false,
        kind: query.event_type,
        source,
        since: query.since.map(Into::into),
        until: query.until.map(Into::into),
        after: query.after,
        limit,
    };
    let page = state.engine.store().events(&filter).await?;
    let events = page.iter().map(Into::into).collect();
    Ok(EventPage { events, next: page.next, undecodable: page.undecodable })
}

/// GET /api/admin/events/{id}
pub async fn event(state: Arc<AppState>, Id(id): Id) -> Result<Event> {
    let filter = EventFilter { id: Some(id), limit: 1, ..EventFilter::default() };
    let page = state.engine.store().events(&filter).await?;
    match page.undecodable.first() {
        Some(id) => Err(bad_parameter(format!(
            "the log entry `{id}` is damaged: it was changed after it was written"
        ))),
        None => page.items.first().map(Event::from).ok_or_else(|| not_found("event")),
    }
}

/// GET /api/admin/dead-letters
pub async fn dead_letters(
    state: Arc<AppState>,
    Params(query): Params<DeadLettersQuery>,
) -> Result<DeadLetterPage> {
    let limit = limit(query.limit)?;
    let mut found =
        state.engine.queue().dead_letters(query.after.map(EntryId::new).as_ref(), limit + 1).await?;
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().map(|letter| letter.id.to_string()).filter(|_| has_more);
    Ok(DeadLetterPage { dead_letters: found.iter().map(Into::into).collect(), next })
}

/// GET /api/admin/dead-letters/{id}
pub async fn dead_letter(state: Arc<AppState>, Id(id): Id) -> Result<DeadLetter> {
    Ok((&state.engine.queue().find_dead_letter(&EntryId::new(id)).await?).into())
}

/// POST /api/admin/dead-letters/{id}/retry
pub async fn retry_dead_letter(state: Arc<AppState>, Id(id): Id) -> Result<DeadLetterChanged> {
    state.engine.queue().retry_dead_letter(&EntryId::new(id.as_str())).await?;
    tracing::info!(id, "dead letter put back into the queue by an operator");
    Ok(DeadLetterChanged { id, status: DeadLetterStatus::Queued })
}

/// DELETE /api/admin/dead-letters/{id}
pub async fn drop_dead_letter(state: Arc<AppState>, Id(id): Id) -> Result<DeadLetterChanged> {
    state.engine.queue().drop_dead_letter(&EntryId::new(id.as_str())).await?;
    tracing::info!(id, "dead letter removed by an operator");
    Ok(DeadLetterChanged { id, status: DeadLetterStatus::Dropped })
}

/// GET /api/admin/users/{id}/explain
pub async fn explain_user(state: Arc<AppState>, Id(id): Id) -> Result<Explanation> {
    let user = UserId::parse(&id).map_err(|_| not_found("user"))?;
    let store = &**state.engine.store();
    let ids = std::slice::from_ref(&user);
    let stored = store.load(ids).await?.pop().flatten();
    let refused = refused_users::of(store, ids).await?.pop().flatten();
    let document = refused.as_ref().map(|refused| RefusedDocument {
        reason: refused.reason.clone(),
        since: refused.since.into(),
        is_missing: stored.is_none(),
    });
    let refused_keys = stored.as_ref().map(|row| row.refused.reasons()).unwrap_or_default();
    let row = KnownUser::of(&user, stored, refused).map(|known| known.row);
    let filter = EventFilter { user: Some(id), limit: EXPLAINED, ..EventFilter::default() };
    let events = store.events(&filter).await?;
    if row.is_none() && events.is_empty() && events.undecodable.is_empty() {
        return Err(not_found("user"));
    }
    let omitted = match events.next {
        Some(_) => store.count_user_entries(user.as_str()).await?.saturating_sub(EXPLAINED as u64),
        None => 0,
    };
    let mut observations = explain(row.as_ref(), &events);
    name_former(store, &mut observations).await?;
    Ok(Explanation {
        observations: observations.iter().map(Into::into).collect(),
        memberships: row.as_ref().map(|row| (&row.state).into()),
        user: row.map(|row| row.document()),
        refused: document,
        refused_keys,
        older_entries_omitted: omitted,
        damaged_entries: events.undecodable,
        next_scan: next_scan(&state, user).await,
    })
}

/// Replaces the ids of roles and permissions that the memberships no longer contain by their last keys.
async fn name_former(store: &dyn Store, observations: &mut [ExplainedObservation]) -> Result<()> {
    let lists = observations.iter_mut().flat_map(|one| &mut one.fields).filter_map(|field| {
        let Value::Codes(list) = &mut field.value else { return None };
        field.part.map(|_| list)
    });
    let listed: Vec<&mut String> = lists.flatten().collect();
    let ids: Vec<String> = listed.iter().map(|id| (**id).clone()).collect();
    let known = directory::read(store, &ids).await?;
    for id in listed {
        if let Some(key) = known.get(id).and_then(|stored| stored.entry.text(Fact::Key)) {
            key.clone_into(id);
        }
    }
    Ok(())
}

/// What a scan would do with this user, compared with Kinde now.
async fn next_scan(state: &AppState, user: UserId) -> NextScan {
    let unknown = |reason| NextScan::Unknown { reason };
    let Some(reconcile) = state.engine.reconciler() else {
        return unknown("set KINDE_M2M_CLIENT_ID, so that Kinde can be read".into());
    };
    match tokio::time::timeout(KINDE_TIMEOUT, reconcile.reconciler.look(&[user])).await {
        Ok(Ok(tally)) => tally.examples.first().map_or(NextScan::Unchanged, NextScan::from),
        Ok(Err(error)) => unknown(kinsync_tower::problem::chain(&error)),
        Err(_) => unknown(format!(
            "Kinde did not answer within {} s; try again in a moment",
            KINDE_TIMEOUT.as_secs()
        )),
    }
}

/// GET /api/admin/runs
pub async fn runs(state: Arc<AppState>, (): ()) -> Result<RunList> {
    let History { runs, undecodable } = state.engine.runs().await?;
    Ok(RunList { runs: runs.iter().map(|run| RunSummary::new(run, &runs)).collect(), undecodable })
}

/// GET /api/admin/runs/{id}
pub async fn run(state: Arc<AppState>, Id(id): Id) -> Result<Run> {
    let runs = state.engine.runs().await?.runs;
    let run = runs.iter().find(|run| run.id == id).ok_or_else(|| not_found("run"))?;
    shown(&state, run, &runs).await
}

async fn shown(state: &AppState, run: &record::Run, runs: &[record::Run]) -> Result<Run> {
    Ok(Run::new(run, runs, reconcile::is_held(&**state.engine.store(), &run.id).await?))
}

/// GET /api/admin/drift
pub async fn drift(state: Arc<AppState>, (): ()) -> Result<DriftReport> {
    let runs = state.engine.runs().await?.runs;
    let silent =
        state.engine.reconciler().and_then(|reconcile| reconcile.status.borrow().silent_webhook.clone());
    let run = match runs.iter().find(|run| run.is_whole()) {
        Some(run) => Some(shown(&state, run, &runs).await?),
        None => None,
    };
    Ok(DriftReport { run, webhook_silence: silent.as_ref().map(Into::into) })
}

/// POST /api/admin/reconcile: a process that shares the store starts the scan within seconds.
pub async fn reconcile(state: Arc<AppState>, Body(request): Body<ScanRequest>) -> Result<ScanRequested> {
    require_scans(&state)?;
    let approval = approval(&request)?;
    if let Some(Approval::Run(run)) = &approval
        && !reconcile::is_held(&**state.engine.store(), run).await?
    {
        let run = run.clone();
        return Err(bad_parameter(reconcile::Error::NothingHeld { run }.to_string()));
    }
    match &approval {
        None => state.engine.request_scan().await?,
        Some(approval) => state.engine.approve(approval).await?,
    }
    tracing::info!(?approval, "scan requested by an operator");
    let ScanRequest { approve, approve_empty_tenant } = request;
    Ok(ScanRequested { requested_at: now(&state), approve, approve_empty_tenant })
}

fn approval(request: &ScanRequest) -> Result<Option<Approval>> {
    match (&request.approve, request.approve_empty_tenant) {
        (Some(_), true) => Err(bad_parameter("only one of `approve` and `approveEmptyTenant` can be set")),
        (Some(run), false) => Ok(Some(Approval::Run(run.clone()))),
        (None, true) => Ok(Some(Approval::EmptyTenant)),
        (None, false) => Ok(None),
    }
}

/// POST /api/admin/users/{id}/check
pub async fn check_user(state: Arc<AppState>, Id(id): Id) -> Result<CheckRequested> {
    require_scans(&state)?;
    let user = UserId::parse(&id).map_err(|error| bad_parameter(format!("the id of the user: {error}")))?;
    state.engine.request_check(user).await?;
    tracing::info!(user = id, "check of a user requested by an operator");
    Ok(CheckRequested { user: id, requested_at: now(&state) })
}

fn now(state: &AppState) -> Time {
    state.engine.clock().now().into()
}

fn require_scans(state: &AppState) -> Result<()> {
    let disabled = Problem::Disabled { what: "scans", enabled_by: "KINDE_M2M_CLIENT_ID" };
    state.engine.reconciler().map(|_| ()).ok_or(Failure::from(disabled))
}
