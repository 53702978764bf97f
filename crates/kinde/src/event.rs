//! Decodes verified deliveries into typed events.
//!
//! An event of an unknown type is [`Body::Unknown`], not an error. An event of a known type is an [`Error`] if a required
//! field is missing (a user without an id) or a field has the wrong type. Unknown fields are kept in `extra`.
//!
//! Shapes: <https://docs.kinde.com/integrate/webhooks/about-webhooks/>, kinde-oss/webhook `lib/types.ts`.

mod directory;
mod error;
pub(crate) mod reader;

use jiff::Timestamp;
use serde_json::{Map, Value};

use self::reader::Reader;
pub use self::{
    directory::{AccessRequest, Organization, Permission, Role, Subscriber},
    error::Error,
};
use crate::json;
pub use crate::user::{Assignment, EventUser as User, Membership};

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `event_id`. Bodies of relays may have none.
    pub id: Option<String>,
    /// The time of the event at Kinde: `event_timestamp`, else `timestamp`.
    pub time: Option<Timestamp>,
    /// `type`, for example `user.created`.
    pub event_type: String,
    /// The origin of the change: `admin`, `api`, `user` or a newer value.
    pub source: Option<String>,
    /// The content, by type.
    pub body: Body,
    /// Unknown members of the envelope. Unknown members of `data` are under `data`.
    pub extra: Map<String, Value>,
}

/// The content of an event, by type.
///
/// Exhaustive on purpose: a consumer decides about every type, and the compiler lists the places when a type is added. An
/// event type that Kinde adds is [`Body::Unknown`] until then.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// `user.created`.
    UserCreated(User),
    /// `user.updated`, with all fields of the user, not only the changed ones.
    UserUpdated(User),
    /// `user.deleted`.
    UserDeleted {
        /// The id of the user.
        id: String,
    },
    /// `user.authenticated`: a sign-in.
    UserAuthenticated {
        /// The id of the user.
        id: String,
        /// The address of the client.
        ip_address: Option<String>,
    },
    /// `user.authentication_failed`.
    UserAuthenticationFailed {
        /// The id of the user.
        id: String,
        /// The address of the client.
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
        /// The code of the organization.
        code: String,
    },
    /// `role.created`.
    RoleCreated(Role),
    /// `role.updated`.
    RoleUpdated(Role),
    /// `role.deleted`.
    RoleDeleted {
        /// The id of the role.
        id: String,
    },
    /// `permission.created`.
    PermissionCreated(Permission),
    /// `permission.updated`.
    PermissionUpdated(Permission),
    /// `permission.deleted`.
    PermissionDeleted {
        /// The id of the permission.
        id: String,
    },
    /// `passkey.added` and `passkey.removed`. Kinde publishes no shape.
    Passkey {
        /// `data` as received.
        data: Value,
    },
    /// `customer.…`, the billing events. Kinde publishes no shape.
    Customer {
        /// `data` as received.
        data: Value,
    },
    /// Any other type, with `data` as received, or the whole body if there is no `data`.
    Unknown(Value),
}

impl Body {
    /// Returns the id of the user for the `user.…` events.
    pub fn user_id(&self) -> Option<&str> {
        match self {
            Self::UserCreated(user) | Self::UserUpdated(user) => Some(&user.id),
            Self::UserDeleted { id }
            | Self::UserAuthenticated { id, .. }
            | Self::UserAuthenticationFailed { id, .. } => Some(id),
            Self::AccessRequestCreated(_)
            | Self::SubscriberCreated(_)
            | Self::OrganizationCreated(_)
            | Self::OrganizationUpdated(_)
            | Self::OrganizationDeleted { .. }
            | Self::RoleCreated(_)
            | Self::RoleUpdated(_)
            | Self::RoleDeleted { .. }
            | Self::PermissionCreated(_)
            | Self::PermissionUpdated(_)
            | Self::PermissionDeleted { .. }
            | Self::Passkey { .. }
            | Self::Customer { .. }
            | Self::Unknown(_) => None,
        }
    }
}

/// Decodes the JSON payload of a verified delivery in both shapes, `{type, data: {user}}` and `{type, user}`.
///
/// ```
/// use kinde::event::{self, Body};
///
/// let event = event::decode(br#"{"type":"user.deleted","data":{"user":{"id":"kp_1"}}}"#)?;
/// assert!(matches!(event.body, Body::UserDeleted { id } if id == "kp_1"));
/// # Ok::<(), event::Error>(())
/// ```
pub fn decode(payload: &[u8]) -> Result<Event, Error> {
    read(envelope(payload)?)
}

/// Decodes the payload of a webhook that Kinde signed itself: as [`decode`], and `event_id`, `timestamp` and an object
/// `data` are required.
pub fn decode_jwt(payload: &[u8]) -> Result<Event, Error> {
    let envelope = envelope(payload)?;
    envelope.require_object("data")?;
    let event = read(envelope)?;
    let missing = |field: &str| Error::MissingField { field: field.to_owned() };
    event.id.as_ref().ok_or_else(|| missing("event_id"))?;
    event.time.ok_or_else(|| missing("timestamp"))?;
    Ok(event)
}

