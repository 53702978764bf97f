//! Sends deliveries: one dispatcher per endpoint, bounded concurrency, Kinde's retry schedule. Only status 200 is a
//! success. An endpoint that fails for too long is disabled.
//!
//! Invariant: every queued delivery is counted once in `pending` until it ends.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::queue::{Job, Queue};
use super::{Delivery, DeliveryState, Error, Stats, Webhook};
use crate::event::Event;
use crate::faults::{DeliveryPlan, Faults};
use crate::keys::Keyring;
use crate::webhook::{WebhookSpec, delivery_id};
use crate::{clock, config::Config};

#[derive(Clone)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    schedule: Vec<Duration>,
    keys: Arc<RwLock<Keyring>>,
    faults: Arc<Mutex<Faults>>,
    client: reqwest::Client,
    runtime: Handle,
    tasks: TaskTracker,
    cancel: CancellationToken,
    pending: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    endpoints: BTreeMap<String, Endpoint>,
    records: BTreeMap<u64, Delivery>,
    next_number: u64,
    /// Numbers of the pending deliveries. The result of an attempt with another number is ignored.
    open: HashSet<u64>,
    stats: Stats,
}

struct Endpoint {
    spec: WebhookSpec,
    created_on: Timestamp,
    disabled: bool,
    failing_since: Option<Instant>,
    queue: Queue,
    wake: Arc<Notify>,
    stop: CancellationToken,
}

/// The outcome of an attempt.
enum Outcome {
    Status(u16),
    NoResponse(String),
}

