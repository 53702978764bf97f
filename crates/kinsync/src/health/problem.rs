//! The problems that `/health` reports: one list of codes. Each has a section of the same name in docs/guides/operate.md and a
//! series of `kinsync_health_problem`, which tests check.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that an operator should look at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = HealthProblem)]
pub struct Problem {
    /// The code, which names the section of docs/guides/operate.md.
    pub code: Code,
    /// What is wrong and what to do about it.
    pub detail: String,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal,)*) => {
        /// The kind of a problem.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        #[schema(as = HealthProblemCode)]
        pub enum Code { $($(#[$doc])* $code,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$code),*];

            /// Returns the name used in JSON and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }
        }
    };
}

codes! {
    /// The queue does not answer.
    QueueUnavailable = "queue_unavailable",
    /// A delivery could not be stored a moment ago, or the disk of the embedded queue stores none.
    DeliveryNotStored = "delivery_not_stored",
    /// The queue is full.
    QueueFull = "queue_full",
    /// A delivery has been queued for longer than a minute.
    QueueDelayed = "queue_delayed",
    /// The shared queue does not answer; this process stores deliveries on its disk.
    SharedQueueUnavailable = "shared_queue_unavailable",
    /// The disk of this process stores no delivery; the shared queue does.
    SpoolUnavailable = "spool_unavailable",
    /// Deliveries in the shared queue are of a newer version of kinsync, and wait for a process of it.
    QueueNewerVersion = "queue_newer_version",
    /// The queue contains dead letters.
    DeadLetters = "dead_letters",
    /// Many deliveries in a row failed verification.
    VerificationFails = "verification_fails",
    /// A sender leaves out the time of its events.
    EventsWithoutTime = "events_without_time",
    /// The store is unavailable or refuses what kinsync needs.
    StoreUnavailable = "store_unavailable",
    /// A rule of the database refuses documents of users.
    UsersRefused = "users_refused",
    /// A rule of the database refuses values of users, which are stored without them.
    UsersIncomplete = "users_incomplete",
    /// A rule of the database, or a missing index, conflicts with what kinsync writes.
    StoreConflict = "store_conflict",
    /// The last sweep of the store failed.
    StoreSweepFailed = "store_sweep_failed",
    /// Documents show a former organization, role or permission, because their write fails.
    DocumentsOutdated = "documents_outdated",
    /// A changed organization or role could not be written to the documents of its members yet.
    SpreadFailed = "spread_failed",
    /// A long-running task failed.
    TaskRestarted = "task_restarted",
    /// Authenticated requests are answered without the store.
    AuthenticationDegraded = "authentication_degraded",
    /// No issuer of tokens is configured. Only in the readiness for logins.
    NoIssuer = "no_issuer",
    /// No current signing keys of an issuer are known.
    KeysUnknown = "keys_unknown",
    /// The signing keys of an issuer cannot be refreshed.
    KeysOutdated = "keys_outdated",
    /// A key set contains a private key.
    PrivateKeyExposed = "private_key_exposed",
    /// An issuer belongs to another Kinde tenant.
    OtherTenant = "other_tenant",
    /// Users may differ from Kinde, and no application can read them there.
    UsersUnchecked = "users_unchecked",
    /// The webhook is probably disabled.
    WebhookSilent = "webhook_silent",
    /// No scan has completed for more than three intervals.
    ScanOverdue = "scan_overdue",
    /// The last scan failed.
    ScanFailed = "scan_failed",
    /// Deletions are held until an operator approves them.
    DeletionsHeld = "deletions_held",
    /// Removals of memberships, roles or permissions are held until an operator approves them.
    RemovalsHeld = "removals_held",
    /// The last scan did not compare all roles.
    RolesNotCompared = "roles_not_compared",
    /// The last scan did not compare the properties of users.
    PropertiesNotCompared = "properties_not_compared",
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn a_code_has_the_same_name_in_json_and_in_metrics() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).ok(), Some(code.as_str().into()));
        }
    }
}
