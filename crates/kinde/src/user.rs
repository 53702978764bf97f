//! Users as Kinde writes them: in events, and in responses of the Management API.
//!
//! The two formats are in one file, because a field that Kinde adds usually occurs in both.

#[cfg(feature = "management")]
use std::fmt;

#[cfg(feature = "management")]
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    event::{
        Error,
        reader::{Reader, wrong_type},
    },
    json::{Json, is_id},
    patch::Patch,
};

/// A user in an event. Events contain no picture, no `email_verified` and no creation time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventUser {
    /// `kp_…`; opaque, 1 to 256 bytes without control characters.
    pub id: String,
    /// Email address; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// Given name.
    pub first_name: Patch<String>,
    /// Family name.
    pub last_name: Patch<String>,
    /// Phone number; an empty string is [`Patch::Null`].
    pub phone: Patch<String>,
    /// User name.
    pub username: Patch<String>,
    /// True if the user cannot sign in.
    pub is_suspended: Patch<bool>,
    /// True if the user must set a new password.
    pub is_password_reset_requested: Patch<bool>,
    /// The memberships in organizations.
    pub organizations: Patch<Vec<Membership>>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// The membership of a user in an organization.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Membership {
    /// `org_…`; opaque.
    pub code: String,
    /// The roles of the user in the organization. Kinde writes `null` for a user without roles.
    pub roles: Patch<Vec<Assignment>>,
    /// The permissions of the user in the organization. Kinde writes `null` for a user without permissions.
    pub permissions: Patch<Vec<Assignment>>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// A role or a permission that is assigned to a user.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assignment {
    /// A UUID; absent if the event contains only a key.
    pub id: Option<String>,
    /// The key that applications refer to, for example `admin`.
    pub key: Option<String>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

impl EventUser {
    /// The members that are decoded. Others are in `extra`.
    pub const MEMBERS: [&'static str; 9] = [
        "id",
        "email",
        "first_name",
        "last_name",
        "phone",
        "username",
        "is_suspended",
        "is_password_reset_requested",
        "organizations",
    ];

    pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            email: reader.address("email")?,
            first_name: reader.text("first_name")?,
            last_name: reader.text("last_name")?,
            phone: reader.address("phone")?,
            username: reader.text("username")?,
            is_suspended: reader.flag("is_suspended")?,
            is_password_reset_requested: reader.flag("is_password_reset_requested")?,
            organizations: organizations(&mut reader)?,
            extra: reader.into_rest(),
        })
    }
}

/// Entries without a code are skipped: Kinde's documentation shows `organizations: [{}]`.
fn organizations(reader: &mut Reader<'_>) -> Result<Patch<Vec<Membership>>, Error> {
    let path = reader.field("organizations");
    let list = reader.list("organizations")?;
    let read = |(index, entry)| Membership::read(&format!("{path}[{index}]"), entry).transpose();
    list.try_map(|entries| entries.into_iter().enumerate().filter_map(read).collect())
}

impl Membership {
    fn read(path: &str, entry: Json<'_>) -> Result<Option<Self>, Error> {
        let mut reader = match entry {
            Json::Object(members) => Reader::new(path.to_owned(), members),
            Json::Null => return Ok(None),
            other => return Err(wrong_type(path.to_owned(), "an object", &other)),
        };
        let Some(code) = reader.text("code")?.into_value().filter(|code| !code.is_empty()) else {
            return Ok(None);
        };
        if !is_id(&code) {
            return Err(Error::InvalidIdentifier { field: reader.field("code") });
        }
        let roles = assignments(&mut reader, "roles")?;
        let permissions = assignments(&mut reader, "permissions")?;
        Ok(Some(Self { code, roles, permissions, extra: reader.into_rest() }))
    }
}

pub(crate) fn assignments(reader: &mut Reader<'_>, key: &str) -> Result<Patch<Vec<Assignment>>, Error> {
    let path = reader.field(key);
    let list = reader.list(key)?;
    let read = |(index, entry)| Assignment::read(format!("{path}[{index}]"), entry);
    list.try_map(|entries| entries.into_iter().enumerate().map(read).collect())
}

