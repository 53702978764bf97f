//! Values that the store may show for each user, derived from the emulator's records.
//!
//! This does not use the code with which kinsync merges observations, so that the two check each other. Per field, the
//! store must show the newest delivered value, or a newer one that no webhook delivered and a scan may have read: one
//! of an event that is pending or was lost, or one that Kinde had when it was sampled. A deletion is final.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use kinde::event;
use kinde_emulator::{Delivery, DeliveryState, Event, User};
use kinsync_core::{Micros, UserDocument};
use serde_json::{Value, json};

/// Largest difference between Kinde's time of a sign-in and the time of its event.
const SIGN_IN_TOLERANCE_MICROS: u64 = 50_000;
const SIGN_IN: &str = "lastSignedInAt";
/// Document keys and the members of `user` in a payload, besides the organizations.
const KEYS: [(&str, &str); 7] = [
    ("email", "email"),
    ("firstName", "first_name"),
    ("lastName", "last_name"),
    ("phone", "phone"),
    ("username", "username"),
    ("isSuspended", "is_suspended"),
    ("isPasswordResetRequested", "is_password_reset_requested"),
];
const ORGANIZATIONS: &str = "organizations";

/// The synced fields of one user by document key, in one form for events, Kinde and the store: without empty values.
pub(super) type Fields = BTreeMap<&'static str, Value>;

/// The fields as Kinde has them.
pub(super) fn at_kinde(user: &User) -> Fields {
    let mut fields = of_payload(&json!(user));
    set(&mut fields, SIGN_IN, json!(user.last_signed_in.map(Timestamp::as_microsecond)));
    fields
}

/// The fields of the `user` in a webhook payload.
fn of_payload(user: &Value) -> Fields {
    let mut fields = Fields::new();
    for (key, wire) in KEYS {
        set(&mut fields, key, user[wire].clone());
    }
    let organizations = user["organizations"].as_array().into_iter().flatten();
    set(&mut fields, ORGANIZATIONS, codes(organizations.filter_map(|org| org["code"].as_str())));
    fields
}

/// The keys that `user.created` and `user.updated` set.
fn payload_fields() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter().map(|(key, _)| key).chain([ORGANIZATIONS])
}

/// The fields as the store has them; `email` is passed in because a conflict may hide it.
pub(super) fn stored(document: &UserDocument, email: Option<&str>) -> Fields {
    let mut fields = of_payload(&json!({
        "email": email,
        "first_name": document.first_name,
        "last_name": document.last_name,
        "phone": document.phone,
        "username": document.username,
        "is_suspended": document.is_suspended,
        "is_password_reset_requested": document.is_password_reset_requested,
    }));
    set(
        &mut fields,
        ORGANIZATIONS,
        codes(document.organizations.iter().flatten().map(|org| org.code.as_str())),
    );
    set(&mut fields, SIGN_IN, json!(document.last_signed_in_at.map(|Micros(at)| at)));
    fields
}

/// The codes of organizations, sorted. Not their roles and permissions: a scan cannot repair those, because the
/// Management API lists only codes.
fn codes<'a>(codes: impl Iterator<Item = &'a str>) -> Value {
    json!(codes.collect::<BTreeSet<_>>())
}

/// Names of the fields that differ.
pub(super) fn differences(a: &Fields, b: &Fields) -> Vec<&'static str> {
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).copied().collect();
    keys.into_iter().filter(|key| !is_same(key, a.get(key), b.get(key))).collect()
}

fn is_same(key: &str, a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a.and_then(Value::as_i64), b.and_then(Value::as_i64)) {
        (Some(a), Some(b)) if key == SIGN_IN => a.abs_diff(b) <= SIGN_IN_TOLERANCE_MICROS,
        _ => a == b,
    }
}

fn set(fields: &mut Fields, key: &'static str, value: Value) {
    let is_empty = match &value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    if !is_empty {
        fields.insert(key, value);
    }
}

/// What is known of one user.
#[derive(Clone, Debug, Default)]
pub(super) struct UserHistory {
    /// Whether an event was delivered, so that the store must have the user.
    pub(super) is_delivered: bool,
    /// Whether a deletion was delivered.
    pub(super) is_deleted: bool,
    fields: BTreeMap<&'static str, Values>,
}

/// The values that the store may show for one field.
#[derive(Clone, Debug, Default)]
struct Values {
    delivered_at: Option<Timestamp>,
    /// The newest delivered value and newer values; `None` is an absent value.
    accepted: Vec<(Timestamp, Option<Value>)>,
}

impl Values {
    fn add(&mut self, at: Timestamp, value: Option<Value>, is_delivered: bool) {
        if self.delivered_at.is_some_and(|delivered| at < delivered) {
            return;
        }
        if is_delivered {
            self.delivered_at = Some(at);
            self.accepted.retain(|(known, _)| *known > at);
        }
        // The latest time of a value counts: it may be read by a scan for as long as Kinde has it.
        self.accepted.retain(|(known, other)| *known > at || *other != value);
        self.accepted.push((at, value));
    }

