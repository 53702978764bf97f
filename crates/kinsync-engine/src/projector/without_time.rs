//! Events without a time of the sender: the order of receipt is the only one. Events that cannot be decoded: their user changed.
//! The users of both are read from Kinde.

use kinsync_core::UserId;

use super::{Projector, piece::Item};
use crate::{pending_checks::PendingChecks, store};

impl Projector {
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
