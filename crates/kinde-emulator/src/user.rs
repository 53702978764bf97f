//! A user, and its representation in webhooks and in the profile.

pub(crate) mod api;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::Missing;

/// A user in the emulator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct User {
    /// `kp_` and 32 hex digits.
    pub id: String,
    /// Id of the user in another system.
    pub provided_id: Option<String>,
    /// Preferred email.
    pub email: Option<String>,
    /// Whether the email is verified. Only the profile endpoint shows it.
    pub email_verified: bool,
    /// First name.
    pub first_name: Option<String>,
    /// Last name.
    pub last_name: Option<String>,
    /// Phone number.
    pub phone: Option<String>,
    /// Username.
    pub username: Option<String>,
    /// URL of a picture.
    pub picture: Option<String>,
    /// Whether the user is suspended and cannot sign in.
    pub is_suspended: bool,
    /// Whether a new password is required at the next sign-in.
    pub is_password_reset_requested: bool,
    /// Organizations with roles and permissions.
    pub organizations: Vec<Membership>,
    /// Values of the user's properties, by key.
    pub properties: BTreeMap<String, String>,
    /// When the user was created.
    pub created_on: Timestamp,
    /// Time of the last change of the profile.
    pub updated_on: Timestamp,
    /// Time of the last sign-in.
    pub last_signed_in: Option<Timestamp>,
    /// Number of sign-ins.
    pub total_sign_ins: u64,
    /// Number of failed sign-ins since the last successful one.
    pub failed_sign_ins: u64,
    /// When the user was deleted with the profile kept.
    pub deleted_on: Option<Timestamp>,
}

/// Membership in an organization.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// `org_` and 11 hex digits.
    pub code: String,
    /// Roles in this organization.
    #[serde(default)]
    pub roles: Vec<Grant>,
    /// Permissions in this organization, besides those of the roles.
    #[serde(default)]
    pub permissions: Vec<Grant>,
    /// When the user joined.
    pub joined_on: Timestamp,
    /// Whether the user cannot sign in to this organization.
    pub is_suspended: bool,
}

/// A role or a permission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// UUID.
    pub id: String,
    /// Key, e.g. `admin`.
    pub key: String,
}

/// The fields of a new user; all are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewUser {
    /// Id; by default a random `kp_…`.
    pub id: Option<String>,
    /// Preferred email.
    pub email: Option<String>,
    /// Whether the email is verified.
    pub email_verified: bool,
    /// First name.
    pub first_name: Option<String>,
    /// Last name.
    pub last_name: Option<String>,
    /// Phone number.
    pub phone: Option<String>,
    /// Username.
    pub username: Option<String>,
    /// URL of a picture.
    pub picture: Option<String>,
    /// The id that the user has in another system.
    pub provided_id: Option<String>,
    /// Organization to join; by default that of the tenant.
    pub organization: Option<String>,
}

impl NewUser {
    /// Creates a user with an email and a name.
    #[must_use]
    pub fn named(email: &str, first_name: &str, last_name: &str) -> Self {
        let some = |text: &str| Some(text.to_owned());
        Self {
            email: some(email),
            first_name: some(first_name),
            last_name: some(last_name),
            email_verified: true,
            ..Self::default()
        }
    }
}

/// A change of a user. Absent fields are kept; an empty text removes a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserEdit {
    /// Preferred email.
    pub email: Option<String>,
    /// Whether the email is verified.
    pub email_verified: Option<bool>,
    /// First name.
    pub first_name: Option<String>,
    /// Last name.
    pub last_name: Option<String>,
    /// Phone number.
    pub phone: Option<String>,
    /// Username.
    pub username: Option<String>,
    /// URL of a picture.
    pub picture: Option<String>,
    /// The id that the user has in another system.
    pub provided_id: Option<String>,
    /// Whether the user is suspended and cannot sign in.
    pub is_suspended: Option<bool>,
    /// Whether a new password is required at the next sign-in.
    pub is_password_reset_requested: Option<bool>,
}

