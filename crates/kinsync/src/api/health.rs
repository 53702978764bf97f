//! The state of the server and of everything that it depends on.

use std::collections::BTreeMap;

use kinsync_engine::internal::{
    breaker::State,
    reconcile::webhook_health::SilentWebhook,
    store::{Severity, StoreProblem, mongo::SearchProgress},
    supervisor::ComponentStatus,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Time, stats::QueueStats};
use crate::health::Problem;

/// Whether the server works.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No problem is known.
    Ok,
    /// Deliveries are accepted, and an operator should look at the problems.
    Degraded,
    /// Deliveries cannot be accepted.
    Failing,
}

/// The process runs.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Liveness {
    /// Always `ok`.
    pub status: HealthStatus,
}

/// Whether deliveries can be accepted.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// `ok` or `failing`.
    pub status: HealthStatus,
    /// Why deliveries cannot be accepted, each with what to do about it.
    pub problems: Vec<Problem>,
}

/// The state of the server and of everything that it depends on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthReport {
    /// The worst that applies.
    pub status: HealthStatus,
    /// Whether deliveries can be accepted.
    pub accepting: bool,
    /// What an operator should look at, each with what to do about it.
    pub problems: Vec<Problem>,
    /// The version of kinsync.
    pub version: String,
    /// Seconds since the server started.
    pub uptime_seconds: u64,
    /// The parts of the server.
    pub components: Components,
}

/// The parts of the server.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Components {
    /// Deliveries.
    pub webhook: WebhookHealth,
    /// The queue.
    pub queue: QueueHealth,
    /// The store.
    pub store: StoreHealth,
    /// The signing keys of each trusted issuer.
    pub key_sets: Vec<KeySetHealth>,
    /// Requests with an access token; absent without a trusted issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<AuthenticationHealth>,
    /// Scans of Kinde; absent without a machine-to-machine application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<ReconcileHealth>,
    /// The long-running tasks, by name.
    pub tasks: BTreeMap<String, TaskHealth>,
}

/// A long-running task. It is restarted after a failure unless its work is done once.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskHealth {
    /// Restarts since the server started.
    pub restarts: u64,
    /// Why the task failed last; absent after a minute or two without a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Deliveries.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookHealth {
    /// The verification schemes that are configured.
    pub schemes: Vec<String>,
    /// Seconds since the last accepted delivery; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_since_last_delivery: Option<f64>,
    /// Failed verifications since the last accepted delivery.
    pub consecutive_failed_verifications: u64,
    /// Seconds since the last accepted event without a time of the sender; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_since_last_event_without_time: Option<f64>,
}

/// The queue.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueHealth {
    #[serde(flatten)]
    #[expect(missing_docs, reason = "its fields are those of the document")]
    pub stats: QueueStats,
    /// How long the oldest delivery has been queued; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_age_seconds: Option<f64>,
}

/// The store.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreHealth {
    /// `mongodb` or `embedded`.
    pub kind: String,
    /// Whether its indexes exist.
    pub prepared: bool,
    /// The circuit breaker in front of it.
    pub breaker: BreakerState,
    /// The last error; absent while the store works. With all its causes only in the answer to the admin token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Users with a document that an index or a validator of the database refuses.
    pub refused_users: u64,
    /// Users with documents that lack keys, because an index or a validator of the database refuses their values.
    pub incomplete_users: u64,
    /// Changed organizations, roles and permissions that the documents of some users do not show yet.
    pub pending_spreads: usize,
    /// Users with a document that shows a former organization, role or permission, because its write fails.
    pub outdated_users: u64,
    /// The search for documents with a Kinde id that kinsync has not written yet; absent unless the store is MongoDB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document_search: Option<DocumentSearch>,
    /// Rules of the database that conflict with what kinsync writes, and indexes of kinsync that cannot be created.
    pub conflicts: Vec<StoreConflict>,
}

/// The search at the start for documents with a Kinde id that kinsync has not written yet. The log lists their values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DocumentSearch {
    /// Documents searched so far.
    pub searched: u64,
    /// Documents that kinsync has not written; the search ends at 1000 of them.
    pub unwritten: u64,
    /// Whether the search has ended.
    pub done: bool,
}

