//! Exports everything that is stored about one user.

use std::sync::Arc;

use super::{MAX_LIMIT, not_found, now};
use crate::{
    api::export::{ExportQuery, UserExport},
    app::AppState,
    http::{answer::Result, route::IdAndParams},
};
use kinsync_core::UserId;
use kinsync_engine::internal::{
    erasure,
    queue::{DeadLetter, Matcher, Search},
    reconcile, refused_users,
    store::{EventFilter, Row},
};

/// Dead letters in one read: each has its payload.
const DEAD_LETTERS: usize = 100;

/// GET /api/admin/users/{id}/export
pub async fn export_user(
    state: Arc<AppState>,
    IdAndParams(id, query): IdAndParams<ExportQuery>,
) -> Result<UserExport> {
    let user = UserId::parse(&id).map_err(|_| not_found("user"))?;
    let mut export = UserExport::empty(id, now(&state));
    let is_first = query.after.is_none();
    add_entries(&state, &mut export, query.after).await?;
    if is_first {
        add_records(&state, &user, &mut export).await?;
        add_deliveries(&state, &user, &mut export).await?;
        if export.is_empty() {
            return Err(not_found("user"));
        }
    }
    Ok(export)
}

async fn add_entries(state: &AppState, export: &mut UserExport, after: Option<String>) -> Result<()> {
    let user = Some(export.user.clone());
    let filter = EventFilter { user, after, limit: MAX_LIMIT, ..EventFilter::default() };
    let page = state.engine.store().events(&filter).await?;
    export.entries = page.iter().map(Into::into).collect();
    export.damaged_entries = page.undecodable;
    export.next = page.next;
    Ok(())
}

/// Adds the row, the records of kinsync and the requests of operators.
async fn add_records(state: &AppState, user: &UserId, export: &mut UserExport) -> Result<()> {
    let store = &**state.engine.store();
    let row = store.load_to_write(std::slice::from_ref(user)).await?.pop();
    if let Some(row) = row.filter(|row| *row != Row::unknown(user.clone())) {
        export.document = (row.revision > 0).then(|| row.document());
        export.has_lockout_record = row.is_recorded;
        export.state = Some(serde_json::to_value(&row.state).expect("a state is JSON"));
    }
    for key in erasure::keys(user).into_iter().chain([refused_users::key(user)]) {
        if let Some(saved) = store.state(&key).await? {
            export.records.insert(key, saved.value);
        }
    }
    let shared: Vec<String> = reconcile::state_keys().iter().map(|key| key.name.to_owned()).collect();
    let saved = store.states(&shared).await?;
    let names_user = |value: &serde_json::Value| value.to_string().contains(&quoted(user));
    let mentioning = shared
        .into_iter()
        .zip(saved)
        .filter(|(_, saved)| saved.as_ref().is_some_and(|saved| names_user(&saved.value)));
    export.mentioned_in = mentioning.map(|(key, _)| key).collect();
    let time = state.engine.clock().now();
    let mut audit = state.admin.audit().list(store, time, None, usize::MAX).await?;
    audit.retain(|record| record.parameters.values().any(|value| value == user.as_str()));
    export.audit = audit.into_iter().map(Into::into).collect();
    Ok(())
}

/// Adds the queue and the dead letters.
async fn add_deliveries(state: &AppState, user: &UserId, export: &mut UserExport) -> Result<()> {
    let text = quoted(user);
    let matcher: Matcher = Arc::new(move |_, payload| String::from_utf8_lossy(payload).contains(&text));
    let found = state.engine.queue().search(matcher, Search::List).await?;
    export.queued = found.entries.into_iter().map(Into::into).collect();
    let mut after = None;
    loop {
        let page = state.engine.queue().dead_letters(after.as_ref(), DEAD_LETTERS).await?;
        let names_user = |letter: &&DeadLetter| {
            letter.payload.as_ref().is_some_and(|payload| payload.contains(&quoted(user)))
        };
        export.dead_letters.extend(page.iter().filter(names_user).map(Into::into));
        match page.last() {
            Some(last) if page.len() == DEAD_LETTERS => after = Some(last.id.clone()),
            _ => return Ok(()),
        }
    }
}

/// Returns the id as it is in JSON, so that no longer id matches.
fn quoted(user: &UserId) -> String {
    format!("\"{user}\"")
}
