//! Users.

use clap::builder::PossibleValuesParser;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use kinsync_core::UserDocument as User;

use super::Time;

/// The states to filter by.
pub const STATES: [&str; 5] = ["live", "deleted", "suspended", "conflict", "refused"];

/// Which users to list.
///
/// `email`, `phone` and `provided_id` select few users and go with every other filter. Of the others an index answers one at a
/// time: `email_prefix`, `name_prefix`, `organization` with `role`, `state` or `changed_since`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, clap::Args)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsersQuery {
    /// List only users with this email address, shown or in conflict. Case is ignored.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// List only users with an email address that begins with this text, in the order of the addresses. Case is ignored.
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_prefix: Option<String>,
    /// List only users with a first or last name that begins with this text, in the order of the names. Case is ignored.
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_prefix: Option<String>,
    /// List only users with this phone number, such as `+12025550123`.
    #[arg(long, value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    /// List only the user with this id of the application at Kinde (`provided_id`).
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provided_id: Option<String>,
    /// List only members of the organization with this code.
    #[arg(long, value_name = "CODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// List only members with the role with this key, in the organization if one is named.
    #[arg(long, value_name = "KEY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// List only users in this state: `live`, `deleted` (in the order of their deletion), `suspended`, `conflict` (another document shows the address) or `refused` (a rule of the database refuses the document or a part of it).
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATES))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// List only users that changed at this time or later, in the order of their changes, such as `2026-11-01T00:00:00Z`. With deleted users a complete list of changes.
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub changed_since: Option<Time>,
    /// Include deleted users.
    #[arg(long)]
    #[serde(default)]
    #[param(required = false)]
    pub deleted: bool,
    /// Continue after this position: `next` of the page before.
    #[arg(long, value_name = "POSITION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// List at most this many, 1 to 1000; larger numbers count as 1000. Default: 100.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A page of users, in the order of their ids, or of the value that the filter names. A page may contain fewer users than the limit and
/// yet not be the last one.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct UserPage {
    /// The users.
    pub users: Vec<User>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Ids of documents on this page that kinsync wrote and cannot decode any more.
    pub undecodable: Vec<String>,
}

/// A request that was recorded and is carried out soon.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckRequested {
    /// The user to be read from Kinde again.
    pub user: String,
    /// When the request was recorded.
    #[serde(rename = "requestedAt")]
    pub requested_at: Time,
}
