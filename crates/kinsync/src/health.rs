//! The state of the server and of everything that it depends on, for operators and load balancers.
//!
//! *Ready* means that a delivery can be accepted. That needs the queue, and a secret or signing keys; it does not need
//! MongoDB, because deliveries are queued. *Healthy* means that there is nothing that an operator should look at.

use std::{collections::BTreeMap, time::Duration};

use kinde::{Jwks, domain::issuer_of, webhook::Scheme};
use kinsync_core::Micros;
use kinsync_engine::internal::{
    breaker::{Breaker, Failure, State},
    reconcile::{record::DriftKind, webhook_health},
    spread::SpreadStatus,
    store::{Severity, StoreProblem},
    supervisor::ComponentStatus,
};

pub use problem::{Code, Problem};

use crate::{
    api::{
        health::{
            AuthenticationHealth, Components, HealthReport, HealthStatus, KeySetHealth, ReconcileHealth,
            StoreConflict, StoreHealth, TaskHealth, WebhookHealth,
        },
        time::age,
    },
    app::AppState,
    plural::counted,
};

mod problem;
mod queue;

/// An event without a time is reported for this long.
const REPORTED_FOR: Duration = Duration::from_hours(1);
/// Failed verifications in a row that are a problem.
const MANY_FAILURES: u64 = 10;

/// How much a route for monitoring answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detail {
    /// Without causes, which may name hosts.
    Open,
    /// Everything: the request carries the admin token.
    Operator,
}

/// The state of the server.
#[derive(Debug)]
pub struct Health {
    /// Why deliveries cannot be accepted; empty when they can.
    pub failing: Vec<Problem>,
    /// What an operator should look at.
    pub degraded: Vec<Problem>,
    components: Components,
    uptime: Duration,
}

impl Health {
    /// Collects what is known without a request to a dependency.
    pub async fn of(state: &AppState, detail: Detail) -> Self {
        let queued = state.engine.queue().stats().await;
        let now = state.engine.clock().now();
        let roles = state.engine.roles();
        // Others verify neither deliveries nor tokens.
        let key_sets = state.key_sets.iter().filter(|_| roles.ingest || roles.api);
        let mut problems = Problems { failing: Vec::new(), degraded: Vec::new(), detail };
        let components = Components {
            webhook: problems.webhook(state, now),
            queue: problems.queue(state, now, queued),
            store: problems.store_of(state),
            key_sets: key_sets.map(|keys| problems.keys(state, keys)).collect(),
            authentication: problems.authentication(state),
            reconcile: problems.reconcile(state, now),
            tasks: problems.tasks(state.engine.supervisor().status()),
        };
        let Problems { failing, degraded, .. } = problems;
        // Only deliveries fail. What keeps other processes from them is a problem of those.
        let (failing, degraded) = if roles.ingest {
            (failing, degraded)
        } else {
            (Vec::new(), failing.into_iter().chain(degraded).collect())
        };
        Self { failing, degraded, components, uptime: state.started.elapsed() }
    }

    /// Whether deliveries can be accepted.
    pub fn is_ready(&self) -> bool {
        self.failing.is_empty()
    }

    /// Every problem, the worst first.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.failing.iter().chain(&self.degraded)
    }

    /// What `GET /health` answers.
    pub fn report(self) -> HealthReport {
        let accepting = self.is_ready();
        let status = match (accepting, self.degraded.is_empty()) {
            (false, _) => HealthStatus::Failing,
            (true, false) => HealthStatus::Degraded,
            (true, true) => HealthStatus::Ok,
        };
        HealthReport {
            status,
            accepting,
            problems: self.failing.into_iter().chain(self.degraded).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.uptime.as_secs(),
            components: self.components,
        }
    }
}

/// Why requests of users cannot be authenticated; empty when they can. Needs the keys of one issuer: while the store is
/// unavailable, requests are degraded, and a full queue does not affect them.
pub fn login_problems(state: &AppState) -> Vec<Problem> {
    let one = |code, detail: &str| vec![Problem { code, detail: detail.into() }];
    if !state.engine.roles().api {
        return one(Code::NoIssuer, "this process authenticates no users, because it lacks the role `api`");
    }
    if state.authenticator.is_none() {
        return one(Code::NoIssuer, "no issuer of tokens is configured: set KINDE_DOMAIN or KINDE_ISSUERS");
    }
    let issuers: Vec<String> = state.config.kinde.trusted_issuers().map(issuer_of).collect();
    let mut statuses = state.key_sets.iter().map(Jwks::status).filter(|keys| issuers.contains(&keys.issuer));
    if statuses.any(|keys| keys.key_count > 0) {
        return Vec::new();
    }
    one(Code::KeysUnknown, "no current signing keys of any issuer are known, so every token is answered 503")
}

