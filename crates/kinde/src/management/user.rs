//! Users in responses of the Management API.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::event::Error;
use crate::event::reader::Reader;
use crate::patch::Patch;

/// A user. The API returns neither the time of the last change nor whether the email is verified.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct User {
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

impl User {
    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
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

fn identities(reader: &mut Reader<'_>) -> Result<Patch<Vec<Identity>>, Error> {
    Ok(match reader.objects("identities")? {
        Patch::Value(entries) => {
            Patch::Value(entries.into_iter().map(Identity::read).collect::<Result<_, _>>()?)
        }
        Patch::Null => Patch::Null,
        Patch::Absent => Patch::Absent,
    })
}

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
impl fmt::Debug for User {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Prints the type only: the other fields are personal data.
impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").field("identity_type", &self.identity_type).finish_non_exhaustive()
    }
}