impl Engine {
    pub(crate) fn new(
        config: Arc<Config>,
        keys: Arc<RwLock<Keyring>>,
        faults: Arc<Mutex<Faults>>,
        tasks: TaskTracker,
        cancel: CancellationToken,
    ) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(config.delivery.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        let shared = Shared {
            schedule: config.retry.schedule(),
            config,
            keys,
            faults,
            client,
            runtime: Handle::current(),
            tasks,
            cancel,
            pending: watch::Sender::new(0),
            state: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn add(&self, id: &str, spec: WebhookSpec, created_on: Timestamp) {
        let (wake, stop) = (Arc::new(Notify::new()), self.shared.cancel.child_token());
        let endpoint = Endpoint {
            spec,
            created_on,
            disabled: false,
            failing_since: None,
            queue: Queue::default(),
            wake: Arc::clone(&wake),
            stop: stop.clone(),
        };
        self.state().endpoints.insert(id.to_owned(), endpoint);
        let (engine, id) = (self.clone(), id.to_owned());
        let dispatch = async move {
            let _ = stop.run_until_cancelled(engine.dispatch(&id, &wake)).await;
        };
        self.shared.tasks.spawn_on(dispatch, &self.shared.runtime);
    }

    pub(crate) fn edit(&self, id: &str, change: impl FnOnce(&mut WebhookSpec)) -> Result<(), Error> {
        let mut state = self.state();
        change(&mut state.endpoint(id)?.spec);
        Ok(())
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), Error> {
        let mut state = self.state();
        let mut endpoint = state.endpoints.remove(id).ok_or_else(|| Error::UnknownWebhook(id.to_owned()))?;
        endpoint.stop.cancel();
        state.abandon(endpoint.queue.drain());
        self.publish(&state);
        Ok(())
    }

    pub(crate) fn disable(&self, id: &str) -> Result<(), Error> {
        let mut state = self.state();
        let endpoint = state.endpoint(id)?;
        endpoint.disabled = true;
        let dropped = endpoint.queue.drain();
        state.abandon(dropped);
        self.publish(&state);
        Ok(())
    }

    pub(crate) fn enable(&self, id: &str) -> Result<(), Error> {
        let mut state = self.state();
        let endpoint = state.endpoint(id)?;
        (endpoint.disabled, endpoint.failing_since) = (false, None);
        Ok(())
    }

    pub(crate) fn webhooks(&self) -> Vec<Webhook> {
        let show = |(id, endpoint): (&String, &Endpoint)| Webhook {
            id: id.clone(),
            spec: endpoint.spec.clone(),
            created_on: endpoint.created_on,
            disabled: endpoint.disabled,
            waiting: endpoint.queue.len(),
        };
        self.state().endpoints.iter().map(show).collect()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.state().stats
    }

    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.state().records.values().cloned().collect()
    }

    /// Removes records and counters, and abandons pending deliveries.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        for endpoint in state.endpoints.values_mut() {
            drop(endpoint.queue.drain());
            (endpoint.disabled, endpoint.failing_since) = (false, None);
        }
        state.records.clear();
        state.open.clear();
        state.stats = Stats::default();
        self.publish(&state);
    }

    pub(crate) fn count_silenced(&self) {
        self.state().stats.silenced += 1;
    }

    /// Queues an event for every endpoint that is subscribed to its type.
    pub(crate) fn queue(&self, event: &Arc<Event>) {
        let mut state = self.state();
        state.stats.events += 1;
        let subscribed: Vec<String> = state
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.spec.is_subscribed_to(&event.kind))
            .map(|(id, _)| id.clone())
            .collect();
        for id in subscribed {
            let plan = lock(&self.shared.faults).plan(&event.kind);
            state.queue(&id, event, plan, self.shared.config.delivery.log);
        }
        self.publish(&state);
    }

    /// Waits until no delivery is pending. Cancel safe.
    ///
    /// # Errors
    /// [`Error::StillPending`] if deliveries are pending after `deadline`.
    pub(crate) async fn quiesce(&self, deadline: Duration) -> Result<(), Error> {
        let mut pending = self.shared.pending.subscribe();
        let idle = pending.wait_for(|pending| *pending == 0);
        let waited = tokio::time::timeout(deadline, idle).await.map(drop);
        waited.map_err(|_| Error::StillPending { pending: self.stats().pending })
    }

    /// Starts due attempts, up to `max_in_flight` at a time, until the endpoint is removed.
    async fn dispatch(&self, id: &str, wake: &Notify) {
        let permits = Arc::new(Semaphore::new(self.shared.config.delivery.max_in_flight.max(1)));
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let Some(job) = self.next_due(id, wake).await else { return };
            let (engine, id) = (self.clone(), id.to_owned());
            self.shared.tasks.spawn(async move {
                let cancel = engine.shared.cancel.clone();
                let _ = cancel.run_until_cancelled(engine.attempt(&id, job, permit)).await;
            });
        }
    }

    /// Waits for the next due delivery. Returns `None` if the endpoint was removed.
    async fn next_due(&self, id: &str, wake: &Notify) -> Option<Job> {
        loop {
            let due = match self.state().endpoints.get_mut(id)?.queue.pop(Instant::now()) {
                Ok(job) => return Some(job),
                Err(due) => due,
            };
            match due {
                Some(due) => drop(tokio::time::timeout_at(due, wake.notified()).await),
                None => wake.notified().await,
            }
        }
    }

    async fn attempt(&self, id: &str, mut job: Job, _permit: OwnedSemaphorePermit) {
        let spec = self.state().endpoints.get(id).map(|endpoint| endpoint.spec.clone());
        let outcome = match spec {
            Some(spec) => self.send(&spec, &mut job).await,
            None => Outcome::NoResponse("the webhook was removed".to_owned()),
        };
        job.attempts += 1;
        match &outcome {
            Outcome::Status(status) => {
                tracing::debug!(
                    event_id = job.event.id,
                    attempt = job.attempts,
                    status,
                    "delivery attempt answered"
                );
            }
            Outcome::NoResponse(why) => {
                tracing::debug!(
                    event_id = job.event.id,
                    attempt = job.attempts,
                    why,
                    "delivery attempt failed"
                );
            }
        }
        let mut state = self.state();
        self.complete(&mut state, id, job, &outcome);
        self.publish(&state);
    }

    async fn send(&self, spec: &WebhookSpec, job: &mut Job) -> Outcome {
        let now = clock::now();
        let body = self.body(spec, job, now);
        let signed = spec.scheme.sign(body, &job.delivery_id, now);
        let request =
            self.shared.client.post(spec.endpoint.clone()).headers(signed.headers).body(signed.body);
        match request.send().await {
            Ok(response) => Outcome::Status(response.status().as_u16()),
            Err(error) => Outcome::NoResponse(chain(&error.without_url())),
        }
    }

    fn body(&self, spec: &WebhookSpec, job: &mut Job, now: Timestamp) -> Bytes {
        let unknowns = &self.shared.config.unknowns;
        let signs_each_attempt = unknowns.timestamp_changes_between_attempts;
        if let Some(body) = job.body.as_ref().filter(|_| !signs_each_attempt) {
            return body.clone();
        }
        let key = self.shared.keys.read().expect("no code that holds this lock panics").active();
        let at = if signs_each_attempt && job.attempts > 0 { now } else { job.event.at };
        let body = spec.scheme.body(&job.event.payload(at, unknowns), &key);
        job.body = Some(body.clone());
        body
    }

    /// Records an attempt, then queues the next attempt or ends the delivery.
    fn complete(&self, state: &mut State, id: &str, job: Job, outcome: &Outcome) {
        let delivered = matches!(outcome, Outcome::Status(200));
        if !state.open.contains(&job.number) {
            return;
        }
        state.stats.attempts += 1;
        state.stats.failures += u64::from(!delivered);
        state.note(&job, outcome);
        let Some(endpoint) = state.endpoints.get_mut(id).filter(|endpoint| !endpoint.disabled) else {
            let end = if delivered { DeliveryState::Delivered } else { DeliveryState::Abandoned };
            return state.end(job.number, end);
        };
        if delivered {
            endpoint.failing_since = None;
            return state.end(job.number, DeliveryState::Delivered);
        }
        let since = *endpoint.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.scaled(self.shared.config.retry.disable_after) {
            endpoint.disabled = true;
            tracing::warn!(webhook = id, "webhook disabled: it failed for too long without a success");
            let dropped = endpoint.queue.drain();
            state.stats.disabled += 1;
            state.abandon(dropped);
            return state.end(job.number, DeliveryState::Abandoned);
        }
        let wait = self.shared.schedule.get(job.attempts.saturating_sub(1) as usize);
        let Some(wait) = wait else { return state.end(job.number, DeliveryState::GivenUp) };
        let wait = lock(&self.shared.faults).jitter(self.scaled(*wait), self.shared.config.retry.jitter);
        endpoint.queue.insert(Instant::now() + wait, job);
        endpoint.wake.notify_one();
    }

    fn scaled(&self, wait: Duration) -> Duration {
        wait.div_f64(self.shared.config.time_scale.max(1e-6))
    }

    fn publish(&self, state: &State) {
        self.shared.pending.send_replace(state.stats.pending);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

impl State {
    fn endpoint(&mut self, id: &str) -> Result<&mut Endpoint, Error> {
        self.endpoints.get_mut(id).ok_or_else(|| Error::UnknownWebhook(id.to_owned()))
    }

    fn queue(&mut self, id: &str, event: &Arc<Event>, plan: DeliveryPlan, log: usize) {
        let disabled = self.endpoints.get(id).is_some_and(|endpoint| endpoint.disabled);
        if disabled || plan.dropped {
            let number = self.record(id, event, false, log);
            let end = if disabled { DeliveryState::Abandoned } else { DeliveryState::Dropped };
            return self.end(number, end);
        }
        self.stats.duplicated += u64::from(plan.copies);
        self.stats.delayed += u64::from(!plan.delay.is_zero());
        self.stats.reordered += u64::from(plan.reorder.is_some());
        let now = Instant::now();
        for copy in 0..=plan.copies {
            let job = Job {
                number: self.record(id, event, copy > 0, log),
                delivery_id: delivery_id(id, &event.id),
                event: Arc::clone(event),
                attempts: 0,
                body: None,
            };
            let Some(endpoint) = self.endpoints.get_mut(id) else { return };
            match plan.reorder.filter(|_| copy == 0) {
                Some((behind, hold)) => endpoint.queue.hold(now, behind, hold, job),
                None => endpoint.queue.push(now + plan.delay, job),
            }
            endpoint.wake.notify_one();
        }
    }

    fn record(&mut self, id: &str, event: &Event, copy: bool, log: usize) -> u64 {
        self.next_number += 1;
        self.stats.queued += 1;
        self.open.insert(self.next_number);
        self.stats.pending = self.open.len() as u64;
        let delivery = Delivery {
            number: self.next_number,
            delivery_id: delivery_id(id, &event.id),
            webhook: id.to_owned(),
            event_id: event.id.clone(),
            event_type: event.kind.clone(),
            user_id: event.user_id().map(str::to_owned),
            copy,
            state: DeliveryState::Pending,
            attempts: 0,
            last_status: None,
            last_error: None,
        };
        self.records.insert(self.next_number, delivery);
        if self.records.len() > log {
            self.records.pop_first();
        }
        self.next_number
    }

    fn note(&mut self, job: &Job, outcome: &Outcome) {
        let Some(record) = self.records.get_mut(&job.number) else { return };
        record.attempts = job.attempts;
        (record.last_status, record.last_error) = match outcome {
            Outcome::Status(status) => (Some(*status), None),
            Outcome::NoResponse(why) => (None, Some(why.clone())),
        };
    }

    fn end(&mut self, number: u64, end: DeliveryState) {
        if !self.open.remove(&number) {
            return;
        }
        self.stats.pending = self.open.len() as u64;
        match end {
            DeliveryState::Delivered => self.stats.delivered += 1,
            DeliveryState::GivenUp => self.stats.given_up += 1,
            DeliveryState::Dropped => self.stats.dropped += 1,
            DeliveryState::Abandoned => self.stats.abandoned += 1,
            DeliveryState::Pending => {}
        }
        if let Some(record) = self.records.get_mut(&number) {
            record.state = end;
        }
    }

    fn abandon(&mut self, jobs: impl Iterator<Item = Job>) {
        for job in jobs {
            self.end(job.number, DeliveryState::Abandoned);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code that holds this lock panics")
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
