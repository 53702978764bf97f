//! Organizations, roles, permissions and property keys of the tenant, in the order of their creation.

mod table;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::config::UserPermissions;
use crate::user::{Grant, Membership, User};

pub(crate) use table::Table;

/// An organization.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Organization {
    /// `org_` and 11 hex digits.
    pub code: String,
    /// Name.
    pub name: String,
    /// Name in URLs.
    pub handle: Option<String>,
    /// Id of the organization in another system.
    pub external_id: Option<String>,
    /// Whether users that request no other organization join it.
    pub is_default: bool,
    /// Whether users can sign up to it.
    pub is_allow_registrations: bool,
    /// Whether it is suspended.
    pub is_suspended: bool,
    /// When it was created.
    pub created_on: Timestamp,
}

/// A role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Role {
    /// UUID.
    pub id: String,
    /// Key, e.g. `admin`.
    pub key: String,
    /// Name.
    pub name: String,
    /// Description.
    pub description: Option<String>,
    /// Whether Kinde gives it to new members. The emulator does not.
    pub is_default_role: bool,
    /// Ids of its permissions.
    pub permissions: Vec<String>,
}

/// A permission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Permission {
    /// UUID.
    pub id: String,
    /// Key, e.g. `edit:invoices`.
    pub key: String,
    /// Name.
    pub name: String,
    /// Description.
    pub description: Option<String>,
}

/// The fields of a new organization, or the changes of one. Absent fields are kept; an empty text removes a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrganizationEdit {
    /// Code of a new organization; by default a random `org_…`.
    pub code: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Name in URLs.
    pub handle: Option<String>,
    /// Id of the organization in another system.
    pub external_id: Option<String>,
    /// Whether users can sign up to it.
    pub is_allow_registrations: Option<bool>,
    /// Whether it is suspended.
    pub is_suspended: Option<bool>,
}

/// The fields of a new role or permission, or the changes of one. Absent fields are kept; an empty text removes a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoleEdit {
    /// Key; by default the name.
    pub key: Option<String>,
    /// Name; by default the key.
    pub name: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// Whether Kinde gives it to new members. The emulator does not. Not for permissions.
    pub is_default_role: Option<bool>,
}

impl RoleEdit {
    /// Creates a role or a permission with a key, which is its name too.
    #[must_use]
    pub fn keyed(key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..Self::default() }
    }
}

/// A property that users can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// `prop_…`.
    pub id: String,
    /// Key that applications refer to.
    pub key: String,
    /// Display name.
    pub name: String,
    /// Description.
    pub description: Option<String>,
    /// Whether tokens and front ends do not get the values.
    pub is_private: bool,
}

/// A new property.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PropertyEdit {
    /// Key.
    pub key: String,
    /// Name; by default the key.
    pub name: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// Whether it is private; by default it is not.
    pub is_private: Option<bool>,
}

/// Everything that a tenant has besides users.
pub(crate) struct Directory {
    pub(crate) organizations: Table<Organization>,
    pub(crate) roles: Table<Role>,
    pub(crate) permissions: Table<Permission>,
    /// Properties of users by key.
    pub(crate) properties: BTreeMap<String, Property>,
}

/// The generated organizations, roles and permissions.
pub(crate) struct Objects {
    pub(crate) organizations: Vec<Organization>,
    pub(crate) roles: Vec<Role>,
    pub(crate) permissions: Vec<Permission>,
}

impl Directory {
    /// A directory with the default organization.
    pub(crate) fn new(code: &str, at: Timestamp) -> Self {
        let mut organizations = Table::default();
        let default = Organization { is_default: true, ..Organization::new(code, at) };
        organizations.add(code, default);
        Self {
            organizations,
            roles: Table::default(),
            permissions: Table::default(),
            properties: BTreeMap::new(),
        }
    }

    /// Adds generated objects.
    pub(crate) fn add_generated(&mut self, objects: Objects) {
        objects.organizations.into_iter().for_each(|one| self.organizations.add(&one.code.clone(), one));
        objects.permissions.into_iter().for_each(|one| self.permissions.add(&one.id.clone(), one));
        objects.roles.into_iter().for_each(|one| self.roles.add(&one.id.clone(), one));
    }

    /// Removes generated objects that were not deleted.
    pub(crate) fn remove_generated(&mut self, objects: &Objects) {
        objects.organizations.iter().for_each(|one| drop(self.organizations.remove(&one.code)));
        objects.permissions.iter().for_each(|one| drop(self.permissions.remove(&one.id)));
        objects.roles.iter().for_each(|one| drop(self.roles.remove(&one.id)));
    }

    /// Removes the memberships and grants of a user that refer to nothing in this directory.
    pub(crate) fn remove_dangling(&self, user: &mut User) {
        user.organizations.retain(|member| self.organizations.get(&member.code).is_some());
        for member in &mut user.organizations {
            member.roles.retain(|grant| self.roles.get(&grant.id).is_some());
            member.permissions.retain(|grant| self.permissions.get(&grant.id).is_some());
        }
    }

    /// Adds an organization with this code and no other values unless there is one.
    pub(crate) fn ensure_organization(&mut self, code: &str, at: Timestamp) {
        if self.organizations.get(code).is_none() {
            self.organizations.add(code, Organization::new(code, at));
        }
    }