    fn accepts(&self, key: &str, value: Option<&Value>) -> bool {
        let is_unset = self.delivered_at.is_none() && value.is_none();
        is_unset || self.accepted.iter().any(|(_, other)| is_same(key, other.as_ref(), value))
    }
}

impl UserHistory {
    /// Names of the fields that the store must not show as it does.
    pub(super) fn unexplained(&self, stored: &Fields) -> Vec<&'static str> {
        let keys = self.fields.iter();
        keys.filter(|(key, values)| !values.accepts(key, stored.get(*key))).map(|(key, _)| *key).collect()
    }

    fn add_event(&mut self, event: &Event, is_delivered: bool) {
        self.is_delivered |= is_delivered;
        match event.kind.as_str() {
            event::USER_CREATED | event::USER_UPDATED => {
                let mut fields = of_payload(&event.data["user"]);
                for key in payload_fields() {
                    let value = fields.remove(key);
                    self.fields.entry(key).or_default().add(event.at, value, is_delivered);
                }
            }
            event::USER_DELETED => self.is_deleted |= is_delivered,
            event::USER_AUTHENTICATED => {
                let at = json!(event.at.as_microsecond());
                self.fields.entry(SIGN_IN).or_default().add(event.at, Some(at), is_delivered);
            }
            _ => {}
        }
    }

    fn add_sample(&mut self, at: Timestamp, user: &User) {
        let mut fields = at_kinde(user);
        for key in payload_fields().chain([SIGN_IN]) {
            let value = fields.remove(key);
            self.fields.entry(key).or_default().add(at, value, false);
        }
    }
}

/// The history of every user, and the deliveries that are pending.
#[derive(Debug, Default)]
pub(super) struct History {
    users: HashMap<String, UserHistory>,
    pending: HashMap<u64, Arc<Event>>,
    read_to: u64,
}

impl History {
    /// Reads the emulator's delivery records, oldest first. `find` returns the event with an id.
    pub(super) fn read(&mut self, deliveries: &[Delivery], find: impl Fn(&str) -> Option<Arc<Event>>) {
        for delivery in deliveries {
            if delivery.number > self.read_to {
                self.read_to = delivery.number;
                if let Some(event) = find(&delivery.event_id) {
                    self.add_event(&event, false);
                    self.pending.insert(delivery.number, event);
                }
            }
            if delivery.state != DeliveryState::Pending
                && let Some(event) = self.pending.remove(&delivery.number)
                && delivery.state == DeliveryState::Delivered
            {
                self.add_event(&event, true);
            }
        }
    }

    fn add_event(&mut self, event: &Event, is_delivered: bool) {
        if let Some(user) = event.user_id() {
            self.users.entry(user.to_owned()).or_default().add_event(event, is_delivered);
        }
    }

    /// Adds a user as Kinde has it now.
    pub(super) fn sample(&mut self, at: Timestamp, user: &User) {
        self.users.entry(user.id.clone()).or_default().add_sample(at, user);
    }

    /// The history of a user; `None` if the user was never at this Kinde.
    pub(super) fn user(&self, user: &str) -> Option<&UserHistory> {
        self.users.get(user)
    }

    /// The users with a pending delivery.
    pub(super) fn pending_users(&self) -> HashSet<&str> {
        self.pending.values().filter_map(|event| event.user_id()).collect()
    }
}

#[cfg(test)]
mod tests {
    use kinsync_core::{Field, Group};

    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn every_field_that_events_carry_is_compared() {
        let of_events = Field::ALL.into_iter().filter(|field| field.group() == Group::Event);
        assert_eq!(payload_fields().collect::<Vec<_>>(), of_events.map(Field::key).collect::<Vec<_>>());
    }

    #[test]
    fn the_store_may_show_the_newest_delivered_value_and_newer_ones() {
        let mut values = Values::default();
        assert!(values.accepts("email", None), "nothing was delivered");
        values.add(time(2), Some(json!("b")), true);
        assert!(!values.accepts("email", None) && values.accepts("email", Some(&json!("b"))));
        values.add(time(1), Some(json!("a")), true);
        values.add(time(3), Some(json!("c")), false);
        let accepted = |values: &Values, text| values.accepts("email", Some(&json!(text)));
        assert_eq!(["a", "b", "c"].map(|text| accepted(&values, text)), [false, true, true]);
        values.add(time(4), Some(json!("d")), true);
        assert_eq!(["b", "c", "d"].map(|text| accepted(&values, text)), [false, false, true]);
    }

    #[test]
    fn a_sign_in_may_differ_by_the_time_until_its_event() {
        let value = |micros: i64| Some(json!(micros));
        assert!(is_same(SIGN_IN, value(1_000_000).as_ref(), value(1_050_000).as_ref()));
        assert!(!is_same(SIGN_IN, value(1_000_000).as_ref(), value(1_050_001).as_ref()));
    }
}
