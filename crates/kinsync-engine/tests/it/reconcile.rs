//! A local Kinde, a store and what stands between them, for the tests of reconciliation.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use kinde::{
    management::{self, Client},
    webhook::Scheme,
};
use kinde_emulator::{Emulator, Fault, FaultKind, NewUser, User, WebhookSpec};
use kinsync_core::{UserDocument, UserId};
use kinsync_engine::{
    Clock,
    internal::{
        projector,
        queue::{Entry, Payload},
        reconcile::{
            Config, Error, Reconciler,
            record::{Run, RunMode},
        },
        store::{Row, UserFilter},
    },
};
use secrecy::SecretString;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    pipeline::{dead_letters, drain, engine},
    rebuild::assert_explained,
    stores::Fresh,
};

/// Longer than anything takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// A local Kinde, a store, and what stands between them.
pub(crate) struct World {
    pub(crate) kinde: Emulator,
    pub(crate) fresh: Fresh,
    /// The folder of the queue.
    dir: tempfile::TempDir,
}

pub(crate) fn quick() -> Config {
    let pause = Duration::from_millis(5);
    Config { between_reads: pause, replica_lag: pause, ..Config::default() }
}

impl World {
    pub(crate) async fn new(fresh: Fresh) -> Self {
        Self::with(fresh, kinde_emulator::Config::default()).await
    }

