//! Commands for organizations, memberships, roles, permissions and properties.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::Target;
use super::request::Request;

#[derive(Debug, Subcommand)]
pub(super) enum Organizations {
    /// List all organizations in the order of creation.
    List(Target),
    /// Create an organization; sends `organization.created`.
    Create {
        /// Name.
        name: String,
        /// Code [default: random]
        #[arg(long)]
        code: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Rename an organization; sends `organization.updated`.
    Rename {
        /// Code of the organization.
        code: String,
        /// New name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete an organization with all memberships; sends `organization.deleted`, and nothing about its members.
    Delete {
        /// Code of the organization.
        code: String,
        #[command(flatten)]
        target: Target,
    },
    /// Add a user to an organization or replace the roles and permissions there; sends `user.updated`.
    Join {
        /// Id of the user.
        user: String,
        /// Code of the organization, which is created unless it exists.
        code: String,
        /// Key of a role, which is created unless it exists; repeatable.
        #[arg(long, value_name = "KEY")]
        role: Vec<String>,
        /// Key of a permission, which is created unless it exists; repeatable.
        #[arg(long, value_name = "KEY")]
        permission: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a user from an organization; sends `user.updated`.
    Leave {
        /// Id of the user.
        user: String,
        /// Code of the organization.
        code: String,
        #[command(flatten)]
        target: Target,
    },
    /// Suspend a member in one organization; sends no event.
    Suspend {
        /// Id of the user.
        user: String,
        /// Code of the organization.
        code: String,
        /// End the suspension instead.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Roles {
    /// List all roles in the order of creation.
    List(Target),
    /// Create a role; sends `role.created`.
    Create(New),
    /// Change the key of a role; sends `role.updated`, and nothing about its members.
    Rename(Rename),
    /// Delete a role and take it from its members; sends `role.deleted`, and nothing about its members.
    Delete(Delete),
    /// Add permissions to a role or remove them; sends no event.
    Permissions {
        /// Id of the role.
        id: String,
        /// Id of a permission to add; repeatable.
        #[arg(long, value_name = "ID")]
        add: Vec<String>,
        /// Id of a permission to remove; repeatable.
        #[arg(long, value_name = "ID")]
        remove: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Permissions {
    /// List all permissions in the order of creation.
    List(Target),
    /// Create a permission; sends `permission.created`.
    Create(New),
    /// Change the key of a permission; sends `permission.updated`.
    Rename(Rename),
    /// Delete a permission and take it from roles and members; sends `permission.deleted`.
    Delete(Delete),
}

#[derive(Debug, Subcommand)]
pub(super) enum Properties {
    /// List all properties in the order of their keys.
    List(Target),
    /// Create a property; sends no event.
    Create {
        /// Key, for example `plan`.
        key: String,
        /// Make it private.
        #[arg(long)]
        private: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub(super) struct New {
    /// Key, for example `admin`.
    key: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(super) struct Rename {
    /// Id.
    id: String,
    /// New key.
    key: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Id.
    id: String,
    #[command(flatten)]
    target: Target,
}

pub(super) fn organizations_request(organizations: Organizations) -> Request {
    match organizations {
        Organizations::List(target) => Request::get(target, &["organizations"]),
        Organizations::Create { name, code, target } => {
            Request::post(target, &["organizations"], json!({"name": name, "code": code}))
        }
        Organizations::Rename { code, name, target } => {
            Request::patch(target, &["organizations", &code], json!({"name": name}))
        }
        Organizations::Delete { code, target } => {
            Request::new(target, Method::DELETE, &["organizations", &code])
        }
        Organizations::Join { user, code, role, permission, target } => {
            let body = json!({"code": code, "roles": role, "permissions": permission});
            Request::post(target, &["users", &user, "organizations"], body)
        }
        Organizations::Leave { user, code, target } => {
            Request::new(target, Method::DELETE, &["users", &user, "organizations", &code])
        }
        Organizations::Suspend { user, code, undo, target } => {
            let body = json!({"is_suspended": !undo});
            Request::patch(target, &["users", &user, "organizations", &code], body)
        }
    }
}

pub(super) fn roles_request(roles: Roles) -> Request {
    match roles {
        Roles::List(target) => Request::get(target, &["roles"]),
        Roles::Create(new) => create("roles", new),
        Roles::Rename(change) => rename("roles", change),
        Roles::Delete(Delete { id, target }) => Request::new(target, Method::DELETE, &["roles", &id]),
        Roles::Permissions { id, add, remove, target } => {
            let body = json!({"add": add, "remove": remove});
            Request::post(target, &["roles", &id, "permissions"], body)
        }
    }
}

pub(super) fn permissions_request(permissions: Permissions) -> Request {
    match permissions {
        Permissions::List(target) => Request::get(target, &["permissions"]),
        Permissions::Create(new) => create("permissions", new),
        Permissions::Rename(change) => rename("permissions", change),
        Permissions::Delete(Delete { id, target }) => {
            Request::new(target, Method::DELETE, &["permissions", &id])
        }
    }
}

pub(super) fn definitions_request(properties: Properties) -> Request {
    match properties {
        Properties::List(target) => Request::get(target, &["properties"]),
        Properties::Create { key, private, target } => {
            Request::post(target, &["properties"], json!({"key": key, "is_private": private}))
        }
    }
}

pub(super) fn properties_request(id: &str, values: Vec<(String, String)>, target: Target) -> Request {
    let value = |(key, value): (String, String)| (key, Some(value).filter(|value| !value.is_empty()));
    let body: BTreeMap<String, Option<String>> = values.into_iter().map(value).collect();
    Request::post(target, &["users", id, "properties"], json!(body))
}

fn create(kind: &str, New { key, target }: New) -> Request {
    Request::post(target, &[kind], json!({"key": key}))
}

fn rename(kind: &str, Rename { id, key, target }: Rename) -> Request {
    Request::patch(target, &[kind, &id], json!({"key": key}))
}

/// Parses KEY=VALUE, where VALUE is text.
pub(super) fn key_text(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must have the form KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
