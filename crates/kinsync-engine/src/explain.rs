//! Explains the state of a stored user: its observations, their sources, and the outcome of each field.
//!
//! Pure. The log contains events and sightings. It contains no reads of Kinde (scans, checks, profiles) and no tokens: the
//! versions in the row show those that still determine a field; superseded ones are unknown.

use std::collections::{BTreeMap, BTreeSet};

use kinsync_core::{Field, Micros, Observation, Organization, Rank, UserState, Value, Version, What};
use serde::Serialize;

use crate::{
    decode::{FUTURE_TOLERANCE, decode_logged, event_id, latest},
    sighting,
    store::{LoggedEvent, Row},
};

/// An observation of the user, with its outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedObservation {
    /// Provider time; `None` for fields of a token, which every other source outranks, and for an event that cannot be
    /// decoded.
    pub at: Option<Micros>,
    /// Time of receipt by kinsync's clock, if recorded.
    pub received_at: Option<Micros>,
    /// Event type such as `user.updated`, `kinsync.login` for a sighting, `read` for a read of Kinde, or `token`.
    pub kind: String,
    /// Event id, for events.
    pub event_id: Option<String>,
    /// Effect of the whole observation, as a sentence.
    pub outcome: String,
    /// Fields in the observation.
    pub fields: Vec<ExplainedField>,
}

/// One field of an observation, with its outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedField {
    /// Key of the field in a user document.
    pub field: &'static str,
    /// Observed value; `None`: memberships of which no source has listed all.
    pub value: Option<Value>,
    /// Whether this observation determines the current value.
    pub is_set: bool,
    /// The newer observation that determines the current value instead.
    pub superseded_by: Option<String>,
}

/// Returns the known observations of a user, oldest first. `events` are the user's events in the log.
pub fn explain(row: Option<&Row>, events: &[LoggedEvent]) -> Vec<ExplainedObservation> {
    let nothing = UserState::default();
    let state = row.map_or(&nothing, |row| &row.state);
    let names: BTreeMap<&str, &str> =
        events.iter().map(|event| (event.event_id.as_str(), event.event_type.as_str())).collect();
    let explainer = Explainer { state, names: &names };
    let mut explained: Vec<(Option<Version>, ExplainedObservation)> =
        events.iter().flat_map(|event| explainer.event(event)).collect();
    explained.extend(explainer.reads());
    // A sighting in the log already explains the fields of a token.
    let is_from_sighting = |explained: &ExplainedObservation| {
        explained.kind == sighting::EVENT_TYPE && explained.fields.iter().any(|field| field.is_set)
    };
    if !explained.iter().any(|(_, explained)| is_from_sighting(explained)) {
        explained.extend(explainer.token());
    }
    explained.sort_by(|a, b| (&a.0, a.1.received_at).cmp(&(&b.0, b.1.received_at)));
    explained.into_iter().map(|(_, explained)| explained).collect()
}

struct Explainer<'a> {
    state: &'a UserState,
    /// Event types of the log, by event id.
    names: &'a BTreeMap<&'a str, &'a str>,
}

