//! The write path on a store that fails at the Nth call, before or after the effect of the call.
//! For each N, doing the batch again ends where an undisturbed run ends.

use std::collections::HashMap;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use kinsync_core::{Entry, Fact, Micros, Observation, UserId, Value, Version};
use kinsync_engine::internal::{
    apply::apply,
    directory::{Change, Kind, observe},
    email_ownership::Sweep,
    store::{
        Counts, Error, EventFilter, Holder, LogEntry, OldEntries, OldEntry, Outcome, Page, Row, Saved, Store,
        UserEntries, UserFilter,
    },
};
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    histories::{Expected, History, deliveries},
    rebuild::assert_explained,
    stores::{Fresh, on_every_store},
};

/// When the failure strikes.
#[derive(Clone, Copy, Debug)]
enum Strike {
    /// Before the call reaches the store.
    Before,
    /// After the store did it: the answer is lost.
    After,
}

/// A real store that fails the Nth call.
#[derive(Debug)]
struct Failing {
    store: Arc<dyn Store>,
    calls_left: AtomicUsize,
    strike: Strike,
}

impl Failing {
    fn check(&self, now: bool) -> Result<(), Error> {
        if now && self.calls_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(Error::Unavailable { doing: "fail on purpose", source: "injected".into() });
        }
        Ok(())
    }

    fn before(&self) -> Result<(), Error> {
        self.check(matches!(self.strike, Strike::Before))
    }

    fn after<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        self.check(matches!(self.strike, Strike::After)).and(done)
    }
}

#[async_trait]
impl Store for Failing {
    async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error> {
        self.before()?;
        self.after(self.store.load(ids).await)
    }

    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, Error> {
        self.before()?;
        self.after(self.store.write(rows).await)
    }

    async fn replace_entries(&self, entries: &[LogEntry]) -> Result<(), Error> {
        self.before()?;
        self.after(self.store.replace_entries(entries).await)
    }

    async fn old_entries(&self, filter: &OldEntries, limit: usize) -> Result<Vec<OldEntry>, Error> {
        self.before()?;
        self.after(self.store.old_entries(filter, limit).await)
    }

    async fn remove_entries(&self, ids: &[String]) -> Result<(), Error> {
        self.before()?;
        self.after(self.store.remove_entries(ids).await)
    }

    async fn deleted_before(
        &self,
        at: Micros,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        self.before()?;
        self.after(self.store.deleted_before(at, after, limit).await)
    }

    async fn count_members(&self, codes: &[String]) -> Result<HashMap<String, u64>, Error> {
        self.store.count_members(codes).await
    }

    async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error> {
        self.before()?;
        self.after(self.store.claimants(emails).await)
    }

    async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, Error> {
        self.before()?;
        self.after(self.store.email_holders(emails).await)
    }

    async fn conflicted(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        self.before()?;
        self.after(self.store.conflicted(after, limit).await)
    }

    async fn link(&self, row: &Row) -> Result<Outcome, Error> {
        self.before()?;
        self.after(self.store.link(row).await)
    }

    async fn pending_emails(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        self.store.pending_emails(after, limit).await
    }

    async fn log(&self, events: &[LogEntry]) -> Result<Vec<usize>, Error> {
        self.store.log(events).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Page<LogEntry>, Error> {
        self.store.events(filter).await
    }

    async fn count_user_entries(&self, user: &str) -> Result<u64, Error> {
        self.store.count_user_entries(user).await
    }

    async fn user_entries(
        &self,
        after: &str,
        until: Option<&str>,
        limit: usize,
    ) -> Result<UserEntries, Error> {
        self.store.user_entries(after, until, limit).await
    }

    async fn event(&self, event_id: &str) -> Result<Option<LogEntry>, Error> {
        self.store.event(event_id).await
    }

    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, Error> {
        self.store.users(filter).await
    }

    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        self.store.ids(after, limit).await
    }

    async fn referring(
        &self,
        ids: &[String],
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        self.store.referring(ids, after, limit).await
    }

