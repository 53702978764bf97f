//! Turns queued events into documents: claims a batch, decodes it, applies it, acks it.
//!
//! An entry that cannot be decoded is logged and dead-lettered with a reason. A failure of the store
//! pauses the projector; a failure of one user is retried apart from the others, and dead-lettered
//! only when the module `evidence` shows that it is about this user: the writes of others succeed.

mod evidence;
mod logged;
mod piece;
mod quarantine;
mod upkeep;
mod without_time;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kinsync_core::{Micros, UserId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::upkeep::RefusedByStore;
use crate::{
    apply::{Applied, apply_logged},
    breaker::Breaker,
    clock::Clock,
    decode, directory,
    erasure::ErasedUsers,
    pending_checks::PendingChecks,
    queue::{self, Claimed, EntryId, Queue},
    random,
    spread::{self, Spread},
    store::{self, EventFilter, LogEntry, Store, WRITE_USERS},
};
use evidence::{Evidence, Scope, Verdict};
use piece::{Item, Piece};

/// Settings of the projector.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Maximum entries per claim. All entries of one user in a batch cost one write.
    pub batch: usize,
    /// Concurrent batches: one is decoded while another is written.
    pub workers: usize,
    /// Tolerated lead of an event's time over kinsync's clock. An event beyond it is quarantined.
    pub future_tolerance: Duration,
    /// Interval of the sweep for refused users, interrupted transfers of email addresses and outdated email conflicts. Quarantined
    /// events are released at four times this interval.
    pub sweep_every: Duration,
    /// Lease of claimed entries. After it another projector may claim them too, which is safe but repeats work.
    pub lease: Duration,
    /// Whether to request a check at Kinde of each user with an event without a time or one that cannot be decoded. Pointless
    /// without a reconciler.
    pub check_without_time: bool,
    /// Whether to request a re-read of each role with an event: events contain no permissions of the role. Pointless without a
    /// reconciler that compares roles.
    pub check_roles: bool,
    /// Pause before a user that could not be written is tried again, apart from the others. Doubles
    /// with each failure, up to eight times as long.
    pub retry_after: Duration,
    /// Settings of the spread of changed organizations, roles and permissions.
    pub spread: spread::Config,
}

/// Pause after a failure of the queue, and before entries are claimed again after their dead letter could not be written.
const PAUSE: Duration = Duration::from_secs(1);

/// Attempts to apply a batch before it is split.
const ATTEMPTS: u32 = 2;

/// Users from which one is chosen to check whether the store accepts writes.
const CANDIDATES: usize = 16;

impl Default for Config {
    fn default() -> Self {
        Self {
            batch: 1280,
            workers: 2,
            future_tolerance: decode::FUTURE_TOLERANCE,
            sweep_every: Duration::from_secs(30),
            lease: Duration::from_mins(5),
            check_without_time: false,
            check_roles: false,
            retry_after: Duration::from_millis(250),
            spread: spread::Config::default(),
        }
    }
}

/// Turns queued events into documents.
#[derive(Debug)]
pub struct Projector {
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    breaker: Breaker,
    clock: Clock,
    config: Config,
    evidence: Evidence,
    erased: ErasedUsers,
    refused: watch::Sender<RefusedByStore>,
    spread: Arc<Spread>,
    /// Whether the next look at the store sweeps, although its time has not come.
    sweep_soon: AtomicBool,
}

impl Projector {
    /// Returns a projector. [`Self::run`] starts it.
    pub fn new(
        queue: Arc<dyn Queue>,
        store: Arc<dyn Store>,
        breaker: Breaker,
        clock: Clock,
        config: Config,
    ) -> Self {
        let spread = Arc::new(Spread::new(Arc::clone(&store), clock.clone(), config.spread));
        let evidence = Evidence::new(config.retry_after);
        let (refused, sweep_soon) = (watch::Sender::default(), AtomicBool::new(false));
        Self {
            queue,
            store,
            breaker,
            clock,
            config,
            evidence,
            erased: ErasedUsers::default(),
            refused,
            spread,
            sweep_soon,
        }
    }

    /// Returns the spread of changed organizations, roles and permissions, which this projector wakes.
    pub fn spread(&self) -> &Arc<Spread> {
        &self.spread
    }

