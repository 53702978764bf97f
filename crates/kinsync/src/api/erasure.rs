//! Erasures of users.

use kinsync_engine::internal::erasure::Report;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What to erase of a user.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EraseQuery {
    /// Report what would be erased, and erase nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// Remove the fields of the application from the document of the user too.
    #[serde(default)]
    #[param(required = false)]
    pub application_fields: bool,
}

/// What an erasure removed, or would remove.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Erased {
    /// The user.
    pub user: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Whether the user was erased before.
    pub was_erased: bool,
    /// Fields of the user. Their values are removed from the document and from the state.
    pub fields: Vec<String>,
    /// Entries of the event log about the user. Their contents are replaced by a hash.
    pub entries: u64,
    /// Entries of the event log about no user that name the id or an email address of the user.
    pub other_entries: u64,
    /// Deliveries in the queue of this server, or in the shared queue.
    pub queued: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Records of the audit log: of reads, removed, and of actions, in which texts beside the id are replaced.
    pub audit_records: u64,
    /// Fields of the application.
    pub application_fields: Vec<String>,
    /// Why the document still shows personal data: a rule of the database refuses it without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Erased {
    /// Returns the document of a report.
    pub fn new(user: String, dry_run: bool, report: Report) -> Self {
        let Report {
            was_erased, fields, entries, other_entries, queued, dead_letters, audit_records, ..
        } = report;
        Self {
            user,
            dry_run,
            was_erased,
            fields: fields.into_iter().collect(),
            entries,
            other_entries,
            queued,
            dead_letters,
            audit_records,
            application_fields: report.application_fields.into_iter().collect(),
            refused: report.refused,
        }
    }
}
