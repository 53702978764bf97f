//! The documents of memberships, which are written after the row of their user.

use kinsync_core::UserId;

use crate::{
    breaker::error_chain,
    store::{Row, Store},
};

/// Marks a row with other memberships than before, so that a kill after the write leaves no document of them outdated.
pub(super) fn with_unshown_memberships(store: &dyn Store, before: &Row, mut next: Row) -> Row {
    let shown = |row: &Row| row.state.is_live().then(|| row.state.organizations());
    next.has_unshown_memberships |= store.shows_memberships() && shown(before) != shown(&next);
    next
}

/// Shows the memberships of marked rows. A failure leaves them to [`crate::derived`]: the rows are written.
pub(super) async fn show_memberships(store: &dyn Store, written: &[Row]) {
    let marked = written.iter().filter(|row| row.has_unshown_memberships);
    let users: Vec<UserId> = marked.map(|row| row.id.clone()).collect();
    if users.is_empty() {
        return;
    }
    if let Err(error) = store.show_memberships(&users).await {
        let (users, error) = (users.len(), error_chain(&error));
        tracing::warn!(
            users,
            error,
            "documents of memberships are outdated; they are written again in a moment"
        );
    }
}