impl Explainer<'_> {
    fn event(&self, event: &LoggedEvent) -> Vec<(Option<Version>, ExplainedObservation)> {
        let explained = |at, outcome: String, fields| ExplainedObservation {
            at,
            received_at: Some(event.received_at),
            kind: event.event_type.clone(),
            event_id: Some(event.event_id.clone()),
            outcome,
            fields,
        };
        let Some(decoded) = decode_logged(event, self.latest(event)) else {
            let outcome = format!("this version of kinsync does not support the scheme `{}`", event.scheme);
            return vec![(None, explained(event.at, outcome, Vec::new()))];
        };
        match decoded.observations {
            Err(failure) => vec![(None, explained(event.at, failure.to_string(), Vec::new()))],
            Ok(observations) if observations.is_empty() => {
                vec![(None, explained(event.at, "the event changes no user".into(), Vec::new()))]
            }
            Ok(observations) => {
                let explained = observations.into_iter().map(|one| {
                    let at = (!one.version.is_provisional()).then_some(one.version.at);
                    let (outcome, fields) = self.observation(&one);
                    (Some(one.version), explained(at, outcome, fields))
                });
                explained.collect()
            }
        }
    }

    /// Returns the latest acceptable time of an event. The result repeats the projector's decision at the time of receipt,
    /// unless the event was released from quarantine later, by the clock or by an operator.
    fn latest(&self, event: &LoggedEvent) -> Micros {
        let mut versions = self.state.fields.values().map(|register| &register.version);
        let is_known = versions.any(|version| is_event(version) && event_id(version) == event.event_id);
        if is_known { Micros(i64::MAX) } else { latest(event.received_at, FUTURE_TOLERANCE) }
    }

    fn observation(&self, observation: &Observation) -> (String, Vec<ExplainedField>) {
        let version = &observation.version;
        let state = self.state;
        match &observation.what {
            What::Fields(profile) | What::Exists(profile) => {
                let fields: Vec<ExplainedField> =
                    profile.iter().map(|(f, v)| self.field(f, v, version)).collect();
                let set = fields.iter().filter(|field| field.is_set).count();
                let outcome = match (set, &state.deleted) {
                    (_, Some(deleted)) if !state.is_live() && deleted >= version => {
                        "the user was deleted later".into()
                    }
                    (_, Some(_)) if !state.is_live() => "no event restores a deleted user".into(),
                    _ if fields.is_empty() => "the event contains no field".into(),
                    (0, _) if fields.iter().all(|field| field.superseded_by.is_some()) => {
                        "every field was superseded".into()
                    }
                    (0, _) => "not in the store yet".into(),
                    (set, _) => format!("set {set} of {}", counted(fields.len())),
                };
                (outcome, fields)
            }
            // Not in the log: only reads of Kinde contain a single membership.
            What::Membership { code, .. } => (format!("read the membership in {code}"), Vec::new()),
            What::Deleted => (self.deletion(version), Vec::new()),
            What::SignedIn(at) => (newest("sign-in", *at, state.last_signed_in), Vec::new()),
            What::Seen(at) => (newest("request", *at, state.last_seen), Vec::new()),
        }
    }

    fn field(&self, field: Field, value: &Value, version: &Version) -> ExplainedField {
        let known = self.state.fields.get(&field);
        let newer = known.filter(|known| known.version > *version);
        ExplainedField {
            field: field.key(),
            value: self.with_keys(value),
            is_set: known.is_some_and(|known| known.version == *version),
            superseded_by: newer.map(|known| self.name(&known.version)),
        }
    }

    /// Replaces the ids of roles and permissions by keys. Returns `None` for memberships that are not all known.
    fn with_keys(&self, value: &Value) -> Option<Value> {
        let list = match value {
            Value::Organizations(list) => list,
            Value::Memberships(memberships) => {
                return memberships.shown(&self.state.directory).map(Value::Organizations);
            }
            other => return Some(other.clone()),
        };
        let keys = |ids: &Option<Vec<String>>| {
            let key = |id: &String| self.state.directory.key(id).to_owned();
            ids.as_ref().map(|ids| ids.iter().map(key).collect())
        };
        let shown = |one: &Organization| Organization {
            roles: keys(&one.roles),
            permissions: keys(&one.permissions),
            ..one.clone()
        };
        Some(Value::Organizations(list.iter().map(shown).collect()))
    }

    fn deletion(&self, version: &Version) -> String {
        match (&self.state.deleted, self.state.is_live()) {
            (None, _) => "not in the store yet".into(),
            (Some(known), _) if known < version => "not in the store yet".into(),
            (Some(_), true) => "superseded: two later reads of Kinde confirmed that the user exists".into(),
            (Some(known), false) if known == version => "deleted the user".into(),
            (Some(known), false) => format!("superseded by a later deletion: {}", self.name(known)),
        }
    }

    /// Returns a readable description of a version.
    fn name(&self, version: &Version) -> String {
        match version.rank {
            Rank::Provisional => "a token".into(),
            Rank::Event | Rank::Receipt => {
                let id = event_id(version);
                let kind = self.names.get(id).copied().unwrap_or("an event");
                format!("{kind} {id} of {}", time(version.at))
            }
            Rank::Snapshot => format!("a read of Kinde at {}", time(version.at)),
        }
    }

    /// Returns the reads of Kinde that still determine a field, a deletion or a confirmation.
    fn reads(&self) -> Vec<(Option<Version>, ExplainedObservation)> {
        let fields = self.state.fields.values().map(|register| &register.version);
        let versions: BTreeSet<&Version> = fields
            .chain(&self.state.deleted)
            .chain(&self.state.confirmed)
            .filter(|version| version.rank == Rank::Snapshot)
            .collect();
        versions.into_iter().map(|version| (Some(version.clone()), self.read(version))).collect()
    }

    fn read(&self, version: &Version) -> ExplainedObservation {
        let fields = self.set_by(version);
        let outcome = if self.state.deleted.as_ref() == Some(version) {
            self.deletion(version)
        } else if self.state.confirmed.as_ref() == Some(version) {
            "confirmed that the user exists".into()
        } else {
            format!("set {}; the other fields were superseded or unchanged", counted(fields.len()))
        };
        let at = Some(version.at);
        ExplainedObservation { at, received_at: None, kind: "read".into(), event_id: None, outcome, fields }
    }

    /// Returns the fields that only a token has set.
    fn token(&self) -> Option<(Option<Version>, ExplainedObservation)> {
        let version = Version::provisional();
        let fields = self.set_by(&version);
        let outcome =
            format!("set {}, until an event or a read of Kinde contains a value", counted(fields.len()));
        let explained = |fields| ExplainedObservation {
            at: None,
            received_at: None,
            kind: "token".into(),
            event_id: None,
            outcome,
            fields,
        };
        (!fields.is_empty()).then(|| (Some(version), explained(fields)))
    }

    fn set_by(&self, version: &Version) -> Vec<ExplainedField> {
        let set = self.state.fields.iter().filter(|(_, register)| register.version == *version);
        set.map(|(field, register)| ExplainedField {
            field: field.key(),
            value: self.with_keys(&register.value),
            is_set: true,
            superseded_by: None,
        })
        .collect()
    }
}

