//! How everything is, for a person at night and for a load balancer.
//!
//! Two questions are kept apart. *Ready*: can a delivery be accepted? That needs the queue, and a secret or keys; it
//! does not need `MongoDB`, because deliveries wait. *Healthy*: is there anything that an operator should look at?

use std::time::Duration;

use kinde::{Jwks, domain::issuer_of, webhook::Scheme};
use kinsync_core::Micros;
use kinsync_engine::{
    breaker::State,
    reconcile::{record::Kind, silence},
};
use serde_json::{Value, json};

use crate::{app::AppState, json as shape, metrics::age};

/// A delivery that could not be stored speaks against readiness for this long. Then senders are let in again, and the
/// next one finds out.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(30);
/// A delivery should not wait longer than this.
const LATE: Duration = Duration::from_mins(1);
/// A run of failed verifications that is no accident.
const RUN: u64 = 10;

/// What was found.
#[derive(Debug)]
pub struct Health {
    /// Why deliveries cannot be accepted; empty: they can.
    pub failing: Vec<String>,
    /// What an operator should look at.
    pub degraded: Vec<String>,
    components: Value,
    uptime: Duration,
}

impl Health {
    /// Looks at everything that is known without asking anybody.
    pub fn of(state: &AppState) -> Self {
        let mut health = Self {
            failing: Vec::new(),
            degraded: Vec::new(),
            components: Value::Null,
            uptime: state.started.elapsed(),
        };
        let now = state.clock.now();
        health.components = json!({
            "webhook": health.webhook(state, now),
            "queue": health.queue(state, now),
            "store": health.store(state),
            "jwks": health.jwks(state),
            "authenticator": health.authenticator(state),
            "reconcile": health.reconcile(state, now),
        });
        health
    }

    /// Whether deliveries can be accepted.
    pub fn is_ready(&self) -> bool {
        self.failing.is_empty()
    }

    /// The document of /health.
    pub fn document(&self) -> Value {
        let problems: Vec<&String> = self.failing.iter().chain(&self.degraded).collect();
        let status = match (self.is_ready(), problems.is_empty()) {
            (false, _) => "failing",
            (true, false) => "degraded",
            (true, true) => "ok",
        };
        json!({
            "status": status,
            "accepting": self.is_ready(),
            "problems": problems,
            "version": env!("CARGO_PKG_VERSION"),
            "uptimeSeconds": self.uptime.as_secs(),
            "components": self.components,
        })
    }

    fn webhook(&mut self, state: &AppState, now: Micros) -> Value {
        let (activity, in_row) = (&state.activity, state.activity.failed_in_row());
        if in_row >= RUN {
            self.degraded.push(format!(
                "{in_row} deliveries in a row failed verification; Kinde disables a webhook after 72 h of failures: \
                 compare KINDE_DOMAIN and KINDE_WEBHOOK_SECRET with the sender's settings"
            ));
        }
        let on: Vec<_> =
            Scheme::ALL.into_iter().filter(|scheme| state.verifier.is_enabled(*scheme)).collect();
        json!({
            "schemes": on.into_iter().map(Scheme::as_str).collect::<Vec<_>>(),
            "secondsSinceLastDelivery": activity.last_delivery().map(|at| age(at, now)),
            "failedVerificationsInARow": in_row,
        })
    }

    fn queue(&mut self, state: &AppState, now: Micros) -> Value {
        let queued = state.queue.stats();
        let oldest = queued.oldest_received_at.map(|at| age(at, now));
        let failed = state.activity.unavailable_since().map(|at| age(at, now));
        if failed.is_some_and(|age| age < UNAVAILABLE_FOR.as_secs_f64()) {
            self.failing.push("a delivery could not be stored a moment ago: the log says why".into());
        }
        if queued.depth >= state.config.queue.max_entries || queued.bytes >= state.config.queue.max_bytes {
            self.failing
                .push("the queue is full: look at the store, or raise KINSYNC_QUEUE_MAX_ENTRIES".into());
        }
        if oldest.is_some_and(|age| age > LATE.as_secs_f64()) {
            self.degraded.push(format!("the oldest of {} waiting deliveries is late", queued.depth));
        }
        if queued.dead_letters > 0 {
            let count = queued.dead_letters;
            self.degraded
                .push(format!("{count} dead letters wait for somebody: `kinsync dead-letters list`"));
        }
        let mut value = shape::queue(&queued);
        value["oldestAgeSeconds"] = json!(oldest);
        value
    }