    /// Returns the role with this key, and adds it unless there is one.
    pub(crate) fn ensure_role(&mut self, key: &str, clock: &mut Clock) -> Grant {
        if let Some(role) = self.roles.iter().find(|role| role.key == key) {
            return role.grant();
        }
        let role = Role::new(clock.uuid(), key);
        self.roles.add(&role.id, role.clone());
        role.grant()
    }

    /// Returns the permission with this key, and adds it unless there is one.
    pub(crate) fn ensure_permission(&mut self, key: &str, clock: &mut Clock) -> Grant {
        if let Some(permission) = self.permissions.iter().find(|permission| permission.key == key) {
            return permission.grant();
        }
        let permission = Permission::new(clock.uuid(), key);
        self.permissions.add(&permission.id, permission.clone());
        permission.grant()
    }

    /// The permissions of a membership in the order of their creation, with the roles of the member that contain them.
    pub(crate) fn permissions_of(
        &self,
        member: &Membership,
        content: UserPermissions,
    ) -> Vec<(&Permission, Vec<&Role>)> {
        let roles: Vec<&Role> = member.roles.iter().filter_map(|grant| self.roles.get(&grant.id)).collect();
        let of = |permission: &Permission| {
            let contains = |role: &&&Role| role.permissions.contains(&permission.id);
            roles.iter().filter(contains).copied().collect::<Vec<_>>()
        };
        let is_listed = |(permission, roles): &(&Permission, Vec<&Role>)| {
            member.permissions.iter().any(|grant| grant.id == permission.id)
                || content == UserPermissions::Effective && !roles.is_empty()
        };
        self.permissions.iter().map(|permission| (permission, of(permission))).filter(is_listed).collect()
    }
}

impl Property {
    pub(crate) fn new(id: String, edit: PropertyEdit) -> Self {
        Self {
            id,
            name: edit.name.unwrap_or_else(|| edit.key.clone()),
            key: edit.key,
            description: edit.description,
            is_private: edit.is_private.unwrap_or_default(),
        }
    }
}

impl Organization {
    pub(crate) fn new(code: &str, created_on: Timestamp) -> Self {
        Self {
            code: code.to_owned(),
            name: code.to_owned(),
            handle: None,
            external_id: None,
            is_default: false,
            is_allow_registrations: false,
            is_suspended: false,
            created_on,
        }
    }

    pub(crate) fn apply(&mut self, edit: OrganizationEdit) {
        self.name = edit.name.unwrap_or_else(|| std::mem::take(&mut self.name));
        set(&mut self.handle, edit.handle);
        set(&mut self.external_id, edit.external_id);
        self.is_allow_registrations = edit.is_allow_registrations.unwrap_or(self.is_allow_registrations);
        self.is_suspended = edit.is_suspended.unwrap_or(self.is_suspended);
    }

    /// `data` of `organization.created`.
    pub(crate) fn created(&self) -> Value {
        let mut organization = json!({"code": self.code, "handle": self.handle, "name": self.name});
        if let Some(id) = &self.external_id {
            organization["external_id"] = json!(id);
        }
        json!({ "organization": organization })
    }

    /// `data` of `organization.updated`.
    pub(crate) fn updated(&self) -> Value {
        json!({"organization": {
            "code": self.code,
            "external_id": self.external_id,
            "handle": self.handle,
            "is_allow_registrations": self.is_allow_registrations,
            "name": self.name,
        }})
    }
}

impl Role {
    pub(crate) fn new(id: String, key: &str) -> Self {
        let (key, name) = (key.to_owned(), key.to_owned());
        Self { id, key, name, description: None, is_default_role: false, permissions: Vec::new() }
    }

    pub(crate) fn apply(&mut self, edit: RoleEdit) {
        self.key = edit.key.unwrap_or_else(|| std::mem::take(&mut self.key));
        self.name = edit.name.unwrap_or_else(|| std::mem::take(&mut self.name));
        set(&mut self.description, edit.description);
        self.is_default_role = edit.is_default_role.unwrap_or(self.is_default_role);
    }

    pub(crate) fn grant(&self) -> Grant {
        Grant { id: self.id.clone(), key: self.key.clone() }
    }

    /// `data` of `role.created` and `role.updated`.
    pub(crate) fn data(&self) -> Value {
        json!({"role": {
            "id": self.id,
            "key": self.key,
            "name": self.name,
            "description": self.description,
            "is_default_role": self.is_default_role,
        }})
    }
}

impl Permission {
    pub(crate) fn new(id: String, key: &str) -> Self {
        Self { id, key: key.to_owned(), name: key.to_owned(), description: None }
    }

    pub(crate) fn apply(&mut self, edit: RoleEdit) {
        self.key = edit.key.unwrap_or_else(|| std::mem::take(&mut self.key));
        self.name = edit.name.unwrap_or_else(|| std::mem::take(&mut self.name));
        set(&mut self.description, edit.description);
    }

    pub(crate) fn grant(&self) -> Grant {
        Grant { id: self.id.clone(), key: self.key.clone() }
    }

    /// `data` of `permission.created` and `permission.updated`.
    pub(crate) fn data(&self) -> Value {
        json!({"permission": {
            "id": self.id,
            "key": self.key,
            "name": self.name,
            "description": self.description,
        }})
    }
}

fn set(field: &mut Option<String>, value: Option<String>) {
    if let Some(text) = value {
        *field = (!text.is_empty()).then_some(text);
    }
}
