//! Events without a time of the sender: the order of receipt is the only one. Events that cannot be decoded: their user changed.
//! The users of both are read from Kinde.

use kinsync_core::UserId;

use super::{Projector, piece::Item};
use crate::{decode, pending_checks::PendingChecks, store};

impl Projector {
    /// Sets the version of events without a time to that of their first delivery, so that a repeated delivery has the same order.
    pub(super) async fn recall(&self, items: &mut [Item]) -> Result<(), store::Error> {
        let limit = self.latest();
        for item in items.iter_mut().filter(|item| item.decoded.may_be_logged_before()) {
            let logged = self.store.event(&item.decoded.event.id).await?;
            if let Some(first) = logged.and_then(|event| decode::decode_logged(&event, limit)) {
                item.decoded = first;
            }
        }
        Ok(())
    }

    /// Requests checks of users with an event without a time or one that cannot be decoded. Before the events are applied: after
    /// an interruption they are delivered again.
    pub(super) async fn request_checks(&self, items: &[Item]) -> Result<(), store::Error> {
        if !self.config.check_without_time {
            return Ok(());
        }
        let users: Vec<UserId> = items.iter().filter_map(|item| item.decoded.user_to_check()).collect();
        PendingChecks::request(&*self.store, &users).await
    }
}