#[derive(Debug)]
struct Problems {
    failing: Vec<Problem>,
    degraded: Vec<Problem>,
    detail: Detail,
}

impl Problems {
    fn failing(&mut self, code: Code, detail: impl Into<String>) {
        self.failing.push(Problem { code, detail: detail.into() });
    }

    fn degraded(&mut self, code: Code, detail: impl Into<String>) {
        self.degraded.push(Problem { code, detail: detail.into() });
    }

    /// The cause of an error, which may name hosts.
    fn cause(&self, chain: Option<&str>) -> String {
        let hidden = "the log and the answer to the admin token name the cause";
        match (self.detail, chain) {
            (_, None) => "no error is recorded yet",
            (Detail::Open, Some(_)) => hidden,
            (Detail::Operator, Some(chain)) => chain,
        }
        .to_owned()
    }

    /// The failure of a dependency: its summary names no host.
    fn failure(&self, failure: Option<&Failure>) -> String {
        match (self.detail, failure) {
            (_, None) => "no error is recorded yet",
            (Detail::Open, Some(failure)) => &failure.summary,
            (Detail::Operator, Some(failure)) => &failure.chain,
        }
        .to_owned()
    }

    fn webhook(&mut self, state: &AppState, now: Micros) -> WebhookHealth {
        let (activity, failures) =
            (state.webhook.activity(), state.webhook.activity().consecutive_failures());
        if failures >= MANY_FAILURES {
            self.degraded(Code::VerificationFails, format!(
                "{failures} deliveries in a row failed verification, and Kinde disables a webhook after 72 h of \
                 failures: compare KINDE_DOMAIN and KINDE_WEBHOOK_SECRET with the sender's settings"
            ));
        }
        let without_time = activity.last_without_time().map(|at| age(at, now));
        if without_time.is_some_and(|age| age < REPORTED_FOR.as_secs_f64()) {
            self.degraded(Code::EventsWithoutTime, "a sender leaves out the time of its events, so they take effect in the order of receipt: send \
                 `event_id` and `timestamp` with each event");
        }
        let schemes = Scheme::ALL.into_iter().filter(|scheme| state.verifier.is_enabled(*scheme));
        WebhookHealth {
            schemes: schemes.map(|scheme| scheme.as_str().to_owned()).collect(),
            seconds_since_last_delivery: activity.last_delivery().map(|at| age(at, now)),
            consecutive_failed_verifications: failures,
            seconds_since_last_event_without_time: without_time,
        }
    }

    /// The store. A process that only accepts deliveries does not use it, so nothing of it is a problem.
    fn store_of(&mut self, state: &AppState) -> StoreHealth {
        let known = self.degraded.len();
        let health = self.store(state);
        if !state.engine.roles().uses_store() {
            self.degraded.truncate(known);
        }
        health
    }

    fn store(&mut self, state: &AppState) -> StoreHealth {
        let (unprepared, kind) = (state.engine.store_failure(), state.engine.store_kind());
        let failure = unprepared.clone().or_else(|| state.engine.breaker().last_failure());
        let last_error = failure.as_ref().map(|failure| self.failure(Some(failure)));
        if state.engine.breaker().state() != State::Closed || unprepared.is_some() {
            let what = if failure.as_ref().is_some_and(|failure| failure.is_refusal) {
                "refuses what kinsync needs"
            } else {
                "is unavailable"
            };
            let cause = self.failure(failure.as_ref());
            self.degraded(Code::StoreUnavailable, format!(
                "the store ({kind}) {what}; deliveries are accepted and queued, and users that are stored are served: {cause}"
            ));
        }
        let refused = state.engine.refused_by_store();
        if let Some((user, reason)) = refused.examples.first() {
            self.degraded(Code::UsersRefused, format!(
                "a rule of the database refuses documents of {}, such as {user}: {reason}; `kinsync users explain` names the \
                 rule for each, and `kinsync doctor` the remedies",
                counted(refused.users, "user", "users")
            ));
        }
        if refused.incomplete_users > 0 {
            self.degraded(Code::UsersIncomplete, format!(
                "a rule of the database refuses values of {}, stored without them: `kinsync.refused` in the documents and \
                 `kinsync users explain` name the keys and the rules",
                counted(refused.incomplete_users, "user", "users")
            ));
        }
        let serious = refused.problems.iter().filter(|problem| problem.severity == Severity::Error);
        for StoreProblem { what, fix, .. } in serious {
            self.degraded(Code::StoreConflict, format!("{what}: {fix}"));
        }
        if let Some(failure) = &refused.failure {
            self.degraded(
                Code::StoreSweepFailed,
                format!("the last sweep of the store failed: {}", self.cause(Some(failure))),
            );
        }
        let spread = state.engine.spread_status();
        self.spread(&spread);
        StoreHealth {
            conflicts: refused.problems.iter().map(StoreConflict::from).collect(),
            refused_users: refused.users,
            incomplete_users: refused.incomplete_users,
            pending_spreads: spread.pending,
            outdated_users: spread.set_aside,
            kind: kind.to_owned(),
            prepared: unprepared.is_none(),
            document_search: state.engine.unwritten_search().map(Into::into),
            breaker: state.engine.breaker().state().into(),
            last_error,
        }
    }

