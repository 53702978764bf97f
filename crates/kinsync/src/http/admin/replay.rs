//! Applies entries of the event log again.

use std::sync::Arc;

use kinsync_core::Micros;
use kinsync_engine::internal::{
    replay::{self, Mode},
    store::EventFilter,
};

use super::{bad_parameter, not_found};
use crate::{
    api::events::{ReplayRequest, Replayed},
    app::AppState,
    http::{answer::Result, route::Body},
};

/// Entries in one request.
const PAGE: usize = 500;

/// POST /api/admin/events/replay
pub async fn replay(state: Arc<AppState>, Body(request): Body<ReplayRequest>) -> Result<Replayed> {
    let (store, now) = (&**state.engine.store(), state.engine.clock().now());
    let mode = if request.dry_run { Mode::Dry } else { Mode::Apply };
    if let Some(id) = &request.event_id {
        let replayed = replay::replay_one(store, id, mode, now).await?;
        return replayed.map(Into::into).ok_or_else(|| not_found("event"));
    }
    let ReplayRequest { user, event_type: kind, since, until, after, .. } = request;
    if user.is_none() && kind.is_none() && since.is_none() && until.is_none() {
        return Err(bad_parameter("set `eventId`, `user`, `type`, `since` or `until`"));
    }
    let (since, until) = (since.map(Micros::from), until.map(Micros::from));
    let filter = EventFilter { user, kind, since, until, after, limit: PAGE, ..EventFilter::default() };
    Ok(replay::replay(store, &filter, mode, now).await?.into())
}
