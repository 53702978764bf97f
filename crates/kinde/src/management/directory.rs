//! Organizations with their members, roles and permissions in the Management API.

use std::fmt;

use jiff::Timestamp;
use reqwest::StatusCode;
use serde_json::{Map, Value};

use super::call::{Call, Effect};
use super::pages::{List, Pages, Paging};
use super::{Client, Error, Permission, Role, check_id, is_missing};
use crate::endpoint::Endpoint;
use crate::event;
use crate::event::reader::Reader;
use crate::patch::Patch;
use crate::response::Response;
use crate::user::{Assignment, assignments};

/// Codes of a 400 that mean that the organization, the role or the member does not exist. Kinde documents none.
const UNKNOWN: [&str; 8] = [
    "NOT_FOUND",
    "RESOURCE_NOT_FOUND",
    "ORGANIZATION_NOT_FOUND",
    "ORGANIZATION_INVALID",
    "ROLE_NOT_FOUND",
    "ROLE_INVALID",
    "USER_NOT_FOUND",
    "USER_INVALID",
];

/// An organization. The list contains fewer fields than the response for a single organization.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Organization {
    /// `org_…`; opaque, 1 to 256 bytes without control characters.
    pub code: String,
    /// Display name.
    pub name: Patch<String>,
    /// Name in URLs.
    pub handle: Patch<String>,
    /// True if users join this organization unless they request another one.
    pub is_default: Patch<bool>,
    /// Id that the application assigned.
    pub external_id: Patch<String>,
    /// True if users with an allowed domain become members when they sign in.
    pub is_auto_membership_enabled: Patch<bool>,
    /// Time of creation. Not in the list.
    pub created_on: Option<Timestamp>,
    /// True if registration is open. Not in the list.
    pub is_allow_registrations: Patch<bool>,
    /// True if no member can sign in to the organization. Not in the list.
    pub is_suspended: Patch<bool>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// A member of an organization.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct OrganizationUser {
    /// `kp_…`; opaque. The documentation allows a member without an id.
    pub id: Option<String>,
    /// Email address; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// First and last name.
    pub full_name: Patch<String>,
    /// Given name.
    pub first_name: Patch<String>,
    /// Family name.
    pub last_name: Patch<String>,
    /// URL of the picture.
    pub picture: Patch<String>,
    /// When the user joined the organization.
    pub joined_on: Option<Timestamp>,
    /// Time of the last sign-in to the organization.
    pub last_accessed_on: Option<Timestamp>,
    /// True if the user cannot sign in to this organization.
    pub is_suspended: Patch<bool>,
    /// Keys of the roles of the user in the organization.
    pub roles: Patch<Vec<String>>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// A permission of a user in an organization.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct UserPermission {
    /// The permission.
    pub permission: Permission,
    /// The roles of the user that contain the permission.
    pub roles: Patch<Vec<Assignment>>,
}

/// A user with a certain role.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RoleUser {
    /// `kp_…`; opaque, 1 to 256 bytes without control characters.
    pub id: String,
    /// Codes of the organizations in which the user has the role.
    pub org_codes: Vec<String>,
}

/// Organizations, members, roles and permissions.
///
/// A read of an object returns `None` if Kinde reports that it does not exist: a 404 with any code except
/// `ROUTE_NOT_FOUND`, or a 400 with a code such as `ORGANIZATION_INVALID` (Kinde documents none). A list of an object that
/// does not exist is [`Error::UnexpectedStatus`].
impl Client {
    /// Lists all organizations. Scope `read:organizations`.
    pub fn organizations(&self) -> Pages<Organization> {
        let list = List {
            endpoint: Endpoint::Organizations,
            scope: "read:organizations",
            url: self.url(&["organizations"]),
            query: Vec::new(),
            member: "organizations",
            paging: Paging::Token,
            read: Organization::read,
        };
        Pages::new(self.clone(), list)
    }

    /// Reads one organization; `None` if it does not exist. Scope `read:organizations`.
    pub async fn organization(&self, code: &str) -> Result<Response<Option<Organization>>, Error> {
        check_id(code)?;
        let url = self.url(&["organization"]);
        let call = Call {
            endpoint: Endpoint::Organization,
            scope: "read:organizations",
            effect: Effect::Idempotent,
            build: |http: &reqwest::Client| http.get(url.clone()).query(&[("code", code)]),
            is_absent: is_unknown,
            read: Organization::read,
        };
        let response = call.run(&self.0).await?;
        if response.value.as_ref().is_some_and(|found| found.code != code) {
            return Err(Error::WrongObject);
        }
        Ok(response)
    }

    /// Lists the members of an organization with the keys of their roles. Scope `read:organization_users`.
    pub fn organization_users(&self, code: &str) -> Result<Pages<OrganizationUser>, Error> {
        check_id(code)?;
        let list = List {
            endpoint: Endpoint::OrganizationUsers,
            scope: "read:organization_users",
            url: self.url(&["organizations", code, "users"]),
            query: Vec::new(),
            member: "organization_users",
            paging: Paging::Token,
            read: OrganizationUser::read,
        };
        Ok(Pages::new(self.clone(), list))
    }

    /// Lists the roles of a user in an organization, with id and key. Scope `read:organization_user_roles`.
    pub fn user_roles(&self, code: &str, user: &str) -> Result<Pages<Role>, Error> {
        [code, user].into_iter().try_for_each(check_id)?;
        let list = List {
            endpoint: Endpoint::UserRoles,
            scope: "read:organization_user_roles",
            url: self.url(&["organizations", code, "users", user, "roles"]),
            query: Vec::new(),
            member: "roles",
            paging: Paging::Unsized,
            read: Role::read,
        };
        Ok(Pages::new(self.clone(), list))
    }

