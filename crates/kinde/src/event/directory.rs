//! What events tell of everything that is not a user: organizations, roles, permissions, subscribers.

use serde_json::{Map, Value};

use super::Error;
use super::reader::Reader;
use crate::patch::Patch;

/// Someone asked for access, of `access_request.created`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AccessRequest {
    /// The address; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// Given name.
    pub first_name: Patch<String>,
    /// Family name.
    pub last_name: Patch<String>,
    /// The user that asks, where there is one.
    pub user_id: Option<String>,
    /// Members that are not known here.
    pub extra: Map<String, Value>,
}

/// A subscriber, of `subscriber.created`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subscriber {
    /// The subscriber's id.
    pub id: String,
    /// The address; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// Given name.
    pub first_name: Patch<String>,
    /// Family name.
    pub last_name: Patch<String>,
    /// The user that subscribed, where there is one.
    pub user_id: Option<String>,
    /// Members that are not known here.
    pub extra: Map<String, Value>,
}

/// An organization, of `organization.created` and `organization.updated`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Organization {
    /// `org_…`; opaque.
    pub code: String,
    /// The name that people read.
    pub name: Patch<String>,
    /// The name in addresses.
    pub handle: Patch<String>,
    /// The application's own id of it.
    pub external_id: Patch<String>,
    /// True when anyone may register.
    pub is_allow_registrations: Patch<bool>,
    /// Members that are not known here.
    pub extra: Map<String, Value>,
}

/// A role, of `role.created` and `role.updated`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Role {
    /// A UUID; opaque.
    pub id: String,
    /// The name that code refers to.
    pub key: Patch<String>,
    /// The name that people read.
    pub name: Patch<String>,
    /// What it is for.
    pub description: Patch<String>,
    /// True when new members get it.
    pub is_default_role: Patch<bool>,
    /// Members that are not known here.
    pub extra: Map<String, Value>,
}

/// A permission, of `permission.created` and `permission.updated`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Permission {
    /// A UUID; opaque.
    pub id: String,
    /// The name that code refers to.
    pub key: Patch<String>,
    /// The name that people read.
    pub name: Patch<String>,
    /// What it is for.
    pub description: Patch<String>,
    /// Members that are not known here.
    pub extra: Map<String, Value>,
}

impl AccessRequest {
    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            email: reader.address("email")?,
            first_name: reader.text("first_name")?,
            last_name: reader.text("last_name")?,
            user_id: reader.optional_id("user_id")?,
            extra: reader.into_rest(),
        })
    }
}

impl Subscriber {
    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            email: reader.address("email")?,
            first_name: reader.text("first_name")?,
            last_name: reader.text("last_name")?,
            user_id: reader.optional_id("user_id")?,
            extra: reader.into_rest(),
        })
    }
}

impl Organization {
    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            code: reader.required_id("code")?,
            name: reader.text("name")?,
            handle: reader.text("handle")?,
            external_id: reader.text("external_id")?,
            is_allow_registrations: reader.flag("is_allow_registrations")?,
            extra: reader.into_rest(),
        })
    }
}

impl Role {
    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            key: reader.text("key")?,
            name: reader.text("name")?,
            description: reader.text("description")?,
            is_default_role: reader.flag("is_default_role")?,
            extra: reader.into_rest(),
        })
    }
}

impl Permission {
    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            key: reader.text("key")?,
            name: reader.text("name")?,
            description: reader.text("description")?,
            extra: reader.into_rest(),
        })
    }
}