    fn spread(&mut self, SpreadStatus { pending, set_aside, examples, failure }: &SpreadStatus) {
        if let Some((user, reason)) = examples.first() {
            self.degraded(Code::DocumentsOutdated, format!(
                "documents of {}, such as {user}, show a former organization, role or permission, because their write fails, \
                 and it is repeated: {}",
                counted(*set_aside, "user", "users"),
                self.cause(Some(reason))
            ));
        }
        if let Some(failure) = failure {
            let changed = match *pending {
                // It is not known what is due: reading it failed.
                0 => "may not show a changed organization or role yet".to_owned(),
                pending => format!(
                    "do not show {} yet",
                    counted(pending as u64, "changed organization or role", "changed organizations or roles")
                ),
            };
            let cause = self.cause(Some(failure));
            self.degraded(
                Code::SpreadFailed,
                format!("documents of some users {changed}, and it is repeated: {cause}"),
            );
        }
    }

    fn tasks(&mut self, status: BTreeMap<&'static str, ComponentStatus>) -> BTreeMap<String, TaskHealth> {
        for (name, ComponentStatus { restarts, failure }) in &status {
            if let Some(failure) = failure {
                self.degraded(
                    Code::TaskRestarted,
                    format!(
                        "the task `{name}` failed ({}): {}; report it with the log",
                        counted(*restarts, "restart", "restarts"),
                        self.cause(Some(failure))
                    ),
                );
            }
        }
        let shown = |status: ComponentStatus| {
            let failure = status.failure.map(|failure| self.cause(Some(&failure)));
            TaskHealth::from(ComponentStatus { failure, ..status })
        };
        status.into_iter().map(|(name, status)| (name.to_owned(), shown(status))).collect()
    }

    fn authentication(&mut self, state: &AppState) -> Option<AuthenticationHealth> {
        let breaker: &Breaker = state.authenticator.as_ref()?.breaker();
        let failure = breaker.last_failure();
        let last_error = failure.as_ref().map(|failure| self.failure(Some(failure)));
        if breaker.state() != State::Closed {
            self.degraded(
                Code::AuthenticationDegraded,
                format!(
                    "authenticated requests are answered without the store and marked as degraded: {}",
                    self.failure(failure.as_ref())
                ),
            );
        }
        Some(AuthenticationHealth { breaker: breaker.state().into(), last_error })
    }

    fn unchecked(&mut self, users: usize) {
        if users > 0 {
            self.degraded(Code::UsersUnchecked, format!(
                "at least {} may differ from Kinde: events contradict each other, or Kinde refused a token. Set \
                 KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET, so that kinsync can read the users from Kinde",
                counted(users, "user", "users")
            ));
        }
    }

