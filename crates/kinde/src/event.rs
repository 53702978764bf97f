//! What a verified delivery means: typed events.
//!
//! Decoding starts after verification. An event of an unknown type is no error: it is [`Body::Unknown`]. An event of a
//! known type that lacks what it cannot do without (a user without an id) or has a value of the wrong type is an
//! [`Error`]: verified but not understood. Fields that are not known here are kept, never dropped.
//!
//! Shapes: <https://docs.kinde.com/integrate/webhooks/about-webhooks/>, kinde-oss/webhook `lib/types.ts`.

mod directory;
pub(crate) mod reader;
mod user;

use jiff::Timestamp;
use serde_json::{Map, Value};

pub use self::directory::{AccessRequest, Organization, Permission, Role, Subscriber};
use self::reader::Reader;
pub use self::user::{Assignment, Membership, User};
use crate::{json, timestamp};

/// One event as Kinde tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `event_id`. Bodies of relays may lack it: the delivery then has an id of its own.
    pub id: Option<String>,
    /// When it happened at Kinde: `event_timestamp`, else `timestamp`.
    pub time: Option<Timestamp>,
    /// `type`, for example `user.created`.
    pub event_type: String,
    /// Where the change was made: `admin`, `api`, `user` or something newer.
    pub source: Option<String>,
    /// What happened.
    pub body: Body,
    /// Members of the envelope that are not known here; what is left of `data` is under `data`.
    pub extra: Map<String, Value>,
}

/// What happened, by type.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Body {
    /// `user.created`.
    UserCreated(User),
    /// `user.updated`: all fields of the user, not only the changed ones.
    UserUpdated(User),
    /// `user.deleted`.
    UserDeleted {
        /// The user's id.
        id: String,
    },
    /// `user.authenticated`: a sign-in.
    UserAuthenticated {
        /// The user's id.
        id: String,
        /// Where from.
        ip_address: Option<String>,
    },
    /// `user.authentication_failed`.
    UserAuthenticationFailed {
        /// The user's id.
        id: String,
        /// Where from.
        ip_address: Option<String>,
    },
    /// `access_request.created`.
    AccessRequestCreated(AccessRequest),
    /// `subscriber.created`.
    SubscriberCreated(Subscriber),
    /// `organization.created`.
    OrganizationCreated(Organization),
    /// `organization.updated`.
    OrganizationUpdated(Organization),
    /// `organization.deleted`.
    OrganizationDeleted {
        /// The organization's code.
        code: String,
    },
    /// `role.created`.
    RoleCreated(Role),
    /// `role.updated`.
    RoleUpdated(Role),
    /// `role.deleted`.
    RoleDeleted {
        /// The role's id.
        id: String,
    },
    /// `permission.created`.
    PermissionCreated(Permission),
    /// `permission.updated`.
    PermissionUpdated(Permission),
    /// `permission.deleted`.
    PermissionDeleted {
        /// The permission's id.
        id: String,
    },
    /// `passkey.added`, `passkey.removed`: Kinde publishes no shape.
    Passkey {
        /// `data` as it came.
        data: Value,
    },
    /// `customer.…`, the billing events: Kinde publishes no shape.
    Customer {
        /// `data` as it came.
        data: Value,
    },
    /// Any other type, with `data` as it came (the whole body where there is no `data`).
    Unknown(Value),
}

impl Body {
    /// The id of the user that the event changes or tells of, for the `user.…` events.
    pub fn user_id(&self) -> Option<&str> {
        match self {
            Self::UserCreated(user) | Self::UserUpdated(user) => Some(&user.id),
            Self::UserDeleted { id }
            | Self::UserAuthenticated { id, .. }
            | Self::UserAuthenticationFailed { id, .. } => Some(id),
            _ => None,
        }
    }
}