    /// Runs until `stop` is cancelled, then completes writes in progress. Other entries stay in the queue.
    pub async fn run(&self, stop: CancellationToken) {
        let workers = (0..self.config.workers).map(|_| self.work(&stop));
        tokio::join!(
            futures_util::future::join_all(workers),
            self.sweep_regularly(&stop),
            self.follow_regularly(&stop),
            self.release_regularly(&stop)
        );
    }

    async fn work(&self, stop: &CancellationToken) {
        while let Some(claimed) = stop.run_until_cancelled(self.claim()).await {
            match claimed {
                Ok(claimed) => self.project(claimed, stop).await,
                Err(queue::Error::Closed) => return,
                Err(error) => {
                    tracing::error!(
                        error = crate::breaker::error_chain(&error),
                        "claiming from the queue failed"
                    );
                    stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                }
            }
        }
    }

    async fn claim(&self) -> Result<Vec<Claimed>, queue::Error> {
        self.queue.claim(self.config.batch, self.config.lease).await
    }

    /// Decodes, applies and acks one batch. Returns without an ack only if stopped.
    async fn project(&self, claimed: Vec<Claimed>, stop: &CancellationToken) {
        let items = self.decode(claimed).await;
        let (apart, together): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|item| self.evidence.has_failed(item.subject()));
        for (items, attempts) in [(together, ATTEMPTS), (apart, 1)] {
            if !items.is_empty() && self.persist(Piece::new(items, attempts), stop).await.is_none() {
                return;
            }
        }
    }

    async fn decode(&self, claimed: Vec<Claimed>) -> Vec<Item> {
        let limit = self.latest();
        let batch = claimed.len();
        let mut items = Vec::with_capacity(batch);
        for (n, claimed) in claimed.into_iter().enumerate() {
            if n % 64 == 63 {
                // New deliveries, which wait for their response, have priority.
                tokio::task::yield_now().await;
            }
            items.push(Item::new(claimed, limit, batch));
        }
        items
    }

    /// Logs the events and applies the observations. Splits what fails in half again and again, until
    /// what fails is alone and the others are done. Releases the rest when nothing succeeds. `None`:
    /// stopped.
    async fn persist(&self, batch: Piece, stop: &CancellationToken) -> Option<()> {
        let most = ATTEMPTS + batch.items.len().ilog2();
        let mut failed_in_a_row = 0;
        // Small pieces come first: after an outage ever larger ones follow.
        let mut pieces = vec![batch];
        while let Some(mut piece) = pieces.pop() {
            stop.run_until_cancelled(self.breaker.ready()).await?;
            let Err(error) = self.try_persist(&mut piece).await else {
                failed_in_a_row = 0;
                continue;
            };
            self.breaker.failed(&error);
            failed_in_a_row += 1;
            piece.attempts = piece.attempts.saturating_sub(1);
            if piece.attempts > 0 {
                pieces.push(piece);
            } else if piece.is_about_one() {
                let reason = crate::breaker::error_chain(&error);
                let scope = if error.may_concern_one_user() { Scope::Call } else { Scope::Store };
                let verdict = self.put_apart(piece.items, scope, &reason).await;
                if verdict == Verdict::RetryUnproved {
                    self.try_another_user().await;
                }
            } else {
                pieces.extend(piece.split());
            }
            if failed_in_a_row > most {
                // Everything fails, so which entry it is cannot be found out now.
                let items = pieces.into_iter().flat_map(|piece| piece.items);
                let ids: Vec<EntryId> = items.map(|item| item.id).collect();
                self.release(&ids, self.config.retry_after).await;
                return Some(());
            }
        }
        Some(())
    }

    /// Applies a piece and acks it. `Err` when the store failed as a whole.
    async fn try_persist(&self, piece: &mut Piece) -> Result<(), store::Error> {
        if !piece.is_logged {
            self.mark_erased(&mut piece.items).await?;
            let events: Vec<_> = piece.items.iter().map(Item::logged).collect();
            let known = self.store.log(&events).await?;
            count("duplicate", known.len());
            self.recall(&mut piece.items, &known).await?;
            piece.is_logged = true;
        }
        self.request_checks(&piece.items).await?;
        // Before the users: their documents show what is known of organizations, roles and permissions.
        if directory::observe_events(&*self.store, piece.changes(), piece.named()).await? {
            self.spread.wake();
        }
        if self.config.check_roles {
            PendingChecks::request_roles(&*self.store, &piece.changed_roles()).await?;
        }
        let applied = apply_logged(&*self.store, piece.observations(), self.clock.now()).await?;
        let nothing_written = applied.changed.is_empty() && applied.failed.len() > 1;
        if let (Some((_, reason)), true) = (applied.failed.first(), nothing_written) {
            self.breaker.failed(&refused_all(reason));
        } else {
            self.breaker.succeeded();
        }
        if let Some(error) = &applied.unresolved {
            // No reason to hold the entries: their rows are written, with a mark that the next sweep finds.
            tracing::warn!(
                error = crate::breaker::error_chain(error),
                "deciding owners of email addresses failed"
            );
            self.sweep_soon.store(true, Ordering::Release);
        }
        let items = std::mem::take(&mut piece.items);
        if let Err(error) = self.finish(items, applied).await {
            // Unacked entries are delivered again, and the repetition changes nothing.
            tracing::error!(
                error = crate::breaker::error_chain(&error),
                "acking a batch failed; its entries are delivered again"
            );
        }
        Ok(())
    }

    /// Marks the entries of erased users: of them only that they arrived is logged, and none becomes a dead letter.
    async fn mark_erased(&self, items: &mut [Item]) -> Result<(), store::Error> {
        let users = items.iter().flat_map(Item::named_users).collect();
        let erased = self.erased.among(&*self.store, &users).await?;
        if !erased.is_empty() {
            for item in items {
                item.is_erased = !item.named_users().is_disjoint(&erased);
            }
        }
        Ok(())
    }

    fn latest(&self) -> Micros {
        decode::latest(self.clock.now(), self.config.future_tolerance)
    }

    /// Acks applied entries first, so that a failed dead letter does not delay them.
    async fn finish(&self, items: Vec<Item>, applied: Applied) -> Result<(), queue::Error> {
        let failed: HashMap<UserId, String> = applied.failed.into_iter().collect();
        let (mut done, mut dead, mut apart) = (Vec::new(), Vec::new(), HashMap::new());
        for item in items {
            let of_failed = item.user().filter(|user| failed.contains_key(*user)).cloned();
            if item.ends_as_marker() {
                done.push(item);
            } else if let Err(failure) = &item.decoded.observations {
                let reason = failure.to_string();
                dead.push((item, reason));
            } else if let Some(user) = of_failed {
                apart.entry(user).or_insert_with(Vec::new).push(item);
            } else {
                self.measure(&item.decoded.event);
                self.evidence.remove(item.subject());
                done.push(item);
            }
        }
        for user in applied.users_to_recheck {
            metrics::counter!("kinsync_resurrections_refused_total").increment(1);
            tracing::warn!(
                user = user.as_str(),
                "an event names a deleted user; events never restore one, Kinde is read instead"
            );
        }
        let ids: Vec<EntryId> = done.iter().map(|item| item.id.clone()).collect();
        let acked = self.ack(&ids).await;
        let outcome = if acked.is_ok() { "applied" } else { "released" };
        for item in done {
            item.span.record("outcome", outcome);
        }
        let mut verdicts = Vec::with_capacity(apart.len());
        for (user, items) in apart {
            verdicts.push(self.put_apart(items, Scope::Row, &failed[&user]).await);
        }
        if !applied.changed.is_empty() {
            self.evidence.wrote();
        } else if verdicts.contains(&Verdict::RetryUnproved) {
            self.try_another_user().await;
        }
        self.dead_letter(dead).await?;
        acked
    }

    /// Acks entries. When that fails they are released: applied again, they change nothing.
    async fn ack(&self, ids: &[EntryId]) -> Result<(), queue::Error> {
        if let Err(error) = self.queue.ack(ids).await {
            self.release(ids, PAUSE).await;
            return Err(error);
        }
        count("applied", ids.len());
        Ok(())
    }

    /// Retries the entries of one subject apart from the others, or dead-letters them.
    async fn put_apart(&self, items: Vec<Item>, scope: Scope, reason: &str) -> Verdict {
        let subject = items.first().map(|item| item.subject().to_owned()).unwrap_or_default();
        let (verdict, pause) = self.evidence.failed(&subject, scope);
        tracing::debug!(subject, reason, ?verdict, "applying the entries of one user failed");
        if verdict != Verdict::DeadLetter {
            let id = |item: Item| {
                item.span.record("outcome", "released");
                item.id
            };
            let ids: Vec<EntryId> = items.into_iter().map(id).collect();
            self.release(&ids, pause).await;
            return verdict;
        }
        let dead = items.into_iter().map(|item| (item, refused(reason))).collect();
        match self.dead_letter(dead).await {
            Ok(()) => self.evidence.remove(&subject),
            Err(error) => tracing::error!(
                error = crate::breaker::error_chain(&error),
                "writing a dead letter failed; the entry is claimed again"
            ),
        }
        verdict
    }

    /// Tests with another user and a logged event whether the store accepts what it failed to do.
    async fn try_another_user(&self) {
        if let Ok(true) = self.accepts_another_user().await {
            self.breaker.succeeded();
            self.evidence.wrote();
        }
    }

    async fn accepts_another_user(&self) -> Result<bool, store::Error> {
        let mut ids = self.store.ids(None, CANDIDATES).await?;
        ids.retain(|id| !self.evidence.has_failed(id.as_str()));
        if ids.is_empty() {
            return Ok(false);
        }
        let id = ids.swap_remove(usize::from(random::number::<u16>()) % ids.len());
        let Some(row) = self.store.load(&[id]).await?.into_iter().flatten().next() else { return Ok(false) };
        // Logged once more, an event changes nothing.
        let newest = self.store.events(&EventFilter { limit: 1, ..EventFilter::default() }).await?;
        self.store.log(&newest).await?;
        self.store.accepts_write_of(&row).await
    }

    /// Releases entries, to be claimed again after a pause.
    async fn release(&self, ids: &[EntryId], pause: Duration) {
        if let Err(error) = self.queue.retry(ids, pause).await {
            tracing::error!(
                error = crate::breaker::error_chain(&error),
                "releasing entries failed; they are claimed again when their lease ends"
            );
        }
    }

    /// Dead-letters entries. After a failure they are released and claimed again after a pause.
    async fn dead_letter(&self, items: Vec<(Item, String)>) -> Result<(), queue::Error> {
        if items.is_empty() {
            return Ok(());
        }
        let dead: Vec<_> = items.iter().map(|(item, reason)| (item.id.clone(), reason.clone())).collect();
        if let Err(error) = self.queue.dead_letter(&dead).await {
            let ids: Vec<_> = dead.into_iter().map(|(id, _)| id).collect();
            self.queue.retry(&ids, PAUSE).await?;
            for (item, _) in &items {
                item.span.record("outcome", "released");
            }
            return Err(error);
        }
        for (item, reason) in &items {
            item.span.record("outcome", "dead_lettered");
            tracing::warn!(event = item.decoded.event.id, reason, "an event became a dead letter");
        }
        count("dead_lettered", items.len());
        Ok(())
    }

    fn measure(&self, event: &LogEntry) {
        let now = self.clock.now();
        metrics::histogram!("kinsync_lag_seconds", "from" => "receipt")
            .record(seconds(event.received_at, now));
        if let Some(at) = event.at {
            metrics::histogram!("kinsync_lag_seconds", "from" => "kinde").record(seconds(at, now));
            metrics::histogram!("kinsync_time_to_consistency_seconds", "source" => "webhook")
                .record(seconds(at, now));
        }
    }
}

fn refused(reason: &str) -> String {
    format!("the store refused the user: {reason}")
}

fn refused_all(reason: &str) -> store::Error {
    store::Error::Unavailable {
        doing: WRITE_USERS,
        source: format!("every write is refused: {reason}").into(),
    }
}

fn count(outcome: &'static str, events: usize) {
    metrics::counter!("kinsync_events_total", "outcome" => outcome).increment(events as u64);
}

#[expect(clippy::cast_precision_loss, reason = "a metric")]
fn seconds(from: Micros, to: Micros) -> f64 {
    to.0.saturating_sub(from.0).max(0) as f64 / 1e6
}
