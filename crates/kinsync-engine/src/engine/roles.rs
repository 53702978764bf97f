//! What a process does. Any number of processes may have any role; they share a queue and a MongoDB, and nothing else.

/// The roles of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a set of four")]
pub struct Roles {
    /// Accepts deliveries. Needs the queue and what verifies deliveries, no store.
    pub ingest: bool,
    /// Applies what is queued to the store.
    pub project: bool,
    /// Scans Kinde and repairs what differs.
    pub reconcile: bool,
    /// Answers users and operators.
    pub api: bool,
}

impl Roles {
    /// No role.
    pub const NONE: Self = Self { ingest: false, project: false, reconcile: false, api: false };
    /// Every role: one process does everything.
    pub const ALL: Self = Self { ingest: true, project: true, reconcile: true, api: true };

    /// Whether the process reads or writes users.
    pub fn uses_store(self) -> bool {
        self.project || self.reconcile || self.api
    }

    /// Whether the process fills the queue: with deliveries, or with requests of users while the store is unavailable.
    pub fn fills_queue(self) -> bool {
        self.ingest || self.api
    }

    /// Whether what is queued needs another process.
    pub fn needs_shared_queue(self) -> bool {
        self.fills_queue() != self.project
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self::ALL
    }
}
