//! Decodes deliveries and sightings into observations.
//!
//! Pure. Only this module decides that an event can never be applied and belongs to the dead letters. An event about no
//! user is logged and changes no user.

use std::time::Duration;

use kinde::{
    event::{self, Body},
    webhook::Scheme,
};
use kinsync_core::{Micros, Observation, Rank, Source, UserId, UserState, Version, What, ids};

use crate::{
    directory::{self, Change, Named},
    fields,
    log_entry::{self, LogEntry, LogSource, kind},
    queue::{Entry, Payload},
    sighting::Sighting,
};

/// Tolerated lead of an event's time over kinsync's clock. An event beyond it is quarantined.
pub const FUTURE_TOLERANCE: Duration = Duration::from_mins(5);

/// Start of the reason of a quarantined dead letter.
pub(crate) const QUARANTINED: &str = "quarantined";

/// Returns the latest acceptable time of an event that is decoded at `now`.
pub fn latest(now: Micros, tolerance: Duration) -> Micros {
    Micros(now.0.saturating_add(i64::try_from(tolerance.as_micros()).unwrap_or(i64::MAX)))
}

/// Decodes an event of the log again. Returns `None` for a scheme that this version does not support.
pub fn decode_logged(event: &LogEntry, latest: Micros) -> Option<Decoded> {
    let body = event.payload.clone().into_bytes().into();
    let payload = Payload::from_parts(&event.scheme, event.at, body)?;
    let entry = Entry { event_id: event.id.clone(), received_at: event.received_at, payload };
    Some(decode(&entry, latest))
}

/// Returns what an entry of the log adds to the state of its user; `None` for an entry that was never applied, or that changes
/// no user.
///
/// # Errors
/// When this version cannot read the entry. The state of its user is then not known.
pub fn state_of(entry: &LogEntry, latest: Micros) -> Result<Option<UserState>, Undecodable> {
    let undecodable = |why: String| Undecodable { id: entry.id.clone(), why };
    let json = |error: serde_json::Error| undecodable(error.to_string());
    match entry.scheme.as_str() {
        log_entry::ACTION | log_entry::ERASED => Ok(None),
        log_entry::STATE => log_entry::state(&entry.payload).map(Some).map_err(json),
        log_entry::OBSERVATION => Ok(Some(UserState::of(&observation_in(entry)?))),
        scheme => {
            let decoded = decode_logged(entry, latest);
            let decoded = decoded.ok_or_else(|| undecodable(format!("its scheme `{scheme}` is unknown")))?;
            // A dead letter, or an event in quarantine.
            let observations = decoded.observations.unwrap_or_default();
            Ok(observations.iter().map(UserState::of).reduce(UserState::join))
        }
    }
}

/// Returns whether an entry was applied, or changes nothing: it is no dead letter, and its time has come.
pub(crate) fn is_applied(entry: &LogEntry, latest: Micros) -> bool {
    entry.at.is_none_or(|at| at <= latest)
        && match entry.scheme.as_str() {
            log_entry::ACTION | log_entry::ERASED | log_entry::STATE | log_entry::OBSERVATION => true,
            _ => decode_logged(entry, latest).is_some_and(|decoded| decoded.observations.is_ok()),
        }
}

/// Returns the observation in an entry with the scheme [`log_entry::OBSERVATION`].
pub(crate) fn observation_in(entry: &LogEntry) -> Result<Observation, Undecodable> {
    let undecodable = |why: String| Undecodable { id: entry.id.clone(), why };
    let user = entry.user.as_deref().and_then(|user| UserId::parse(user).ok());
    let parts = user.zip(entry.version.clone()).zip(entry.source.of_user());
    let ((user, version), source) =
        parts.ok_or_else(|| undecodable("it has no user, no version or no source".into()))?;
    let what = log_entry::observed(&entry.payload).map_err(|error| undecodable(error.to_string()))?;
    Ok(Observation { user, version, source, what })
}

/// An entry of the log that this version cannot read.
#[derive(Debug, thiserror::Error)]
#[error("this version cannot read the entry `{id}`: {why}")]
pub struct Undecodable {
    /// Id of the entry.
    pub id: String,
    /// Why.
    pub why: String,
}

/// A decoded entry.
#[derive(Debug)]
pub struct Decoded {
    /// Event for the log, also when decoding failed.
    pub event: LogEntry,
    /// Observations in the entry; empty for an event about no user.
    pub observations: Result<Vec<Observation>, Failure>,
    /// What the event observes of organizations, roles and permissions.
    pub changes: Vec<Change>,
    /// The organizations, roles and permissions that an event about a user names.
    pub named: Vec<Named>,
}

impl Decoded {
    /// Returns the user of an event that is ordered by its receipt, because its sender sent no time.
    pub fn user_without_time(&self) -> Option<&UserId> {
        let observation = self.observations.as_ref().ok()?.first()?;
        (observation.version.rank == Rank::Receipt).then_some(&observation.user)
    }

    /// Returns the user to read from Kinde, because the event has no time or cannot be decoded.
    pub fn user_to_check(&self) -> Option<UserId> {
        match (&self.observations, &self.event.user) {
            (Err(Failure::Undecodable(_)), Some(user)) => UserId::parse(user).ok(),
            _ => self.user_without_time().cloned(),
        }
    }
}

