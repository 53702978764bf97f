//! The audit log: requests of operators.

use kinsync_engine::internal::audit;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::Time;

/// Which records to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, clap::Args)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Continue after this record: `next` of the page before.
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// List at most this many, 1 to 1000; larger numbers count as 1000. Default: 100.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A page of the audit log, newest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The records.
    pub records: Vec<AuditRecord>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A request of an operator that read personal data or changed something. It was recorded before it was carried out.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// Identifies the record.
    pub id: String,
    /// What the request does.
    pub kind: AuditKind,
    /// When the request was made; the first one, where the same read was repeated within ten minutes.
    pub at: Time,
    /// When it was made last.
    pub last_at: Time,
    /// How often it was made.
    pub count: u64,
    /// The name of the admin token.
    pub actor: String,
    /// The address of the client.
    pub peer: String,
    /// Method and path template.
    pub route: String,
    /// Parameters of the request. An email address is replaced by the start of its SHA-256.
    #[schema(value_type = Object)]
    pub parameters: Map<String, Value>,
}

/// What a request of an operator does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuditKind {
    /// It returned personal data.
    Read,
    /// It changed something.
    Action,
}

impl From<audit::Record> for AuditRecord {
    fn from(record: audit::Record) -> Self {
        let audit::Record { id, kind, at, last_at, count, actor, peer, route, parameters } = record;
        let kind = match kind {
            audit::Kind::Read => AuditKind::Read,
            audit::Kind::Action => AuditKind::Action,
        };
        Self { id, kind, at: at.into(), last_at: last_at.into(), count, actor, peer, route, parameters }
    }
}
