//! Organizations, roles, permissions, subscribers and access requests in events.

use serde_json::{Map, Value};

use super::Error;
use super::reader::Reader;
use crate::patch::Patch;

/// A request for access, of `access_request.created`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AccessRequest {
    /// Email address; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// Given name.
    pub first_name: Patch<String>,
    /// Family name.
    pub last_name: Patch<String>,
    /// The requesting user, if known.
    pub user_id: Option<String>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// A subscriber, of `subscriber.created`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subscriber {
    /// Id of the subscriber.
    pub id: String,
    /// Email address; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// Given name.
    pub first_name: Patch<String>,
    /// Family name.
    pub last_name: Patch<String>,
    /// The subscribed user, if known.
    pub user_id: Option<String>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// An organization, of `organization.created` and `organization.updated`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Organization {
    /// `org_…`; opaque.
    pub code: String,
    /// Display name.
    pub name: Patch<String>,
    /// Name in URLs.
    pub handle: Patch<String>,
    /// Id that the application assigned.
    pub external_id: Patch<String>,
    /// True if registration is open.
    pub is_allow_registrations: Patch<bool>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// A role: in `role.created` and `role.updated`, and in responses of the Management API.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Role {
    /// A UUID; opaque.
    pub id: String,
    /// Key that applications refer to.
    pub key: Patch<String>,
    /// Display name.
    pub name: Patch<String>,
    /// Description.
    pub description: Patch<String>,
    /// True if new members get the role.
    pub is_default_role: Patch<bool>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// A permission: in `permission.created` and `permission.updated`, and in responses of the Management API.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Permission {
    /// A UUID; opaque.
    pub id: String,
    /// Key that applications refer to.
    pub key: Patch<String>,
    /// Display name.
    pub name: Patch<String>,
    /// Description.
    pub description: Patch<String>,
    /// Unknown members.
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
    pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
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
    pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            key: reader.text("key")?,
            name: reader.text("name")?,
            description: reader.text("description")?,
            extra: reader.into_rest(),
        })
    }
}
