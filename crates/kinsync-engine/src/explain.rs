//! Explains the state of a stored user: its observations, their sources, and the outcome of each field.
//!
//! Pure. The log contains every observation that changed the user. Before the log was complete it contained events and
//! sightings alone: of reads of Kinde and of tokens from that time, the versions in the row show those that still determine a
//! field; superseded ones are unknown.

mod sources;

use std::collections::{BTreeMap, BTreeSet};

use kinsync_core::{
    Field, MembershipPart, Micros, Observation, Part, Rank, Register, UserState, Value, Version, What,
};
use serde::Serialize;

use self::sources::{Sources, Target};
use crate::{
    decode::{FUTURE_TOLERANCE, decode_logged, event_id, latest, observation_in},
    log_entry::{self, LogEntry, kind},
    store::Row,
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
    /// Type of the entry such as `user.updated` or `kinsync.scan.read`; `read` for a read of Kinde and `token` for a token
    /// that are not in the log.
    pub kind: String,
    /// Id of the entry in the log.
    pub event_id: Option<String>,
    /// Effect of the whole observation, as a sentence.
    pub outcome: String,
    /// Fields in the observation.
    pub fields: Vec<ExplainedField>,
}

/// One field of an observation, or one part of a membership or one property in it, with its outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedField {
    /// Key of the field in a user document.
    pub field: &'static str,
    /// Part of a membership: each has an outcome of its own.
    pub part: Option<Part>,
    /// The organization of the part; `None`: each one that the observation does not contain.
    pub organization: Option<String>,
    /// Key of the property: each has an outcome of its own.
    pub property: Option<String>,
    /// Observed value, with keys of roles and permissions; with ids of those that the memberships no longer contain.
    pub value: Value,
    /// Whether this observation determines the current value.
    pub is_set: bool,
    /// The newer observation that determines the current value instead. Of several of one time it names each that contains this field.
    pub superseded_by: Option<String>,
    /// Ids of the entries in the log with that observation; empty if it is not in the log, or not among the entries that were given.
    pub superseded_by_entries: Vec<String>,
}

/// Returns the known observations of a user, oldest first. `events` are the user's entries in the log.
pub fn explain(row: Option<&Row>, events: &[LogEntry]) -> Vec<ExplainedObservation> {
    let nothing = UserState::default();
    let state = row.map_or(&nothing, |row| &row.state);
    let names: BTreeMap<&str, &str> =
        events.iter().map(|event| (event.id.as_str(), event.kind.as_str())).collect();
    let explainer = Explainer { state, names, own: Sources::of(events) };
    let mut explained: Vec<(Option<Version>, ExplainedObservation)> =
        events.iter().flat_map(|event| explainer.event(event)).collect();
    explained.extend(explainer.reads());
    // A sighting in the log already explains the fields of a token.
    let is_from_sighting = |explained: &ExplainedObservation| {
        explained.kind == kind::LOGIN && explained.fields.iter().any(|field| field.is_set)
    };
    if !explained.iter().any(|(_, explained)| is_from_sighting(explained)) {
        explained.extend(explainer.token());
    }
    explained.sort_by(|a, b| (&a.0, a.1.received_at).cmp(&(&b.0, b.1.received_at)));
    explained.into_iter().map(|(_, explained)| explained).collect()
}

struct Explainer<'a> {
    state: &'a UserState,
    /// Types of the entries, by id.
    names: BTreeMap<&'a str, &'a str>,
    /// The entries, by version.
    own: Sources<'a>,
}