impl From<SearchProgress> for DocumentSearch {
    fn from(progress: SearchProgress) -> Self {
        Self { searched: progress.searched, unwritten: progress.unwritten, done: progress.is_done }
    }
}

/// A rule of the database that conflicts with what kinsync writes, or an index of kinsync that cannot be created.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreConflict {
    /// The subject, such as `index username_1` or `validator`.
    pub subject: String,
    /// `error`: users may not be stored, or a guarantee does not hold. `warning`: values of some users may be left out.
    pub severity: ConflictSeverity,
    /// The conflict.
    pub problem: String,
    /// The command or setting that resolves it.
    pub fix: String,
}

/// How serious a conflict is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConflictSeverity {
    /// Values of some users may be left out of their documents.
    Warning,
    /// Users may not be stored, or a guarantee does not hold.
    Error,
}

impl From<&StoreProblem> for StoreConflict {
    fn from(problem: &StoreProblem) -> Self {
        Self {
            subject: problem.subject.clone(),
            severity: match problem.severity {
                Severity::Warning => ConflictSeverity::Warning,
                Severity::Error => ConflictSeverity::Error,
            },
            problem: problem.what.clone(),
            fix: problem.fix.clone(),
        }
    }
}

/// Requests with an access token.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthenticationHealth {
    /// The circuit breaker in front of the store, for requests.
    pub breaker: BreakerState,
    /// The last error; absent while the store works. With all its causes only in the answer to the admin token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What a circuit breaker does with calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// It lets every call through.
    Closed,
    /// It lets one call through, as a probe.
    HalfOpen,
    /// It lets no call through until the next probe.
    Open,
}

/// Scans of Kinde.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReconcileHealth {
    /// The newest complete scan; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<String>,
    /// Seconds since it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_since_last_run: Option<f64>,
    /// Users with a change that it found although an event should have been delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed_by_webhook: Option<u64>,
    /// Members with permissions that are still unknown after the newest scan that compared roles; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_permissions: Option<u64>,
    /// Why the webhook is probably disabled; absent while it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_silence: Option<WebhookSilence>,
    /// Why the last scan of this process failed; absent after a complete one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Why the webhook is probably disabled.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "reason")]
pub enum WebhookSilence {
    /// A scan found changes, and no event arrived since the scan before it started.
    MissedChanges {
        /// Users that changed.
        users: u64,
        /// The scan that found them.
        run: String,
        /// When the last event arrived; absent when none ever did.
        #[serde(skip_serializing_if = "Option::is_none")]
        last_event_at: Option<Time>,
    },
    /// No event arrived for much longer than usual.
    LongPause {
        /// When the last event arrived.
        last_event_at: Time,
        /// The longest pause between the events before, in seconds.
        usual_seconds: i64,
    },
}

/// The signing keys of an issuer.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeySetHealth {
    /// The issuer.
    pub issuer: String,
    /// Keys that are known.
    pub keys: usize,
    /// Seconds since they were fetched; absent before the first successful fetch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Fetches since the start.
    pub fetches: u64,
    /// Failed fetches since the last successful one.
    pub failures: u64,
    /// Why the last fetch failed; absent after a successful one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl From<State> for BreakerState {
    fn from(state: State) -> Self {
        match state {
            State::Closed => Self::Closed,
            State::HalfOpen => Self::HalfOpen,
            State::Open => Self::Open,
        }
    }
}

impl From<&SilentWebhook> for WebhookSilence {
    fn from(silence: &SilentWebhook) -> Self {
        match silence {
            SilentWebhook::ChangesWithoutEvents { users, run, last_event_at } => Self::MissedChanges {
                users: *users,
                run: run.clone(),
                last_event_at: last_event_at.map(Time::from),
            },
            SilentWebhook::UnusualPause { last_event_at, usual_seconds } => {
                Self::LongPause { last_event_at: (*last_event_at).into(), usual_seconds: *usual_seconds }
            }
        }
    }
}

impl From<ComponentStatus> for TaskHealth {
    fn from(status: ComponentStatus) -> Self {
        Self { restarts: status.restarts, last_error: status.failure }
    }
}
