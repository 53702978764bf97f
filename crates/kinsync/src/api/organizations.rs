//! Organizations of the tenant.

use kinsync_core::Fact;
use kinsync_engine::internal::directory::Stored;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Time;

/// Which organizations to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, clap::Args)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OrganizationsQuery {
    /// Include deleted organizations.
    #[arg(long)]
    #[serde(default)]
    #[param(required = false)]
    pub deleted: bool,
    /// Continue after this code: `next` of the page before.
    #[arg(long, value_name = "CODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// List at most this many, 1 to 1000; larger numbers count as 1000. Default: 100.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// An organization, as events and scans with `reconcile.roles` have observed it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrganizationDetails {
    /// Kinde's code, such as `org_590d7f1a86a`.
    pub code: String,
    /// Display name. Absent while no source has reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name in URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// The id that the application gave the organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// When the organization was deleted; absent if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Time>,
}

impl OrganizationDetails {
    /// Returns the details of a stored organization.
    pub fn new(code: String, stored: &Stored) -> Self {
        let text = |fact| stored.entry.text(fact).map(ToOwned::to_owned);
        Self {
            code,
            name: text(Fact::Name),
            handle: text(Fact::Handle),
            external_id: text(Fact::ExternalId),
            deleted_at: stored.entry.absence().map(|version| version.at.into()),
        }
    }
}

/// A page of organizations, in the order of their codes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OrganizationPage {
    /// The organizations.
    pub organizations: Vec<OrganizationDetails>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Codes and ids of records on this page that this version of kinsync cannot read. The log has the reason and the next step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undecodable: Vec<String>,
}