fn is_event(version: &Version) -> bool {
    matches!(version.rank, Rank::Event | Rank::Receipt)
}

fn newest(what: &str, at: Micros, known: Option<Micros>) -> String {
    match known {
        Some(known) if known == at => format!("the newest {what}"),
        Some(known) if known > at => format!("superseded by a later {what}"),
        _ => "not in the store yet".into(),
    }
}

fn time(at: Micros) -> String {
    jiff::Timestamp::from_microsecond(at.0)
        .map_or_else(|_| "an impossible time".into(), |at| format!("{at:.6}"))
}

fn counted(fields: usize) -> String {
    if fields == 1 { "1 field".to_owned() } else { format!("{fields} fields") }
}

#[cfg(test)]
mod tests {
    use kinsync_core::{Field, ids::UserId};

    use super::*;

    const MINUTE: i64 = 60_000_000;

    /// An event with a time ten minutes after its receipt.
    fn future_event() -> LoggedEvent {
        let payload = r#"{"type":"user.updated","event_id":"event_1","timestamp":"1970-01-01T00:10:00Z","data":{"user":{"id":"kp_1","first_name":"Ada"}}}"#;
        LoggedEvent {
            event_id: "event_1".into(),
            event_type: "user.updated".into(),
            user: Some("kp_1".into()),
            at: Some(Micros(10 * MINUTE)),
            received_at: Micros(0),
            scheme: "hmac_sha256".into(),
            payload: payload.into(),
        }
    }

    #[test]
    fn memberships_that_no_source_has_listed_are_unknown_and_not_none() {
        let version = Version::snapshot(Micros(MINUTE), "h");
        let membership = Organization { roles: Some(Vec::new()), ..Organization::new("org_1") };
        let what = What::Membership { code: "org_1".into(), membership: Some(membership) };
        let (user, source) = (UserId::parse("kp_1").unwrap(), kinsync_core::Source::Reconcile);
        let mut row = Row::unknown(user.clone());
        row.state = row.state.observe(&Observation { user, version, source, what });
        let [read] = explain(Some(&row), &[]).try_into().unwrap();
        assert_eq!(read.fields.iter().map(|field| &field.value).collect::<Vec<_>>(), [&None]);
    }

    #[test]
    fn an_event_from_the_future_is_explained_as_quarantined_until_an_operator_releases_it() {
        let outcome = |row: Option<&Row>| explain(row, &[future_event()])[0].outcome.clone();
        assert!(outcome(None).starts_with("quarantined"), "{}", outcome(None));
        let id = UserId::parse("kp_1").unwrap();
        let mut row = Row::unknown(id);
        let version = Version::event(Micros(10 * MINUTE), "event_1");
        let register = kinsync_core::Register { value: Value::Text("Ada".into()), version };
        row.state.fields.insert(Field::FirstName, register);
        assert_eq!(outcome(Some(&row)), "set 1 of 1 field");
    }
}