    fn reconcile(&mut self, state: &AppState, now: Micros) -> Option<ReconcileHealth> {
        if !state.engine.roles().reconcile {
            return None;
        }
        let Some(reconciler) = state.engine.reconciler() else {
            self.unchecked(state.engine.unchecked_users());
            return None;
        };
        let status = reconciler.status.borrow();
        if let Some(silent) = &status.silent_webhook {
            self.degraded(Code::WebhookSilent, format!("{silent}; {}", webhook_health::FIX));
        }
        if let Some(overdue) = status.overdue {
            self.degraded(Code::ScanOverdue, format!(
                "no scan of Kinde has completed for {}, more than three times the interval: `kinsync runs list` shows why",
                counted(overdue.as_secs() / 60, "minute", "minutes")
            ));
        }
        if let Some(failure) = &status.failure {
            self.degraded(
                Code::ScanFailed,
                format!("the last scan of Kinde failed: {}", self.cause(Some(failure))),
            );
        }
        let latest = status.latest.as_ref();
        if let Some(run) = latest.filter(|run| run.tally.of(DriftKind::DeletionHeld) > 0) {
            self.degraded(Code::DeletionsHeld, format!(
                "{held} held, because unusually many users are missing at Kinde: check with `kinsync runs show {id}`, then \
                 approve with `kinsync reconcile --soon --approve {id}`",
                held = counted(run.tally.of(DriftKind::DeletionHeld), "deletion is", "deletions are"),
                id = run.id,
            ));
        }
        if let Some(run) = latest.filter(|run| run.tally.of(DriftKind::RemovalHeld) > 0) {
            self.degraded(Code::RemovalsHeld, format!(
                "{held} held, because unusually many are missing at Kinde: check with `kinsync runs show {id}`, then approve \
                 with `kinsync reconcile --soon --approve {id}`",
                held = counted(
                    run.tally.of(DriftKind::RemovalHeld),
                    "removal of a membership, organization, role or permission is",
                    "removals of memberships, organizations, roles or permissions are"
                ),
                id = run.id,
            ));
        }
        if let Some(reason) = latest.and_then(|run| run.memberships.as_ref()?.not_compared.as_ref()) {
            self.degraded(
                Code::RolesNotCompared,
                format!("the last scan did not compare everything: {reason}"),
            );
        }
        if let Some(reason) = latest.and_then(|run| run.properties.as_ref()?.not_compared.as_ref()) {
            self.degraded(
                Code::PropertiesNotCompared,
                format!("the last scan did not compare the properties of users: {reason}"),
            );
        }
        Some(ReconcileHealth {
            last_run: latest.map(|run| run.id.clone()),
            seconds_since_last_run: latest.map(|run| age(run.started_at, now)),
            missed_by_webhook: latest.map(|run| run.tally.missed()),
            unknown_permissions: latest.and_then(|run| Some(run.memberships.as_ref()?.unknown_permissions)),
            webhook_silence: status.silent_webhook.as_ref().map(Into::into),
            last_error: status.failure.as_deref().map(|failure| self.cause(Some(failure))),
        })
    }

    fn keys(&mut self, state: &AppState, keys: &Jwks) -> KeySetHealth {
        let status = keys.status();
        let why = self.cause(status.last_error.as_deref());
        if status.key_count == 0 {
            let problem = format!(
                "no current signing keys of {} are known, so tokens and webhooks of this issuer are answered 503: {why}",
                status.issuer
            );
            let signs_webhooks =
                state.config.kinde.domain.as_ref().map(issuer_of).as_deref() == Some(keys.issuer());
            let others =
                Scheme::ALL.into_iter().any(|s| s != Scheme::KindeJwt && state.verifier.is_enabled(s));
            if signs_webhooks && !others {
                self.failing(Code::KeysUnknown, problem);
            } else {
                self.degraded(Code::KeysUnknown, problem);
            }
        } else if status.consecutive_failures > 0 {
            self.degraded(
                Code::KeysOutdated,
                format!(
                    "the signing keys of {} cannot be refreshed, and the known ones are used: {why}",
                    status.issuer
                ),
            );
        }
        if status.exposes_private_key {
            self.degraded(Code::PrivateKeyExposed, format!(
                "the key set of {} contains a private key, with which every reader of it can sign tokens and webhooks: \
                 rotate the keys at Kinde",
                status.issuer
            ));
        }
        if let Some(tenant) = state.tenant_keys()
            && keys.shares_key_with(tenant) == Some(false)
        {
            self.degraded(Code::OtherTenant, format!(
                "{} is an issuer of another Kinde tenant than {}: they share no signing key, so its tokens are refused; remove \
                 it from KINDE_ISSUERS, and run one kinsync for each tenant",
                status.issuer,
                tenant.issuer()
            ));
        }
        KeySetHealth {
            issuer: status.issuer,
            keys: status.key_count,
            age_seconds: status.last_success_age.map(|age| age.as_secs_f64()),
            fetches: status.fetch_count,
            failures: u64::from(status.consecutive_failures),
            last_error: status.last_error.map(|error| self.cause(Some(&error))),
        }
    }
}