impl Explainer<'_> {
    fn event(&self, event: &LogEntry) -> Vec<(Option<Version>, ExplainedObservation)> {
        let explained = |at, outcome: String, fields| ExplainedObservation {
            at,
            received_at: Some(event.received_at),
            kind: event.kind.clone(),
            event_id: Some(event.id.clone()),
            outcome,
            fields,
        };
        if let Some(own) = self.own_entry(event) {
            let (outcome, fields) = own.unwrap_or_else(|unreadable| (unreadable, Vec::new()));
            return vec![(event.version.clone(), explained(event.at, outcome, fields))];
        }
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

    /// Explains an entry that kinsync made; `None` for an event and a sighting.
    fn own_entry(&self, entry: &LogEntry) -> Option<Result<(String, Vec<ExplainedField>), String>> {
        Some(match entry.scheme.as_str() {
            log_entry::ACTION => Ok((action(entry), Vec::new())),
            log_entry::ERASED => Ok(("the content was erased".into(), Vec::new())),
            log_entry::STATE => {
                let joined = log_entry::state(&entry.payload).map_err(|error| error.to_string());
                joined.map(|joined| self.state(entry, &joined))
            }
            log_entry::OBSERVATION => {
                let observation = observation_in(entry).map_err(|error| error.to_string());
                observation.map(|observation| self.observation(&observation))
            }
            _ => return None,
        })
    }

    /// Returns the latest acceptable time of an event. The result repeats the projector's decision at the time of receipt,
    /// unless the event was released from quarantine later, by the clock or by an operator.
    fn latest(&self, event: &LogEntry) -> Micros {
        let is_known =
            self.state.versions().any(|version| is_event(version) && event_id(version) == event.id);
        if is_known { Micros(i64::MAX) } else { latest(event.received_at, FUTURE_TOLERANCE) }
    }

    fn observation(&self, observation: &Observation) -> (String, Vec<ExplainedField>) {
        let version = &observation.version;
        let state = self.state;
        let observed = UserState::of(observation);
        let fields: Vec<ExplainedField> = self.fields(&observed).map(|(_, field)| field).collect();
        let set = fields.iter().filter(|field| field.is_set).count();
        let are_superseded = fields.iter().all(|field| field.superseded_by.is_some());
        let outcome = match &observation.what {
            What::Fields(_) | What::Exists(_) => match (set, &state.deleted) {
                (_, Some(deleted)) if !state.is_live() && deleted >= version => {
                    "the user was deleted later".into()
                }
                (_, Some(_)) if !state.is_live() => "no event restores a deleted user".into(),
                _ if fields.is_empty() => "the event contains no field".into(),
                (0, _) if are_superseded => "every field was superseded".into(),
                (0, _) => "not in the store yet".into(),
                (set, _) => format!("set {set} of {}", counted(fields.len())),
            },
            What::Membership { code, membership } => {
                let what = if membership.is_some() { "is a member" } else { "is no member" };
                let after = match set {
                    0 if are_superseded => "superseded".to_owned(),
                    0 => "not in the store yet".to_owned(),
                    set => format!("set {set} of {}", counted(fields.len())),
                };
                format!("{what} of {code}; {after}")
            }
            What::Deleted => self.deletion(version),
            What::SignedIn(at) => newest("sign-in", *at, state.last_signed_in),
            What::Seen(at) => newest("request", *at, state.last_seen),
        };
        (outcome, fields)
    }

    /// Explains a state that was joined as a whole: each field has a version of its own.
    fn state(&self, entry: &LogEntry, joined: &UserState) -> (String, Vec<ExplainedField>) {
        let fields: Vec<ExplainedField> = self.fields(joined).map(|(_, field)| field).collect();
        if joined.erased.is_some() {
            return ("the user was erased; nothing restores it".into(), fields);
        }
        let set = fields.iter().filter(|field| field.is_set).count();
        let what = match entry.kind.as_str() {
            kind::RETENTION => "replaced the older entries, which retention removed",
            kind::SNAPSHOT => "the stored user when the log began",
            kind::SCAN_PROOF => "what a complete scan proved",
            kind::ORGANIZATION_DELETED => "the organization was deleted",
            _ => "a joined state",
        };
        (format!("{what}; set {set} of {}", counted(fields.len())), fields)
    }

    /// Returns the fields that a state contains, the parts of its memberships and its properties, each with its version.
    fn fields<'s>(&self, observed: &'s UserState) -> impl Iterator<Item = (&'s Version, ExplainedField)> {
        observed.fields.iter().flat_map(|(field, Register { version, value })| match value {
            Value::Memberships(memberships) => {
                memberships.parts().map(|part| (part.version, self.part(*field, part))).collect()
            }
            Value::Properties(properties) => {
                let property = |(key, value, version)| (version, self.property(*field, key, value, version));
                properties.parts().map(property).collect()
            }
            value => vec![(version, self.field(*field, value, version))],
        })
    }

    fn field(&self, field: Field, value: &Value, version: &Version) -> ExplainedField {
        let known = self.state.fields.get(&field).map(|known| &known.version);
        let target = Target { field, organization: None, property: None };
        self.explained(target, value.clone(), version, known)
    }

    fn part(&self, field: Field, observed: MembershipPart<'_>) -> ExplainedField {
        let MembershipPart { code, part, value, version } = observed;
        let value = match value {
            Value::Codes(ids) => {
                Value::Codes(ids.iter().map(|id| self.state.directory.key(id).to_owned()).collect())
            }
            other => other,
        };
        let known = self.state.memberships().and_then(|known| known.decided_by(code, part));
        let target = Target { field, organization: code, property: None };
        ExplainedField { part: Some(part), ..self.explained(target, value, version, known) }
    }

    fn property(&self, field: Field, key: &str, value: Option<&str>, version: &Version) -> ExplainedField {
        let value = value.map_or(Value::Null, Value::from);
        let known = self.state.properties().and_then(|known| known.decided_by(key));
        let target = Target { field, organization: None, property: Some(key) };
        self.explained(target, value, version, known)
    }

    /// `known`: the version of the observation that determines the value.
    fn explained(
        &self,
        target: Target<'_>,
        value: Value,
        version: &Version,
        known: Option<&Version>,
    ) -> ExplainedField {
        let newer = known.filter(|known| *known > version);
        let entries = newer.map(|known| self.entries(known, Some(&target))).unwrap_or_default();
        ExplainedField {
            field: target.field.key(),
            part: None,
            organization: target.organization.map(ToOwned::to_owned),
            property: target.property.map(ToOwned::to_owned),
            value,
            is_set: known == Some(version),
            superseded_by: newer.map(|known| self.name(known, Some(&target))),
            superseded_by_entries: entries.into_iter().map(|(_, id)| id.to_owned()).collect(),
        }
    }

    /// Returns the types and the ids of the entries with the observation of this version that decides about a field.
    fn entries(&self, version: &Version, target: Option<&Target<'_>>) -> Vec<(&str, &str)> {
        let id = event_id(version);
        if let (true, Some((id, kind))) = (is_event(version), self.names.get_key_value(id)) {
            return vec![(*kind, *id)];
        }
        self.own.of_version(version, target)
    }

    fn deletion(&self, version: &Version) -> String {
        match (&self.state.deleted, self.state.is_live()) {
            (None, _) => "not in the store yet".into(),
            (Some(known), _) if known < version => "not in the store yet".into(),
            (Some(_), true) => "superseded: two later reads of Kinde confirmed that the user exists".into(),
            (Some(known), false) if known == version => "deleted the user".into(),
            (Some(known), false) => format!("superseded by a later deletion: {}", self.name(known, None)),
        }
    }

    /// Returns a readable description of the observation of this version that decides about a field.
    fn name(&self, version: &Version, target: Option<&Target<'_>>) -> String {
        let mut kinds: Vec<&str> = self.entries(version, target).into_iter().map(|(kind, _)| kind).collect();
        kinds.dedup();
        let kinds = kinds.join(" and ");
        match version.rank {
            Rank::Provisional => "a token".into(),
            Rank::Event | Rank::Receipt => {
                let kinds = if kinds.is_empty() { "an event" } else { &kinds };
                format!("{kinds} {} of {}", event_id(version), time(version.at))
            }
            Rank::Snapshot if kinds.is_empty() => format!("a read of Kinde at {}", time(version.at)),
            Rank::Snapshot => format!("{kinds} of {}", time(version.at)),
        }
    }

    /// Returns the reads of Kinde that are not in the log and still determine a field, a deletion or a confirmation.
    fn reads(&self) -> Vec<(Option<Version>, ExplainedObservation)> {
        let versions: BTreeSet<&Version> = self
            .fields(self.state)
            .map(|(version, _)| version)
            .chain(&self.state.deleted)
            .chain(&self.state.confirmed)
            .filter(|version| version.rank == Rank::Snapshot && !self.own.contain(version))
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
            let set = fields.iter().filter(|field| field.is_set).count();
            format!("set {}; the other fields were superseded or unchanged", counted(set))
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
        self.fields(self.state).filter(|(known, _)| *known == version).map(|(_, field)| field).collect()
    }
}