/// Returns the type of an event and the id of the user of a `user.…` event, as far as they can be read. For a verified delivery
/// that cannot be decoded: an operator sees what it is about, and the user can be read from the Management API.
///
/// ```
/// let payload = br#"{"type":"user.deleted","timestamp":"?","data":{"user":{"id":"kp_1"}}}"#;
/// assert!(kinde::event::decode(payload).is_err());
/// let (event_type, user) = kinde::event::readable(payload);
/// assert_eq!((event_type.as_deref(), user.as_deref()), (Some("user.deleted"), Some("kp_1")));
/// ```
pub fn readable(payload: &[u8]) -> (Option<String>, Option<String>) {
    let Ok(mut envelope) = envelope(payload) else { return (None, None) };
    let Ok(event_type) = envelope.required_id("type") else { return (None, None) };
    let is_about_user = event_type.starts_with("user.");
    let user = is_about_user.then(|| subject_id(&mut envelope, "user", "id").ok()).flatten();
    (Some(event_type), user)
}

fn envelope(payload: &[u8]) -> Result<Reader<'_>, Error> {
    let members = json::object(payload).map_err(|error| match error {
        json::Error::Duplicate(member) => Error::DuplicateMember { member },
        json::Error::Syntax(source) => Error::NotAnObject(source),
    })?;
    Ok(Reader::new(String::new(), members))
}

pub(crate) fn read(mut envelope: Reader<'_>) -> Result<Event, Error> {
    let event_type = envelope.required_id("type")?;
    let id = envelope.optional_id("event_id")?;
    let source = envelope.text("source")?.into_value();
    let event_time = envelope.time("event_timestamp")?;
    let time = envelope.time("timestamp")?;
    let body = match decoder(&event_type) {
        Some(decode) => decode(&mut envelope)?,
        None => Body::Unknown(envelope.raw_data()),
    };
    let extra = envelope.into_rest();
    Ok(Event { id, time: event_time.or(time), event_type, source, body, extra })
}

/// Returns true if events of this type are decoded. Events of other types become [`Body::Unknown`].
///
/// ```
/// assert!(kinde::event::is_known("user.created") && !kinde::event::is_known("user.renamed"));
/// ```
pub fn is_known(event_type: &str) -> bool {
    decoder(event_type).is_some()
}

/// `user.created`.
pub const USER_CREATED: &str = "user.created";
/// `user.updated`.
pub const USER_UPDATED: &str = "user.updated";
/// `user.deleted`.
pub const USER_DELETED: &str = "user.deleted";
/// `user.authenticated`: a sign-in.
pub const USER_AUTHENTICATED: &str = "user.authenticated";

type Decoder = fn(&mut Reader<'_>) -> Result<Body, Error>;

/// All event types with a documented shape. This is the only list of them.
const TYPES: &[(&str, Decoder)] = &[
    (USER_CREATED, |event| Ok(Body::UserCreated(User::read(event.subject("user")?)?))),
    (USER_UPDATED, |event| Ok(Body::UserUpdated(User::read(event.subject("user")?)?))),
    (USER_DELETED, |event| Ok(Body::UserDeleted { id: subject_id(event, "user", "id")? })),
    (USER_AUTHENTICATED, |event| {
        let id = subject_id(event, "user", "id")?;
        Ok(Body::UserAuthenticated { id, ip_address: ip_address(event)? })
    }),
    ("user.authentication_failed", |event| {
        let id = subject_id(event, "user", "id")?;
        Ok(Body::UserAuthenticationFailed { id, ip_address: ip_address(event)? })
    }),
    ("access_request.created", |event| {
        Ok(Body::AccessRequestCreated(AccessRequest::read(event.subject("access_request")?)?))
    }),
    ("subscriber.created", |event| {
        Ok(Body::SubscriberCreated(Subscriber::read(event.subject("subscriber")?)?))
    }),
    ("organization.created", |event| {
        Ok(Body::OrganizationCreated(Organization::read(event.subject("organization")?)?))
    }),
    ("organization.updated", |event| {
        Ok(Body::OrganizationUpdated(Organization::read(event.subject("organization")?)?))
    }),
    ("organization.deleted", |event| {
        Ok(Body::OrganizationDeleted { code: subject_id(event, "organization", "code")? })
    }),
    ("role.created", |event| Ok(Body::RoleCreated(Role::read(event.subject("role")?)?))),
    ("role.updated", |event| Ok(Body::RoleUpdated(Role::read(event.subject("role")?)?))),
    ("role.deleted", |event| Ok(Body::RoleDeleted { id: subject_id(event, "role", "id")? })),
    ("permission.created", |event| {
        Ok(Body::PermissionCreated(Permission::read(event.subject("permission")?)?))
    }),
    ("permission.updated", |event| {
        Ok(Body::PermissionUpdated(Permission::read(event.subject("permission")?)?))
    }),
    ("permission.deleted", |event| {
        Ok(Body::PermissionDeleted { id: subject_id(event, "permission", "id")? })
    }),
];

/// Prefixes of event types without a documented shape: `data` is kept as it is.
const FAMILIES: &[(&str, Decoder)] = &[
    ("passkey.", |event| Ok(Body::Passkey { data: event.raw_data() })),
    ("customer.", |event| Ok(Body::Customer { data: event.raw_data() })),
];

fn decoder(event_type: &str) -> Option<Decoder> {
    let exact = TYPES.iter().find(|(name, _)| *name == event_type);
    let known = exact.or_else(|| FAMILIES.iter().find(|(prefix, _)| event_type.starts_with(prefix)));
    known.map(|(_, decode)| *decode)
}

/// The id of an event that carries nothing else. Unread members stay in the envelope.
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
