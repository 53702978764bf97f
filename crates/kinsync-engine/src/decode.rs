//! What a delivery says of a user: from Kinde's words to observations.
//!
//! Pure. Whether an event is poison is decided here and nowhere else; an event that speaks of no
//! user is logged and changes nothing.

use std::time::Duration;

use kinde::{
    Patch,
    event::{self, Body, Event},
    webhook::Scheme,
};
use kinsync_core::{
    Field, Micros, Observation, Organization, Profile, Source, UserId, Value, Version, What, ids,
};

use crate::{
    queue::{Entry, Payload},
    sighting::{self, Sighting},
    store::LoggedEvent,
};

/// How far ahead of our clock an event may be before it is quarantined.
pub const FUTURE_TOLERANCE: Duration = Duration::from_mins(5);

/// The latest time that an event may have which is looked at now.
pub fn latest(now: Micros, tolerance: Duration) -> Micros {
    Micros(now.0.saturating_add(i64::try_from(tolerance.as_micros()).unwrap_or(i64::MAX)))
}

/// An entry, understood as far as possible.
#[derive(Debug)]
pub struct Decoded {
    /// For the log, whatever it says.
    pub event: LoggedEvent,
    /// What it says of users.
    pub observations: Result<Vec<Observation>, Failure>,
}

/// Why an event can never be applied. Its display is the reason on the dead letter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It is not an event as Kinde sends them.
    #[error("the event cannot be understood: {0}")]
    Undecodable(event::Error),
    /// It is under kinsync's own scheme and kinsync did not write it so.
    #[error("the sighting cannot be understood: {0}")]
    BadSighting(serde_json::Error),
    /// The user's id cannot be one.
    #[error("the event names no usable user: {0}")]
    BadUser(ids::Error),
    /// It is from the future.
    #[error(
        "quarantined: the event says it happened {seconds} s from now; check this machine's clock, then `kinsync dead-letters retry`"
    )]
    InTheFuture {
        /// How far ahead of our clock it is.
        seconds: i64,
    },
}

/// Understands one entry. `latest` is the latest time that an event may have.
pub fn decode(entry: &Entry, latest: Micros) -> Decoded {
    let (scheme, body) = match &entry.payload {
        Payload::Sighting(body) => return decode_sighting(entry, body),
        Payload::Delivery { scheme, body, .. } => (*scheme, body),
    };
    let decode = if scheme == Scheme::KindeJwt { event::decode_jwt } else { event::decode };
    let decoded = decode(body).map_err(Failure::Undecodable);
    let at = decoded.as_ref().ok().and_then(|event| event_time(event, entry));
    let mut logged = LoggedEvent {
        event_id: entry.event_id.clone(),
        event_type: String::new(),
        user: None,
        at,
        received_at: entry.received_at,
        scheme: entry.payload.scheme().to_owned(),
        payload: String::from_utf8_lossy(body).into_owned(),
    };
    let observations = decoded.and_then(|event| {
        logged.event_type.clone_from(&event.event_type);
        let version = Version::event(at.unwrap_or_default(), entry.event_id.as_str());
        let observed = observation_of(event.body, version.at);
        logged.user = observed.as_ref().map(|(user, _)| user.clone());
        let Some((user, what)) = observed else { return Ok(Vec::new()) };
        let user = UserId::parse(&user).map_err(Failure::BadUser)?;
        reject_future(version.at, latest)?;
        Ok(what
            .map(|what| Observation { user, version, source: Source::Webhook, what })
            .into_iter()
            .collect())
    });
    Decoded { event: logged, observations }
}

fn decode_sighting(entry: &Entry, body: &[u8]) -> Decoded {
    let read = serde_json::from_slice::<Sighting>(body).map_err(Failure::BadSighting);
    let event = LoggedEvent {
        event_id: entry.event_id.clone(),
        event_type: sighting::EVENT_TYPE.to_owned(),
        user: read.as_ref().ok().map(|sighting| sighting.user.as_str().to_owned()),
        at: None,
        received_at: entry.received_at,
        scheme: entry.payload.scheme().to_owned(),
        payload: String::from_utf8_lossy(body).into_owned(),
    };
    Decoded { event, observations: read.map(|sighting| sighting.observations()) }
}

/// When it happened, by the sender's clock: the event's own time, else when it was signed. An
/// event that tells neither gets the epoch, so that any event with a time outranks it; the time of
/// receipt never orders anything.
fn event_time(event: &Event, entry: &Entry) -> Option<Micros> {
    event.time.map(|at| Micros(at.as_microsecond())).or(entry.payload.signed_at())
}

fn reject_future(at: Micros, latest: Micros) -> Result<(), Failure> {
    if at <= latest {
        return Ok(());
    }
    Err(Failure::InTheFuture { seconds: at.0.saturating_sub(latest.0) / 1_000_000 })
}

/// Of whom the event speaks, and what it says; `(user, None)` when it changes nothing.
fn observation_of(body: Body, at: Micros) -> Option<(String, Option<What>)> {
    match body {
        Body::UserCreated(user) | Body::UserUpdated(user) => {
            let id = user.id.clone();
            Some((id, Some(What::Fields(profile(user)))))
        }
        Body::UserDeleted { id, .. } => Some((id, Some(What::Deleted))),
        Body::UserAuthenticated { id, .. } => Some((id, Some(What::SignedIn(at)))),
        Body::UserAuthenticationFailed { id, .. } => Some((id, None)),
        Body::AccessRequestCreated(_)
        | Body::SubscriberCreated(_)
        | Body::OrganizationCreated(_)
        | Body::OrganizationUpdated(_)
        | Body::OrganizationDeleted { .. }
        | Body::RoleCreated(_)
        | Body::RoleUpdated(_)
        | Body::RoleDeleted { .. }
        | Body::PermissionCreated(_)
        | Body::PermissionUpdated(_)
        | Body::PermissionDeleted { .. }
        | Body::Passkey { .. }
        | Body::Customer { .. }
        | Body::Unknown(_) => None,
    }
}

fn profile(user: event::User) -> Profile {
    let mut profile = Profile::new();
    let mut set = |field, value: Patch<Value>| match value {
        Patch::Absent => {}
        Patch::Null => profile.set(field, Value::Null),
        Patch::Value(value) => profile.set(field, value),
    };
    set(Field::Email, user.email.map(text));
    set(Field::FirstName, user.first_name.map(text));
    set(Field::LastName, user.last_name.map(text));
    set(Field::Phone, user.phone.map(text));
    set(Field::Username, user.username.map(text));
    set(Field::IsSuspended, user.is_suspended.map(Value::Flag));
    set(Field::IsPasswordResetRequested, user.is_password_reset_requested.map(Value::Flag));
    set(Field::Organizations, user.organizations.map(organizations));
    profile
}

fn text(text: String) -> Value {
    Value::Text(text.into())
}

fn organizations(list: Vec<event::Membership>) -> Value {
    let keys = |named: Option<Vec<event::Assignment>>| {
        let mut keys: Vec<String> =
            named.into_iter().flatten().filter_map(|named| named.key.or(named.id)).collect();
        keys.sort();
        keys
    };
    let membership = |organization: event::Membership| Organization {
        code: organization.code,
        roles: keys(organization.roles),
        permissions: keys(organization.permissions),
    };
    Value::Organizations(list.into_iter().map(membership).collect())
}