/// Returns the content of an entry that changed no state, such as `document: 65f1…; kept: plan`.
fn action(entry: &LogEntry) -> String {
    let content: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&entry.payload).unwrap_or_default();
    let part = |(key, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) => format!("{key}: {text}"),
        other => format!("{key}: {other}"),
    };
    content.into_iter().map(part).collect::<Vec<_>>().join("; ")
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
    fn future_event() -> LogEntry {
        let payload = r#"{"type":"user.updated","event_id":"event_1","timestamp":"1970-01-01T00:10:00Z","data":{"user":{"id":"kp_1","first_name":"Ada"}}}"#;
        LogEntry {
            id: "event_1".into(),
            kind: "user.updated".into(),
            source: log_entry::LogSource::Webhook,
            version: None,
            user: Some("kp_1".into()),
            at: Some(Micros(10 * MINUTE)),
            received_at: Micros(0),
            scheme: "hmac_sha256".into(),
            payload: payload.into(),
        }
    }

    /// A version decides nothing about which of two entries is the source: each names what it contains.
    #[test]
    fn the_proof_of_a_scan_and_a_list_of_organizations_of_one_time_are_named_apart() {
        let user = UserId::parse("kp_1").unwrap();
        let version = Version::snapshot(Micros(20 * MINUTE), "");
        let list = Value::Codes(vec!["org_2".into()]);
        let proof = UserState::default()
            .with_register(Field::FirstName, version.clone(), "Grace".into())
            .with_register(Field::OrganizationCodes, version.clone(), list);
        let read = kinsync_core::Memberships::read("org_1", None, &version);
        let ended = Value::Memberships(read);
        let ended = UserState::default().with_register(Field::Organizations, version, ended);
        let of_state = |kind, state| {
            LogEntry::of_state(&user, kind, log_entry::LogSource::Reconcile, state, Micros(21 * MINUTE))
        };
        let entries = [of_state(kind::SCAN_PROOF, &proof), of_state(kind::ORGANIZATION_DELETED, &ended)];
        let payload = r#"{"type":"user.updated","event_id":"event_1","timestamp":"1970-01-01T00:10:00Z","data":{"user":{"id":"kp_1","first_name":"Ada","organizations":[{"code":"org_1"},{"code":"org_3"}]}}}"#;
        let event = LogEntry { received_at: Micros(10 * MINUTE), payload: payload.into(), ..future_event() };
        let mut row = Row::unknown(user.clone());
        let logged = decode_logged(&event, Micros(i64::MAX)).unwrap().observations.unwrap();
        row.state = UserState::of(&logged[0]).join(proof.clone()).join(ended.clone());
        let [proof, ended] = entries.clone();
        let both = [
            (vec![event.clone(), proof.clone(), ended.clone()], "in one order"),
            (vec![ended.clone(), proof.clone(), event], "in the other order"),
        ];
        for (log, when) in both {
            let explained = explain(Some(&row), &log);
            let of_event = explained.iter().find(|one| one.event_id.as_deref() == Some("event_1")).unwrap();
            let by = |field: &str, code: Option<&str>| {
                let is_it = |one: &&ExplainedField| one.field == field && one.organization.as_deref() == code;
                let one = of_event.fields.iter().find(is_it).unwrap();
                let text = one.superseded_by.as_deref().unwrap().split(" of ").next().unwrap();
                (text.to_owned(), one.superseded_by_entries.clone())
            };
            let (only, all) = (vec![proof.id.clone()], vec![ended.id.clone(), proof.id.clone()]);
            assert_eq!(by("firstName", None), ("kinsync.scan.proof".into(), only.clone()), "{when}");
            assert_eq!(by("organizations", Some("org_3")), ("kinsync.scan.proof".into(), only), "{when}");
            let kinds = "kinsync.organization.deleted and kinsync.scan.proof".to_owned();
            assert_eq!(by("organizations", Some("org_1")), (kinds, all), "{when}");
        }
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