/// Why a payload cannot be understood. The text names fields and types, never values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not JSON, or not an object.
    #[error("the payload is not a JSON object")]
    NotAnObject(#[source] serde_json::Error),
    /// Two members of one object have the same name: which one counts is anybody's guess.
    #[error("the member {member:?} is there more than once")]
    DuplicateMember {
        /// Its name.
        member: String,
    },
    /// Something that the event cannot do without is absent or null.
    #[error("`{field}` is missing")]
    MissingField {
        /// Its path.
        field: String,
    },
    /// A value has another type than it should.
    #[error("`{field}` is {found}, not {expected}")]
    WrongType {
        /// Its path.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// An identifier that cannot be one.
    #[error("`{field}` is not an identifier: 1 to 256 bytes without control characters")]
    InvalidIdentifier {
        /// Its path.
        field: String,
    },
    /// A time that cannot be read.
    #[error("`{field}` cannot be read as a time")]
    InvalidTime {
        /// Its path.
        field: String,
        /// Why.
        #[source]
        source: timestamp::Error,
    },
}

/// Decodes the JSON payload of a verified delivery, in either shape: `{type, data: {user}}` or `{type, user}`.
///
/// ```
/// use kinde::event::{self, Body};
///
/// let event = event::decode(br#"{"type":"user.deleted","data":{"user":{"id":"kp_1"}}}"#)?;
/// assert!(matches!(event.body, Body::UserDeleted { id } if id == "kp_1"));
/// # Ok::<(), event::Error>(())
/// ```
pub fn decode(payload: &[u8]) -> Result<Event, Error> {
    let members = json::object(payload).map_err(|error| match error {
        json::Error::Duplicate(member) => Error::DuplicateMember { member },
        json::Error::Syntax(source) => Error::NotAnObject(source),
    })?;
    read(Reader::new(String::new(), members))
}

pub(crate) fn read(mut envelope: Reader<'_>) -> Result<Event, Error> {
    let event_type = envelope.required_id("type")?;
    let id = envelope.optional_id("event_id")?;
    let source = envelope.text("source")?.into_value();
    let event_time = envelope.time("event_timestamp")?;
    let time = envelope.time("timestamp")?;
    let body = decode_body(&event_type, &mut envelope)?;
    let extra = envelope.into_rest();
    Ok(Event { id, time: event_time.or(time), event_type, source, body, extra })
}

/// Whether events of this type have a shape of their own here; those of others become [`Body::Unknown`].
///
/// ```
/// assert!(kinde::event::is_known("user.created") && !kinde::event::is_known("user.abducted"));
/// ```
pub fn is_known(event_type: &str) -> bool {
    // The list of types stands in `decode_body` alone. Of an empty envelope a known type misses something.
    let mut empty = Reader::new(String::new(), json::Object::default());
    !matches!(decode_body(event_type, &mut empty), Ok(Body::Unknown(_)))
}

fn decode_body(event_type: &str, envelope: &mut Reader<'_>) -> Result<Body, Error> {
    Ok(match event_type {
        "user.created" => Body::UserCreated(User::read(envelope.subject("user")?)?),
        "user.updated" => Body::UserUpdated(User::read(envelope.subject("user")?)?),
        "user.deleted" => Body::UserDeleted { id: subject_id(envelope, "user", "id")? },
        "user.authenticated" => {
            let id = subject_id(envelope, "user", "id")?;
            Body::UserAuthenticated { id, ip_address: ip_address(envelope)? }
        }
        "user.authentication_failed" => {
            let id = subject_id(envelope, "user", "id")?;
            Body::UserAuthenticationFailed { id, ip_address: ip_address(envelope)? }
        }
        "access_request.created" => {
            Body::AccessRequestCreated(AccessRequest::read(envelope.subject("access_request")?)?)
        }
        "subscriber.created" => Body::SubscriberCreated(Subscriber::read(envelope.subject("subscriber")?)?),
        "organization.created" => Body::OrganizationCreated(organization(envelope)?),
        "organization.updated" => Body::OrganizationUpdated(organization(envelope)?),
        "organization.deleted" => {
            Body::OrganizationDeleted { code: subject_id(envelope, "organization", "code")? }
        }
        "role.created" => Body::RoleCreated(Role::read(envelope.subject("role")?)?),
        "role.updated" => Body::RoleUpdated(Role::read(envelope.subject("role")?)?),
        "role.deleted" => Body::RoleDeleted { id: subject_id(envelope, "role", "id")? },
        "permission.created" => Body::PermissionCreated(Permission::read(envelope.subject("permission")?)?),
        "permission.updated" => Body::PermissionUpdated(Permission::read(envelope.subject("permission")?)?),
        "permission.deleted" => Body::PermissionDeleted { id: subject_id(envelope, "permission", "id")? },
        other if other.starts_with("passkey.") => Body::Passkey { data: envelope.raw_data() },
        other if other.starts_with("customer.") => Body::Customer { data: envelope.raw_data() },
        _ => Body::Unknown(envelope.raw_data()),
    })
}

fn organization(envelope: &mut Reader<'_>) -> Result<Organization, Error> {
    Organization::read(envelope.subject("organization")?)
}

/// The id of an event that tells nothing else; what stands beside it stays in the envelope's rest.
fn subject_id(envelope: &mut Reader<'_>, subject: &'static str, key: &'static str) -> Result<String, Error> {
    let mut reader = envelope.subject(subject)?;
    let id = reader.required_id(key)?;
    envelope.put_back(subject, reader);
    Ok(id)
}

fn ip_address(envelope: &mut Reader<'_>) -> Result<Option<String>, Error> {
    Ok(envelope.text("ip_address")?.into_value())
}

#[cfg(test)]
mod tests;
