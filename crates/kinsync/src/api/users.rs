//! Users.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use kinsync_core::UserDocument as User;

use super::Time;

/// Which users to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, clap::Args)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsersQuery {
    /// List only users with this email address, shown or in conflict. Case is ignored.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
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
    /// Include deleted users.
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

/// A page of users, in the order of their ids.
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
