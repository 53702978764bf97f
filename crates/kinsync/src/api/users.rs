//! Users.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use kinsync_core::UserDocument as User;

use super::Time;

/// Which users to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsersQuery {
    /// Only the user with this email address, shown or in conflict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Only the user with this id of the application at Kinde (`provided_id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provided_id: Option<String>,
    /// Include deleted users. Default: false.
    #[serde(default)]
    #[param(required = false)]
    pub deleted: bool,
    /// Continue after this id: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The longest page, 1 to 1000. Default: 100. Larger numbers count as 1000.
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
