//! Erases users.

use std::sync::Arc;

use kinsync_core::UserId;
use kinsync_engine::internal::{
    erasure::{ApplicationFields, Error, Mode},
    reconcile::record::DriftKind,
};

use super::{KINDE_TIMEOUT, bad_parameter, not_found};
use crate::{
    api::erasure::{EraseQuery, Erased},
    app::AppState,
    http::{
        answer::{Failure, Result},
        route::IdAndParams,
    },
};

/// POST /api/admin/users/{id}/erase
pub async fn erase_user(
    state: Arc<AppState>,
    IdAndParams(id, query): IdAndParams<EraseQuery>,
) -> Result<Erased> {
    let user = UserId::parse(&id).map_err(|_| not_found("user"))?;
    let mode = if query.dry_run { Mode::Dry } else { Mode::Erase };
    let fields = if query.application_fields { ApplicationFields::Erase } else { ApplicationFields::Keep };
    if is_listed(&state, &user).await? {
        return Err(bad_parameter("Kinde still has the user: delete the user in Kinde first"));
    }
    // A client that ends the connection interrupts this; a server continues it.
    let report = Box::pin(state.engine.eraser().erase(&user, mode, fields)).await.map_err(failure)?;
    tracing::info!(user = id, dry_run = query.dry_run, "erasure of a user requested by an operator");
    Ok(Erased::new(id, query.dry_run, report))
}

/// Returns whether Kinde has a user that is deleted in the store. Without access to Kinde the stored deletion counts.
///
/// # Errors
/// Fails when Kinde does not answer: an erasure cannot be taken back.
async fn is_listed(state: &AppState, user: &UserId) -> Result<bool> {
    let Some(reconcile) = state.engine.reconciler() else { return Ok(false) };
    let looked = reconcile.reconciler.look(std::slice::from_ref(user));
    let tally = tokio::time::timeout(KINDE_TIMEOUT, looked)
        .await
        .map_err(|elapsed| Failure::unavailable(&elapsed))?
        .map_err(|error| Failure::unavailable(&error))?;
    let kinds = [DriftKind::Restored, DriftKind::ListedAfterDeletion];
    Ok(tally.examples.iter().any(|one| kinds.contains(&one.kind)))
}

fn failure(error: Error) -> Failure {
    match error {
        Error::NotDeleted { .. } => bad_parameter(error.to_string()),
        Error::Store(error) => error.into(),
        Error::Queue(error) => error.into(),
        error => Failure::internal(&error),
    }
}