    /// Lists the permissions of a user in an organization, and the roles that contain them. Scope
    /// `read:organization_user_permissions`.
    ///
    /// Kinde does not document whether permissions that the user has only through a role are listed.
    pub fn user_permissions(&self, code: &str, user: &str) -> Result<Pages<UserPermission>, Error> {
        [code, user].into_iter().try_for_each(check_id)?;
        let list = List {
            endpoint: Endpoint::UserPermissions,
            scope: "read:organization_user_permissions",
            url: self.url(&["organizations", code, "users", user, "permissions"]),
            query: vec![("expand", "roles".to_owned())],
            member: "permissions",
            paging: Paging::Unsized,
            read: UserPermission::read,
        };
        Ok(Pages::new(self.clone(), list))
    }

    /// Lists all roles. Scope `read:roles`.
    pub fn roles(&self) -> Pages<Role> {
        let list = List {
            endpoint: Endpoint::Roles,
            scope: "read:roles",
            url: self.url(&["roles"]),
            query: Vec::new(),
            member: "roles",
            paging: Paging::Token,
            read: Role::read,
        };
        Pages::new(self.clone(), list)
    }

    /// Reads one role; `None` if it does not exist. Scope `read:roles`.
    pub async fn role(&self, id: &str) -> Result<Response<Option<Role>>, Error> {
        check_id(id)?;
        let url = self.url(&["roles", id]);
        let call = Call {
            endpoint: Endpoint::Role,
            scope: "read:roles",
            effect: Effect::Idempotent,
            build: |http: &reqwest::Client| http.get(url.clone()),
            is_absent: is_unknown,
            read: |mut response: Reader<'_>| Role::read(response.required_object("role")?),
        };
        let response = call.run(&self.0).await?;
        if response.value.as_ref().is_some_and(|found| found.id != id) {
            return Err(Error::WrongObject);
        }
        Ok(response)
    }

    /// Lists the permissions of a role. Scope `read:role_permissions`.
    pub fn role_permissions(&self, role: &str) -> Result<Pages<Permission>, Error> {
        check_id(role)?;
        let list = List {
            endpoint: Endpoint::RolePermissions,
            scope: "read:role_permissions",
            url: self.url(&["roles", role, "permissions"]),
            query: Vec::new(),
            member: "permissions",
            paging: Paging::Token,
            read: Permission::read,
        };
        Ok(Pages::new(self.clone(), list))
    }

    /// Lists the users with a role in any organization. Scope `read:organization_user_roles`.
    pub fn role_users(&self, role: &str) -> Result<Pages<RoleUser>, Error> {
        check_id(role)?;
        let list = List {
            endpoint: Endpoint::RoleUsers,
            scope: "read:organization_user_roles",
            url: self.url(&["roles", role, "users"]),
            query: Vec::new(),
            member: "users",
            paging: Paging::Token,
            read: RoleUser::read,
        };
        Ok(Pages::new(self.clone(), list))
    }

    /// Lists all permissions. Scope `read:permissions`.
    pub fn permissions(&self) -> Pages<Permission> {
        let list = List {
            endpoint: Endpoint::Permissions,
            scope: "read:permissions",
            url: self.url(&["permissions"]),
            query: Vec::new(),
            member: "permissions",
            paging: Paging::Token,
            read: Permission::read,
        };
        Pages::new(self.clone(), list)
    }
}

fn is_unknown(status: StatusCode, code: &str) -> bool {
    is_missing(status, code, |code| UNKNOWN.contains(&code))
}

impl Organization {
    fn read(mut reader: Reader<'_>) -> Result<Self, event::Error> {
        Ok(Self {
            code: reader.required_id("code")?,
            name: reader.text("name")?,
            handle: reader.text("handle")?,
            is_default: reader.flag("is_default")?,
            external_id: reader.text("external_id")?,
            is_auto_membership_enabled: reader.flag("is_auto_membership_enabled")?,
            created_on: reader.time("created_on")?,
            is_allow_registrations: reader.flag("is_allow_registrations")?,
            is_suspended: reader.flag("is_suspended")?,
            extra: reader.into_rest(),
        })
    }
}

impl OrganizationUser {
    fn read(mut reader: Reader<'_>) -> Result<Self, event::Error> {
        Ok(Self {
            id: reader.optional_id("id")?,
            email: reader.address("email")?,
            full_name: reader.text("full_name")?,
            first_name: reader.text("first_name")?,
            last_name: reader.text("last_name")?,
            picture: reader.text("picture")?,
            joined_on: reader.time("joined_on")?,
            last_accessed_on: reader.time("last_accessed_on")?,
            is_suspended: reader.flag("is_suspended")?,
            roles: reader.texts("roles")?,
            extra: reader.into_rest(),
        })
    }
}

impl UserPermission {
    fn read(mut reader: Reader<'_>) -> Result<Self, event::Error> {
        let roles = assignments(&mut reader, "roles")?;
        Ok(Self { permission: Permission::read(reader)?, roles })
    }
}

impl RoleUser {
    fn read(mut reader: Reader<'_>) -> Result<Self, event::Error> {
        let codes = reader.texts("org_codes")?.into_value();
        let missing = || event::Error::MissingField { field: reader.field("org_codes") };
        let org_codes = codes.ok_or_else(missing)?;
        Ok(Self { id: reader.required_id("id")?, org_codes })
    }
}

/// Prints the id only: the other fields are personal data.
impl fmt::Debug for OrganizationUser {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OrganizationUser").field("id", &self.id).finish_non_exhaustive()
    }
}
