//! Random histories of a few users with shared addresses, as Kinde would send them, and what the join
//! makes of any subset of the events.

use std::collections::BTreeMap;

use bytes::Bytes;
use kinde::webhook::Scheme;
use kinsync_core::{
    Directory, Fact, Field, Micros, Observation, Organization, Profile, Source, UserId, UserState, Value,
    Version, What, email,
};
use kinsync_engine::internal::queue::{Entry, Payload};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, json};

/// 2024-07-09, in microseconds.
const START: i64 = 1_720_483_748_000_000;

/// One event: as it is queued, and as it should be understood. The two are made apart from each
/// other, so that decoding is tested too.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) entry: Entry,
    pub(crate) observation: Observation,
}

/// The life of four users with three addresses between them, made from a seed.
pub(crate) struct History {
    name: String,
    rng: StdRng,
    now: i64,
    arrivals: Vec<Arrival>,
}

impl History {
    pub(crate) fn random(name: &str, seed: u64) -> Vec<Arrival> {
        let rng = StdRng::seed_from_u64(seed);
        let mut history = Self { name: name.to_owned(), rng, now: START, arrivals: Vec::new() };
        for _ in 0..history.rng.random_range(3..12) {
            history.step();
        }
        history.arrivals
    }

    fn step(&mut self) {
        // Steps of zero make events of equal time, steps of one make microseconds count.
        self.now += self.rng.random_range(0..3);
        let user = format!("kp_{}_{}", self.name, self.rng.random_range(0..4));
        match self.rng.random_range(0..10) {
            0 => self.add(&user, "user.deleted", Map::new(), What::Deleted),
            1 => self.add(&user, "user.authenticated", Map::new(), What::SignedIn(Micros(self.now))),
            n => {
                let kind = if n < 5 { "user.created" } else { "user.updated" };
                let (fields, profile) = self.profile();
                self.add(&user, kind, fields, What::Fields(profile));
            }
        }
    }

    fn profile(&mut self) -> (Map<String, serde_json::Value>, Profile) {
        let mut fields = Map::new();
        let mut profile = Profile::new();
        let address = format!("{}-{}@example.com", self.name, self.rng.random_range(0..3));
        match self.rng.random_range(0..6) {
            0 => {}
            1 => {
                fields.insert("email".into(), json!(null));
                profile.set(Field::Email, Value::Null);
            }
            2 => {
                fields.insert("email".into(), json!(""));
                profile.set(Field::Email, Value::Null);
            }
            _ => {
                fields.insert("email".into(), json!(address));
                profile.set(Field::Email, address.as_str().into());
            }
        }
        for (key, field) in [("first_name", Field::FirstName), ("last_name", Field::LastName)] {
            if self.rng.random_bool(0.8) {
                let name = *["Ada", "$$NOW", "{\"$gt\":\"\"}", "a.b", "𝒜🦀", "n\0l"]
                    .choose(&mut self.rng)
                    .expect("not empty");
                fields.insert(key.into(), json!(name));
                profile.set(field, name.into());
            }
        }
        let suspended = self.rng.random_bool(0.2);
        fields.insert("is_suspended".into(), json!(suspended));
        profile.set(Field::IsSuspended, suspended.into());
        if self.rng.random_bool(0.5) {
            fields.insert(
                "organizations".into(),
                json!([{"code": "org_1", "roles": [{"id": "r", "key": "admin"}], "permissions": null}]),
            );
            let membership = Organization {
                roles: Some(vec!["r".into()]),
                permissions: Some(Vec::new()),
                ..Organization::new("org_1")
            };
            profile.set(Field::Organizations, Value::Organizations(vec![membership]));
        }
        (fields, profile)
    }