impl Assignment {
    /// Reads an object, or a plain string as in Kinde's published types before 2025-05.
    fn read(path: String, entry: Json<'_>) -> Result<Self, Error> {
        let mut reader = match entry {
            Json::Object(members) => Reader::new(path, members),
            Json::Text(key) => return Ok(Self { key: Some(key.into_owned()), ..Self::default() }),
            other => return Err(wrong_type(path, "an object or a string", &other)),
        };
        let id = reader.text("id")?.into_value();
        let key = reader.text("key")?.into_value();
        Ok(Self { id, key, extra: reader.into_rest() })
    }
}

/// A user in a response of the Management API, which returns neither the time of the last change nor whether the email is verified.
#[cfg(feature = "management")]
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ApiUser {
    /// `kp_…`; opaque, 1 to 256 bytes without control characters.
    pub id: String,
    /// Id that an import assigned.
    pub provided_id: Patch<String>,
    /// `email` of the list, `preferred_email` of the single user; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// Phone number; an empty string is [`Patch::Null`].
    pub phone: Patch<String>,
    /// User name.
    pub username: Patch<String>,
    /// Given name.
    pub first_name: Patch<String>,
    /// Family name.
    pub last_name: Patch<String>,
    /// True if the user cannot sign in.
    pub is_suspended: Patch<bool>,
    /// URL of the picture.
    pub picture: Patch<String>,
    /// Number of sign-ins.
    pub total_sign_ins: Option<u64>,
    /// Number of failed sign-ins since the last successful one.
    pub failed_sign_ins: Option<u64>,
    /// Time of the last sign-in.
    pub last_signed_in: Option<Timestamp>,
    /// Time of creation.
    pub created_on: Option<Timestamp>,
    /// Codes of the organizations of the user; absent unless expanded.
    pub organizations: Patch<Vec<String>>,
    /// The identities of the user; absent unless expanded.
    pub identities: Patch<Vec<Identity>>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// An identity that a user signs in with.
#[cfg(feature = "management")]
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Identity {
    /// `email`, `phone`, `username`, `oauth2:google` or a newer value.
    pub identity_type: String,
    /// Email address, phone number, user name or id.
    pub identity: Option<String>,
    /// Connection of a social or enterprise identity.
    pub connection_id: Option<String>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

#[cfg(feature = "management")]
impl ApiUser {
    pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        let email = reader.address("email")?;
        let preferred_email = reader.address("preferred_email")?;
        Ok(Self {
            id: reader.required_id("id")?,
            provided_id: reader.text("provided_id")?,
            email: if email.is_absent() { preferred_email } else { email },
            phone: reader.address("phone")?,
            username: reader.text("username")?,
            first_name: reader.text("first_name")?,
            last_name: reader.text("last_name")?,
            is_suspended: reader.flag("is_suspended")?,
            picture: reader.text("picture")?,
            total_sign_ins: reader.count("total_sign_ins")?,
            failed_sign_ins: reader.count("failed_sign_ins")?,
            last_signed_in: reader.time("last_signed_in")?,
            created_on: reader.time("created_on")?,
            organizations: reader.texts("organizations")?,
            identities: identities(&mut reader)?,
            extra: reader.into_rest(),
        })
    }
}

#[cfg(feature = "management")]
fn identities(reader: &mut Reader<'_>) -> Result<Patch<Vec<Identity>>, Error> {
    reader.objects("identities")?.try_map(|entries| entries.into_iter().map(Identity::read).collect())
}

#[cfg(feature = "management")]
impl Identity {
    fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            identity_type: reader.text("type")?.into_value().unwrap_or_default(),
            identity: reader.text("identity")?.into_value(),
            connection_id: reader.text("connection_id")?.into_value(),
            extra: reader.into_rest(),
        })
    }
}

/// Prints the id only: the other fields are personal data.
#[cfg(feature = "management")]
impl fmt::Debug for ApiUser {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Prints the type only: the other fields are personal data.
#[cfg(feature = "management")]
impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").field("identity_type", &self.identity_type).finish_non_exhaustive()
    }
}
