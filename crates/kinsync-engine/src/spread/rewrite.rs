//! Writes rows again, and sets users aside with a row that cannot be written.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use kinsync_core::UserId;

use super::Spread;
use crate::{
    apply,
    breaker::error_chain,
    store::{Error, Store, WRITE_USERS},
};

/// Records of users that were set aside.
const PREFIX: &str = "outdated/";

/// Users that were set aside and are tried again together.
const PAGE: usize = 100;

/// Users named in the status.
const EXAMPLES: usize = 3;

/// Users with a row that cannot be written, each with the reason.
type Failed = Vec<(UserId, String)>;

/// Returns whether a user is set aside.
pub(super) async fn is_any_set_aside(store: &dyn Store) -> Result<bool, Error> {
    Ok(!store.list_states(PREFIX, None, 1).await?.is_empty())
}

impl Spread {
    /// Writes the rows of these users again. Users with a row that cannot be written are set aside, while the rows of others can.
    pub(super) async fn write_again(&self, users: &[UserId]) -> Result<(), Error> {
        if users.is_empty() {
            return Ok(());
        }
        for (user, reason) in self.rewrite_apart(users).await? {
            let (key, reason) = (format!("{PREFIX}{user}"), serde_json::json!({ "reason": reason }));
            tracing::warn!(
                user = user.as_str(),
                reason = reason["reason"].as_str(),
                "the row of a user cannot be written; it is tried again apart"
            );
            // A concurrent write has set the user aside as well.
            if !self.store.put_state(&key, &reason, 0).await? {
                tracing::debug!(user = user.as_str(), "the user is set aside already");
            }
        }
        Ok(())
    }

    /// Writes rows again. After a failure of the whole call it writes both halves alone, to find the users that cause it.
    fn rewrite_apart<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Failed, Error>> {
        Box::pin(async move {
            let error = match apply::rewrite(&*self.store, users, self.clock.now()).await {
                Ok(applied) if applied.failed.len() < 2 || applied.failed.len() < users.len() => {
                    return Ok(applied.failed);
                }
                // Nothing shows that the store accepts other users.
                Ok(applied) => return Err(refused_all(&applied.failed[0].1)),
                Err(error) if !error.may_concern_one_user() => return Err(error),
                Err(error) => error,
            };
            self.store.ping().await?;
            if let [user] = users {
                return Ok(vec![(user.clone(), error_chain(&error))]);
            }
            let (one, other) = users.split_at(users.len() / 2);
            let mut failed = self.rewrite_apart(one).await?;
            failed.extend(self.rewrite_apart(other).await?);
            if failed.len() == users.len() { Err(error) } else { Ok(failed) }
        })
    }

    /// Tries the users again that were set aside.
    pub(super) async fn retry_set_aside(&self) -> Result<(), Error> {
        let (mut after, mut count, mut examples) = (None, 0, Vec::new());
        loop {
            let page = self.store.list_states(PREFIX, after.as_deref(), PAGE).await?;
            let users: Vec<UserId> =
                page.iter().filter_map(|(key, _)| UserId::parse(key.strip_prefix(PREFIX)?).ok()).collect();
            // Where all fail again, all stay.
            let failed = match self.rewrite_apart(&users).await {
                Ok(failed) => failed,
                Err(error) => users.into_iter().map(|user| (user, error_chain(&error))).collect(),
            };
            let still: HashSet<String> = failed.iter().map(|(user, _)| format!("{PREFIX}{user}")).collect();
            let written = page.iter().filter(|(key, _)| !still.contains(key));
            let written: Vec<(String, i64)> =
                written.map(|(key, saved)| (key.clone(), saved.revision)).collect();
            if !written.is_empty() {
                self.store.remove_states(&written).await?;
            }
            count += failed.len() as u64;
            examples.extend(failed.into_iter().map(|(user, reason)| (user.to_string(), reason)));
            examples.truncate(EXAMPLES);
            if page.len() < PAGE {
                self.status.send_modify(|status| (status.set_aside, status.examples) = (count, examples));
                return Ok(());
            }
            after = page.into_iter().next_back().map(|(key, _)| key);
        }
    }
}

fn refused_all(reason: &str) -> Error {
    Error::Unavailable { doing: WRITE_USERS, source: format!("every write is refused: {reason}").into() }
}
