//! Regular work on the store: writes refused users that a rule now allows, completes interrupted transfers of addresses, and
//! counts what the store refuses.

use std::{sync::atomic::Ordering, time::Duration};

use kinsync_core::UserId;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::Projector;
use crate::{
    apply::{apply_refused, apply_refused_keys},
    breaker::error_chain,
    email_ownership::Sweep,
    refused_users,
    store::{self, Severity, StoreProblem},
};

/// Interval at which refused users are counted.
const COUNT_EVERY: Duration = Duration::from_secs(3);

/// Refused users named in the status.
const EXAMPLES: usize = 3;

/// What the store refuses, as of a few seconds ago.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RefusedByStore {
    /// Users that the store has nothing of, or not their newest state, because a rule refuses their documents.
    pub users: u64,
    /// Users with documents that lack keys, because a rule refuses them.
    pub incomplete_users: u64,
    /// Some refused users, each with the rule.
    pub examples: Vec<(UserId, String)>,
    /// What conflicts with the documents that kinsync writes: rules of the application, missing indexes.
    pub problems: Vec<StoreProblem>,
    /// Why the last sweep failed; `None` after a complete one.
    pub failure: Option<String>,
}

/// Positions of the sweeps.
#[derive(Debug, Default)]
struct Positions {
    refused: Option<UserId>,
    refused_keys: Option<UserId>,
    emails: Sweep,
}

impl Projector {
    /// Returns what the store refuses.
    pub fn refused(&self) -> watch::Receiver<RefusedByStore> {
        self.refused.subscribe()
    }

    pub(super) async fn sweep_regularly(&self, stop: &CancellationToken) {
        let mut positions = Positions::default();
        let mut next_sweep = Instant::now();
        loop {
            let Some(()) = stop.run_until_cancelled(self.breaker.ready()).await else { return };
            let is_due = self.sweep_soon.swap(false, Ordering::AcqRel) || Instant::now() >= next_sweep;
            match self.maintain(&mut positions, is_due).await {
                Ok(()) => self.breaker.succeeded(),
                Err(error) => {
                    self.breaker.failed(&error);
                    let cause = error_chain(&error);
                    tracing::error!(error = cause, "the sweep of the store failed; the next one repeats it");
                    self.refused.send_modify(|refused| refused.failure = Some(cause));
                }
            }
            if is_due {
                next_sweep = Instant::now() + self.config.sweep_every;
            }
            let pause = tokio::time::sleep(COUNT_EVERY.min(self.config.sweep_every));
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn maintain(&self, positions: &mut Positions, is_due: bool) -> Result<(), store::Error> {
        let problems = if is_due {
            // Before the sweep: it stores what a changed rule allows.
            let problems = self.store.examine().await?;
            self.log_new(&problems);
            self.sweep(positions).await?;
            Some(problems)
        } else {
            None
        };
        let users = refused_users::count(&*self.store).await?;
        let incomplete_users = self.store.count_refused_keys().await?;
        let examples =
            if users == 0 { Vec::new() } else { refused_users::list(&*self.store, None, EXAMPLES).await? };
        let examples = examples.into_iter().map(|refused| (refused.id, refused.user.reason)).collect();
        self.refused.send_if_modified(|refused| {
            let failure = if is_due { None } else { refused.failure.clone() };
            let problems = problems.unwrap_or_else(|| refused.problems.clone());
            let now = RefusedByStore { users, incomplete_users, examples, problems, failure };
            let is_new = *refused != now;
            *refused = now;
            is_new
        });
        Ok(())
    }

    /// Logs problems that the last examination did not find.
    fn log_new(&self, problems: &[StoreProblem]) {
        let known = self.refused.borrow();
        for problem in problems.iter().filter(|problem| !known.problems.contains(problem)) {
            let StoreProblem { subject, what, fix, .. } = problem;
            match problem.severity {
                Severity::Error => tracing::error!(subject, fix, "{what}"),
                Severity::Warning => tracing::warn!(subject, fix, "{what}"),
            }
        }
    }

    /// Writes refused users that the store now accepts, and completes interrupted transfers of addresses.
    async fn sweep(&self, positions: &mut Positions) -> Result<(), store::Error> {
        let now = self.clock.now();
        let users = apply_refused(&*self.store, &mut positions.refused, now).await?;
        if users > 0 {
            tracing::info!(users, "stored users that a rule of the store had refused");
        }
        let users = apply_refused_keys(&*self.store, &mut positions.refused_keys, now).await?;
        if users > 0 {
            tracing::info!(users, "wrote keys that a rule of the store had refused");
        }
        let rows = positions.emails.run(&*self.store, now).await?;
        if rows > 0 {
            tracing::info!(
                rows,
                "resolved email addresses after interrupted writes or changes of the application's documents"
            );
        }
        Ok(())
    }
}
