//! Organizations and roles of the tenant.

use std::collections::BTreeMap;

use kinsync_core::{Fact, Micros};
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
    /// When the organization was created at Kinde. Absent while no source has reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    /// Number of users that are members and not deleted.
    pub member_count: u64,
    /// When they were counted.
    pub members_as_of: Time,
    /// When the organization was deleted; absent if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Time>,
}

impl OrganizationDetails {
    /// Returns the details of a stored organization.
    pub fn new(code: String, stored: &Stored, (member_count, as_of): (u64, Micros)) -> Self {
        let text = |fact| stored.entry.text(fact).map(ToOwned::to_owned);
        Self {
            code,
            name: text(Fact::Name),
            handle: text(Fact::Handle),
            external_id: text(Fact::ExternalId),
            created_at: stored.entry.time(Fact::CreatedOn).map(Into::into),
            member_count,
            members_as_of: as_of.into(),
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

/// Which roles to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, clap::Args)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RolesQuery {
    /// Include deleted roles.
    #[arg(long)]
    #[serde(default)]
    #[param(required = false)]
    pub deleted: bool,
    /// Continue after this id: `next` of the page before.
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// List at most this many, 1 to 1000; larger numbers count as 1000. Default: 100.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A role, as events and scans with `reconcile.roles` have observed it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoleDetails {
    /// Kinde's id. Roles of events without ids have their key here.
    pub id: String,
    /// Key that applications refer to. Absent while no source has reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The permissions that the role gives. Absent while no scan has listed them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Vec<PermissionDetails>>,
    /// When the role was deleted; absent if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Time>,
}

/// A permission of a role.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermissionDetails {
    /// Kinde's id.
    pub id: String,
    /// Key that applications refer to. Absent while no source has reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Display name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl RoleDetails {
    /// Returns the details of a stored role. `permissions` has those that it gives.
    pub fn new(id: String, stored: &Stored, permissions: &BTreeMap<String, Stored>) -> Self {
        let text_of = |stored: &Stored, fact| stored.entry.text(fact).map(ToOwned::to_owned);
        let permission = |id: &String| {
            let known = permissions.get(id);
            let text = |fact| known.and_then(|known| text_of(known, fact));
            let is_shown = known.is_none_or(|known| known.entry.is_live());
            is_shown.then(|| PermissionDetails {
                id: id.clone(),
                key: text(Fact::Key),
                name: text(Fact::Name),
            })
        };
        Self {
            id,
            key: text_of(stored, Fact::Key),
            name: text_of(stored, Fact::Name),
            description: text_of(stored, Fact::Description),
            permissions: stored.entry.permissions().map(|ids| ids.iter().filter_map(permission).collect()),
            deleted_at: stored.entry.absence().map(|version| version.at.into()),
        }
    }
}

/// A page of roles, in the order of their ids.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RolePage {
    /// The roles.
    pub roles: Vec<RoleDetails>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Codes and ids of records on this page that this version of kinsync cannot read. The log has the reason and the next step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undecodable: Vec<String>,
}