    pub(crate) async fn with(fresh: Fresh, config: kinde_emulator::Config) -> Self {
        let kinde = Emulator::start(config).await.expect("a free port");
        // An endpoint without notifications: its deliveries list every event.
        kinde.set_fault(Fault::always(FaultKind::Drop));
        kinde.add_webhook(WebhookSpec::new("http://127.0.0.1:9/".parse().expect("an address")));
        Self { kinde, fresh, dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn client(&self, page_size: u32) -> Client {
        Client::new(self.settings(page_size)).expect("the emulator's own settings")
    }

    pub(crate) fn settings(&self, page_size: u32) -> management::Config {
        let config = self.kinde.config();
        let domain = self.kinde.issuer().parse().expect("an address");
        let secret = SecretString::from(config.client_secret.clone());
        let mut settings = management::Config::new(domain, config.client_id.as_str(), secret);
        settings.page_size = page_size;
        settings.clock_allowance = Duration::ZERO;
        settings.retry.max_attempts = 2;
        settings.retry.initial_backoff = Duration::from_millis(1);
        settings
    }

    pub(crate) fn reconciler(&self, page_size: u32, config: Config) -> Reconciler {
        Reconciler::new(self.client(page_size), self.fresh.store.clone(), Clock::system(), config)
    }

    pub(crate) async fn run(&self, mode: RunMode) -> Result<Run, Error> {
        self.reconciler(10, quick()).run(mode, &|_| {}, &CancellationToken::new()).await
    }

    pub(crate) async fn reconcile(&self) -> Run {
        self.run(RunMode::Reconcile).await.expect("Kinde and the store answer")
    }

    pub(crate) fn import(&self, users: usize) -> Vec<String> {
        let named = |n| NewUser::named(&format!("user{n}@example.com"), &format!("First {n}"), "Last");
        (0..users).map(|n| self.kinde.import_user(named(n)).expect("a new address").id).collect()
    }

    /// Every event that there was, in order.
    pub(crate) fn events(&self) -> Vec<Entry> {
        let deliveries = self.kinde.deliveries();
        let events = deliveries.iter().filter_map(|delivery| self.kinde.event(&delivery.event_id));
        events
            .map(|event| {
                let payload = serde_json::json!({
                    "type": event.kind, "event_id": event.id, "timestamp": event.at.to_string(), "data": event.data,
                });
                Entry {
                    event_id: event.id.clone(),
                    received_at: Clock::system().now(),
                    payload: Payload::Delivery {
                        scheme: Scheme::KindeJwt,
                        signed_at: None,
                        body: Bytes::from(payload.to_string()),
                    },
                }
            })
            .collect()
    }

    pub(crate) async fn deliver(&self, entries: Vec<Entry>) {
        self.deliver_with(entries, projector::Config::default()).await;
    }

    pub(crate) async fn deliver_with(&self, entries: Vec<Entry>, config: projector::Config) {
        let engine = engine(self.dir.path(), &self.fresh.store, config).await;
        for entry in entries {
            engine.queue().enqueue(entry).await.expect("the queue takes it");
        }
        drain(&engine).await;
        assert_eq!(dead_letters(&engine).await, 0);
        engine.stop().await;
    }

    pub(crate) async fn documents(&self) -> BTreeMap<String, UserDocument> {
        let filter = UserFilter { with_deleted: true, limit: 10_000, ..UserFilter::default() };
        let rows = self.fresh.store.users(&filter).await.expect("the store answers");
        rows.iter().map(|row| (row.id.to_string(), row.document())).collect()
    }

    pub(crate) async fn row(&self, id: &str) -> Row {
        let id = UserId::parse(id).expect("an id");
        self.fresh.store.load(&[id]).await.expect("the store answers").pop().flatten().expect("stored")
    }

    /// Panics unless the live users of the store are Kinde's, field by field.
    pub(crate) async fn assert_equal(&self, when: &str) {
        let name = self.fresh.name;
        let stored = self.documents().await;
        let users = self.kinde.users();
        for user in &users {
            let found =
                stored.get(&user.id).unwrap_or_else(|| panic!("{name}, {when}: {} is missing", user.id));
            assert_eq!(difference(user, found), None, "{name}, {when}: {}", user.id);
        }
        let live = stored.values().filter(|document| !document.is_deleted).count();
        assert_eq!(live, users.len(), "{name}, {when}: no other user is live");
        assert_explained(&*self.fresh.store, &format!("{name}, {when}")).await;
    }

    /// Waits until a read of Kinde is newer than everything that happened there, also one that takes a second longer.
    pub(crate) async fn later(&self) {
        let now = kinsync_testing::wall_clock() + Duration::from_secs(1);
        let deadline = Instant::now() + DEADLINE;
        loop {
            let page = self.client(1).users().next().await.expect("Kinde answers").expect("a first page");
            if page.timing.as_of > now {
                return;
            }
            assert!(Instant::now() < deadline, "Kinde's clock stands");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits for another request to Kinde.
pub(crate) async fn until_requested(world: &World, route: &str, before: u64) {
    let deadline = Instant::now() + DEADLINE;
    while world.kinde.requests(route) <= before {
        assert!(Instant::now() < deadline, "no request to Kinde");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Differences between a stored user and Kinde's, without addresses in a conflict.
fn difference(user: &User, found: &UserDocument) -> Option<String> {
    let email = found.email.clone().or_else(|| found.email_conflict.as_ref().map(|held| held.email.clone()));
    let codes = |mut codes: Vec<String>| {
        codes.sort();
        codes
    };
    let kinde = (
        (&user.email, &user.first_name, &user.last_name, &user.phone),
        (&user.username, &user.picture, &user.provided_id, Some(user.is_suspended)),
        codes(user.organizations.iter().map(|one| one.code.clone()).collect()),
        user.created_on.as_microsecond(),
        false,
    );
    let stored = (
        (&email, &found.first_name, &found.last_name, &found.phone),
        (&found.username, &found.picture, &found.provided_id, found.is_suspended),
        codes(found.organizations.iter().flatten().map(|one| one.code.clone()).collect()),
        found.created_at.0,
        found.is_deleted,
    );
    // Kinde writes down the sign-in, and then its event.
    let signed_in =
        (user.last_signed_in.map(jiff::Timestamp::as_microsecond), found.last_signed_in_at.map(|at| at.0));
    let is_same_sign_in = match signed_in {
        (Some(kinde), Some(stored)) => (0..1_000_000).contains(&(stored - kinde)),
        (kinde, stored) => kinde.is_none() && stored.is_none(),
    };
    (kinde != stored || !is_same_sign_in)
        .then(|| format!("Kinde has {kinde:?}, stored is {stored:?}, signed in {signed_in:?}"))
}
