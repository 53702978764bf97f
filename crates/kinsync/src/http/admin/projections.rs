//! Daily figures.

use std::sync::Arc;

use kinsync_engine::internal::projections::{self, Day};

use super::bad_parameter;
use crate::{
    api::projections::{DaysQuery, GrowthReport, SystemReport},
    app::AppState,
    http::{answer::Result, route::Params},
};

/// Days of a list without a first day.
const DAYS: i64 = 30;
/// The most days of a list.
const MAX_DAYS: i64 = 400;

/// GET /api/admin/stats/growth
pub async fn growth(state: Arc<AppState>, Params(query): Params<DaysQuery>) -> Result<GrowthReport> {
    let (store, days) = (&**state.engine.store(), days(&state, &query)?);
    let found = projections::growth(store, days).await?;
    let is_pending = found.is_empty() && projections::has_entries(store, days).await?;
    Ok(GrowthReport { is_pending, ..found.into() })
}

/// GET /api/admin/stats/system
pub async fn system(state: Arc<AppState>, Params(query): Params<DaysQuery>) -> Result<SystemReport> {
    let (store, days) = (&**state.engine.store(), days(&state, &query)?);
    let found = projections::system(store, days).await?;
    let is_pending = found.is_empty() && projections::has_entries(store, days).await?;
    Ok(SystemReport { is_pending, ..found.into() })
}

fn days(state: &AppState, query: &DaysQuery) -> Result<(Day, Day)> {
    let until = query.until.unwrap_or_else(|| Day::of(state.engine.clock().now()));
    let since = query.since.unwrap_or_else(|| until.before(DAYS - 1));
    match until.days_since(since) {
        ..0 => Err(bad_parameter("`since` must not be after `until`")),
        0..MAX_DAYS => Ok((since, until)),
        _ => Err(bad_parameter(format!("at most {MAX_DAYS} days are listed; set `since` and `until`"))),
    }
}