    async fn state(&self, key: &str) -> Result<Option<Saved>, Error> {
        self.store.state(key).await
    }

    async fn put_state(&self, key: &str, value: &serde_json::Value, expected: i64) -> Result<bool, Error> {
        self.store.put_state(key, value, expected).await
    }

    async fn states(&self, keys: &[String]) -> Result<Vec<Option<Saved>>, Error> {
        self.store.states(keys).await
    }

    async fn list_states(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, Error> {
        self.store.list_states(prefix, after, limit).await
    }

    async fn due_states(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, Saved)>, Error> {
        self.store.due_states(after, limit).await
    }

    async fn count_states(&self, prefix: &str) -> Result<u64, Error> {
        self.store.count_states(prefix).await
    }

    async fn remove_states(&self, records: &[(String, i64)]) -> Result<(), Error> {
        self.store.remove_states(records).await
    }

    async fn counts(&self) -> Result<Counts, Error> {
        self.store.counts().await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.store.ping().await
    }
}

/// Applies the batches through a store that fails at call `n`. Answers whether it failed.
async fn disturbed(store: &Arc<dyn Store>, batches: &[Vec<Observation>], n: usize, strike: Strike) -> bool {
    let failing = Failing { store: store.clone(), calls_left: AtomicUsize::new(n), strike };
    let mut failed = false;
    for batch in batches {
        let applied = apply(&failing, batch.iter().cloned(), Micros(1)).await;
        failed |= applied.map_or(true, |applied| applied.unresolved.is_some());
    }
    failed
}

/// `recover` is what happens after the failure: a redelivery, or a sweep alone.
async fn every_failure_is_recovered_from(fresh: Fresh, strike: Strike, by_sweep: bool) {
    // The projector stores what events contain of roles before it applies the observations of users.
    let admin = Entry::observed([(Fact::Key, Value::from("admin"))], &Version::provisional());
    let role = Change { kind: Kind::Role, id: "r".into(), entry: admin };
    observe(&*fresh.store, vec![role]).await.expect("the store answers");
    for n in 0.. {
        let mut rng = StdRng::seed_from_u64(7);
        let mut batches: Vec<Vec<Observation>> = Vec::new();
        for seed in 0..6_u64 {
            let name = format!("{strike:?}{by_sweep}{n}s{seed}");
            let arrivals = deliveries(History::random(&name, seed), &mut rng);
            batches.push(arrivals.into_iter().map(|arrival| arrival.observation).collect());
        }
        let failed = disturbed(&fresh.store, &batches, n, strike).await;
        let expected = Expected::of(batches.iter().flatten());
        if by_sweep {
            // The failed batch comes again; whatever an earlier one left is found by the sweep.
            let all: Vec<Observation> = batches.iter().flatten().cloned().collect();
            Sweep::default().run(&*fresh.store, Micros(2)).await.expect("the store answers");
            apply(&*fresh.store, all, Micros(2)).await.expect("the store answers");
        } else {
            for batch in &batches {
                apply(&*fresh.store, batch.iter().cloned(), Micros(2)).await.expect("the store answers");
            }
        }
        expected
            .assert_stored(&*fresh.store, &format!("{} failing at call {n} {strike:?}", fresh.name))
            .await;
        assert_explained(&*fresh.store, &format!("failure of call {n}")).await;
        if !failed {
            assert!(n > 10, "the loop reached every call");
            break;
        }
    }
}

on_every_store! {
    a_call_that_never_reached_the_store_is_repeated
    a_call_with_a_lost_response_is_repeated
    an_interrupted_transfer_is_completed_by_the_sweep
}

async fn a_call_that_never_reached_the_store_is_repeated(fresh: Fresh) {
    every_failure_is_recovered_from(fresh, Strike::Before, false).await;
}

async fn a_call_with_a_lost_response_is_repeated(fresh: Fresh) {
    every_failure_is_recovered_from(fresh, Strike::After, false).await;
}

async fn an_interrupted_transfer_is_completed_by_the_sweep(fresh: Fresh) {
    every_failure_is_recovered_from(fresh, Strike::After, true).await;
}