    fn store(&mut self, state: &AppState) -> Value {
        let breaker = state.breaker.state();
        let error = state.store_error().or_else(|| state.breaker.last_error());
        if breaker != State::Closed || state.store_error().is_some() {
            let kind = state.store_kind;
            self.degraded
                .push(format!("the store ({kind}) cannot be used; deliveries are accepted and wait for it"));
        }
        json!({
            "kind": state.store_kind,
            "prepared": state.store_error().is_none(),
            "breaker": breaker.as_str(),
            "lastError": error,
        })
    }

    fn authenticator(&mut self, state: &AppState) -> Value {
        let Some(authenticator) = &state.authenticator else { return Value::Null };
        let breaker = authenticator.breaker();
        if breaker.state() != State::Closed {
            self.degraded.push("requests of users go on without the store, marked as degraded".into());
        }
        json!({ "breaker": breaker.state().as_str(), "lastError": breaker.last_error() })
    }

    fn reconcile(&mut self, state: &AppState, now: Micros) -> Value {
        let Some(reconcile) = &state.reconcile else { return Value::Null };
        let status = reconcile.status.borrow();
        if let Some(silence) = &status.silence {
            self.degraded.push(format!("{silence}; {}", silence::FIX));
        }
        if let Some(failure) = &status.failure {
            self.degraded.push(format!("users at Kinde could not be compared with the store: {failure}"));
        }
        let held = status.latest.as_ref().filter(|run| run.tally.of(Kind::Held) > 0);
        if let Some(run) = held {
            self.degraded.push(format!(
                "the deletion of {} users is held, because so many are not at Kinde any more: look at `kinsync \
                 runs show {id}`, then `kinsync reconcile --soon --approve {id}`",
                run.tally.of(Kind::Held),
                id = run.id,
            ));
        }
        json!({
            "lastRun": status.latest.as_ref().map(|run| &run.id),
            "secondsSinceLastRun": status.latest.as_ref().map(|run| age(run.started_at, now)),
            "missedByWebhooks": status.latest.as_ref().map(|run| run.tally.missed()),
            "webhookSilent": status.silence,
            "lastError": status.failure,
        })
    }

    fn jwks(&mut self, state: &AppState) -> Value {
        state.key_sets.iter().map(|keys| self.keys(state, keys)).collect()
    }

    fn keys(&mut self, state: &AppState, keys: &Jwks) -> Value {
        let status = keys.status();
        if status.key_count == 0 {
            let problem =
                format!("the keys of {} are not known yet, so what they sign is answered 503", status.issuer);
            let signs_webhooks =
                state.config.kinde.domain.as_ref().map(issuer_of).as_deref() == Some(keys.issuer());
            let others =
                Scheme::ALL.into_iter().any(|s| s != Scheme::KindeJwt && state.verifier.is_enabled(s));
            if signs_webhooks && !others { self.failing.push(problem) } else { self.degraded.push(problem) }
        } else if status.consecutive_failures > 0 {
            self.degraded
                .push(format!("the keys of {} cannot be refreshed; the known ones are used", status.issuer));
        }
        json!({
            "issuer": status.issuer,
            "keys": status.key_count,
            "ageSeconds": status.last_success_age.map(|age| age.as_secs_f64()),
            "fetches": status.fetch_count,
            "failures": status.consecutive_failures,
        })
    }
}