    fn add(&mut self, user: &str, kind: &str, mut fields: Map<String, serde_json::Value>, what: What) {
        fields.insert("id".into(), json!(user));
        let event_id = format!("event_{}_{}", self.name, self.arrivals.len());
        let instant = jiff::Timestamp::from_microsecond(self.now).expect("in range");
        let timestamp = match self.rng.random_range(0..3) {
            0 => instant.to_string(),
            1 => instant.display_with_offset(jiff::tz::offset(10)).to_string(),
            _ => instant.display_with_offset(jiff::tz::offset(-3)).to_string().replace("-03:00", "-03"),
        };
        let body = json!({"type": kind, "event_id": event_id, "timestamp": timestamp, "source": "api", "data": {"user": fields}});
        let entry = Entry {
            event_id: event_id.clone(),
            received_at: Micros(START + 60_000_000),
            payload: Payload::Delivery {
                scheme: Scheme::KindeJwt,
                signed_at: None,
                body: Bytes::from(body.to_string()),
            },
        };
        let version = Version::event(Micros(self.now), event_id);
        let user = UserId::parse(user).expect("a plain id");
        self.arrivals.push(Arrival {
            entry,
            observation: Observation { user, version, source: Source::Webhook, what },
        });
    }
}

/// What arrives of a history: some events are lost, some come several times, in any order.
pub(crate) fn deliveries(history: Vec<Arrival>, rng: &mut StdRng) -> Vec<Arrival> {
    let mut arriving = Vec::new();
    for arrivals in history {
        let copies = match rng.random_range(0..10) {
            0 => 0,
            1 | 2 => rng.random_range(2..4),
            _ => 1,
        };
        arriving.extend(std::iter::repeat_n(arrivals, copies));
    }
    arriving
}

/// Expected state of each user, and expected holder of each address.
pub(crate) struct Expected {
    pub(crate) states: BTreeMap<UserId, UserState>,
    owners: BTreeMap<String, UserId>,
}

impl Expected {
    pub(crate) fn of<'a>(observations: impl IntoIterator<Item = &'a Observation>) -> Self {
        let mut states: BTreeMap<UserId, UserState> = BTreeMap::new();
        for observation in observations {
            let state = states.entry(observation.user.clone()).or_default();
            *state = std::mem::take(state).observe(observation);
        }
        let mut claims: BTreeMap<String, Vec<(&UserId, &UserState)>> = BTreeMap::new();
        for (id, state) in &states {
            if let Some(address) = state.claimed_email() {
                claims.entry(address.to_owned()).or_default().push((id, state));
            }
        }
        let owner = |(address, claims)| Some((address, email::owner(claims)?.clone()));
        let owners = claims.into_iter().filter_map(owner).collect();
        Self { states, owners }
    }

    /// Compares the stored documents of these users with the expected ones.
    pub(crate) async fn assert_stored(
        &self,
        store: &dyn kinsync_engine::internal::store::Store,
        about: &str,
    ) {
        let ids: Vec<UserId> = self.states.keys().cloned().collect();
        // What the events contain of the objects that they refer to.
        let admin =
            kinsync_core::Entry::observed([(Fact::Key, Value::from("admin"))], &Version::provisional());
        let entries = [("org_1".to_owned(), kinsync_core::Entry::default()), ("r".to_owned(), admin)];
        let referred: Directory = entries.into_iter().collect();
        for chunk in ids.chunks(2_000) {
            let rows = store.load(chunk).await.expect("the store answers");
            for (id, row) in chunk.iter().zip(rows) {
                let row = row.unwrap_or_else(|| panic!("{about}: {id} is missing"));
                let state = &self.states[id].clone().with_directory(&referred);
                assert_eq!(&row.state, state, "{about}: state of {id}");
                assert!(row.pending_emails.is_empty(), "{about}: {id} is left pending_emails");
                let Some(address) = state.claimed_email() else { continue };
                let owner = &self.owners[address];
                assert_eq!(
                    row.metadata.holds_email,
                    owner == id,
                    "{about}: {id} and {address}, owner {owner}"
                );
                let held_by = (owner != id).then(|| owner.as_str());
                assert_eq!(
                    row.metadata.email_held_by.as_deref(),
                    held_by,
                    "{about}: holder of {address} of {id}"
                );
            }
        }
    }
}