/// Reasons why an event can never be applied. The display text becomes the reason of the dead letter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The body is not a Kinde event.
    #[error("the event cannot be decoded: {0}")]
    Undecodable(event::Error),
    /// The entry has kinsync's own scheme, and its body is not a sighting.
    #[error("the sighting cannot be decoded: {0}")]
    BadSighting(serde_json::Error),
    /// The event has no valid user id.
    #[error("the event has no valid user id: {0}")]
    BadUser(ids::Error),
    /// The event's time is further ahead than [`FUTURE_TOLERANCE`].
    #[error(
        "{QUARANTINED}: the time of the event is {seconds} s in the future; it is applied when this machine's clock reaches \
         that time; check the clock"
    )]
    InTheFuture {
        /// Time of the event.
        at: Micros,
        /// Lead over the latest acceptable time, in seconds.
        seconds: i64,
    },
}

/// Decodes one entry. `latest` is the latest acceptable time of an event, see [`latest`].
pub fn decode(entry: &Entry, latest: Micros) -> Decoded {
    let (scheme, body) = match &entry.payload {
        Payload::Sighting(body) => return decode_sighting(entry, body),
        Payload::Delivery { scheme, body, .. } => (*scheme, body),
    };
    let decode = if scheme == Scheme::KindeJwt { event::decode_jwt } else { event::decode };
    let decoded = decode(body).map_err(Failure::Undecodable);
    let time = decoded.as_ref().ok().and_then(|event| event.time);
    let time = time.map(|at| Micros(at.as_microsecond()));
    let at = time.or(entry.payload.signed_at());
    let mut logged = LogEntry {
        id: entry.event_id.clone(),
        kind: String::new(),
        user: None,
        source: LogSource::Webhook,
        version: None,
        at,
        received_at: entry.received_at,
        scheme: entry.payload.scheme().to_owned(),
        payload: String::from_utf8_lossy(body).into_owned(),
    };
    if decoded.is_err() {
        let (event_type, user) = event::readable(body);
        (logged.kind, logged.user) = (event_type.unwrap_or_default(), user);
    }
    let (mut changes, mut named) = (Vec::new(), Vec::new());
    let observations = decoded.and_then(|event| {
        logged.kind.clone_from(&event.event_type);
        let version = version(time, entry);
        logged.version = Some(version.clone());
        let observed = directory::changes(&event.body, &version);
        let named_in_event = directory::named(&event.body, &version);
        let observation = observation_of(event.body, version.at);
        logged.user = observation.as_ref().map(|(user, _)| user.clone());
        let Some((user, what)) = observation else {
            if !observed.is_empty() {
                reject_future(version.at, latest)?;
            }
            changes = observed;
            return Ok(Vec::new());
        };
        let user = UserId::parse(&user).map_err(Failure::BadUser)?;
        reject_future(version.at, latest)?;
        (changes, named) = (observed, named_in_event);
        Ok(what
            .map(|what| Observation { user, version, source: Source::Webhook, what })
            .into_iter()
            .collect())
    });
    Decoded { event: logged, observations, changes, named }
}

fn decode_sighting(entry: &Entry, body: &[u8]) -> Decoded {
    let read = serde_json::from_slice::<Sighting>(body).map_err(Failure::BadSighting);
    let event = LogEntry {
        id: entry.event_id.clone(),
        kind: kind::LOGIN.to_owned(),
        source: LogSource::Login,
        version: read.is_ok().then(Version::provisional),
        user: read.as_ref().ok().map(|sighting| sighting.user.as_str().to_owned()),
        at: None,
        received_at: entry.received_at,
        scheme: entry.payload.scheme().to_owned(),
        payload: String::from_utf8_lossy(body).into_owned(),
    };
    let observations = read.map(|sighting| sighting.observations());
    Decoded { event, observations, changes: Vec::new(), named: Vec::new() }
}

/// Returns the version of an event with this time. Without a time the order of receipt is the only one there is: the time
/// of the signature, else of the receipt, and at equal times the order of receipt.
fn version(time: Option<Micros>, entry: &Entry) -> Version {
    let Entry { event_id, received_at, payload } = entry;
    if let Some(at) = time {
        return Version::event(at, event_id.as_str());
    }
    let at = payload.signed_at().unwrap_or(*received_at);
    // A number of fixed width sorts as a text like the number.
    Version::receipt(at, format!("{:020} {event_id}", received_at.0))
}

/// Returns the id of the event that has this version.
pub fn event_id(version: &Version) -> &str {
    let tie = &*version.tie;
    match version.rank {
        Rank::Receipt => tie.split_once(' ').map_or(tie, |(_, event_id)| event_id),
        _ => tie,
    }
}

fn reject_future(at: Micros, latest: Micros) -> Result<(), Failure> {
    if at <= latest {
        return Ok(());
    }
    Err(Failure::InTheFuture { at, seconds: at.0.saturating_sub(latest.0) / 1_000_000 })
}

/// Returns the user id and the observed fact of an event: `(id, None)` for an event that changes no field, and `None` for
/// an event about no user.
fn observation_of(body: Body, at: Micros) -> Option<(String, Option<What>)> {
    match body {
        Body::UserCreated(user) | Body::UserUpdated(user) => {
            let id = user.id.clone();
            Some((id, Some(What::Fields(fields::of_event(user)))))
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