impl User {
    pub(crate) fn new(id: String, new: NewUser, org_code: &str, at: Timestamp) -> Self {
        let code = new.organization.unwrap_or_else(|| org_code.to_owned());
        Self {
            id,
            provided_id: new.provided_id,
            email: new.email,
            email_verified: new.email_verified,
            first_name: new.first_name,
            last_name: new.last_name,
            phone: new.phone,
            username: new.username,
            picture: new.picture,
            is_suspended: false,
            is_password_reset_requested: false,
            organizations: vec![Membership::new(&code, at)],
            properties: BTreeMap::new(),
            created_on: at,
            updated_on: at,
            last_signed_in: None,
            total_sign_ins: 0,
            failed_sign_ins: 0,
            deleted_on: None,
        }
    }

    pub(crate) fn apply(&mut self, edit: UserEdit) {
        set(&mut self.email, edit.email);
        set(&mut self.first_name, edit.first_name);
        set(&mut self.last_name, edit.last_name);
        set(&mut self.phone, edit.phone);
        set(&mut self.username, edit.username);
        set(&mut self.picture, edit.picture);
        set(&mut self.provided_id, edit.provided_id);
        self.email_verified = edit.email_verified.unwrap_or(self.email_verified);
        self.is_suspended = edit.is_suspended.unwrap_or(self.is_suspended);
        self.is_password_reset_requested =
            edit.is_password_reset_requested.unwrap_or(self.is_password_reset_requested);
    }

    /// Returns the first and last name, separated by a space.
    #[must_use]
    pub fn full_name(&self) -> String {
        let parts = [self.first_name.as_deref(), self.last_name.as_deref()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// Returns the membership in an organization.
    #[must_use]
    pub fn membership(&self, code: &str) -> Option<&Membership> {
        self.organizations.iter().find(|member| member.code == code)
    }

    /// `data` of `user.created` and `user.updated`. `permissions` returns those of a membership.
    pub(crate) fn webhook_data(
        &self,
        missing_email: Missing,
        permissions: impl Fn(&Membership) -> Vec<Grant>,
    ) -> Value {
        let mut user = json!({
            "id": self.id,
            "first_name": self.first_name,
            "last_name": self.last_name,
            "phone": self.phone,
            "username": self.username,
            "is_suspended": self.is_suspended,
            "is_password_reset_requested": self.is_password_reset_requested,
            "organizations": self.organizations.iter().map(|member| member.webhook(&permissions(member))).collect::<Vec<_>>(),
        });
        match (&self.email, missing_email) {
            (Some(email), _) => user["email"] = json!(email),
            (None, Missing::Null) => user["email"] = Value::Null,
            (None, Missing::Empty) => user["email"] = json!(""),
            (None, Missing::Absent) => {}
        }
        json!({ "user": user })
    }

    /// The response of `GET /oauth2/v2/user_profile`.
    pub(crate) fn profile(&self) -> Value {
        json!({
            "sub": self.id,
            "id": self.id,
            "provided_id": self.provided_id,
            "name": self.full_name(),
            "given_name": self.first_name,
            "family_name": self.last_name,
            "updated_at": self.updated_on.as_second(),
            "email": self.email,
            "email_verified": self.email_verified,
            "picture": self.picture,
            "preferred_username": self.username,
        })
    }
}

impl Membership {
    pub(crate) fn new(code: &str, joined_on: Timestamp) -> Self {
        let code = code.to_owned();
        Self { code, roles: Vec::new(), permissions: Vec::new(), joined_on, is_suspended: false }
    }

    /// Empty roles and permissions are `null`, not `[]`.
    fn webhook(&self, permissions: &[Grant]) -> Value {
        let list = |grants: &[Grant]| if grants.is_empty() { Value::Null } else { json!(grants) };
        let mut item = Map::new();
        item.insert("code".to_owned(), json!(self.code));
        item.insert("permissions".to_owned(), list(permissions));
        item.insert("roles".to_owned(), list(&self.roles));
        Value::Object(item)
    }
}

fn set(field: &mut Option<String>, value: Option<String>) {
    if let Some(text) = value {
        *field = (!text.is_empty()).then_some(text);
    }
}
