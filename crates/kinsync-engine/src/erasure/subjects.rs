//! Finds out whether a text is about users that are erased.

use std::collections::HashSet;

use bytes::Bytes;
use kinsync_core::{Field, Micros, UserId, UserState, email};
use serde_json::Value;

use crate::{
    decode, log_entry,
    queue::{Entry, Payload},
};

/// Users to erase, with the hashes of their email addresses: no record of an erasure contains an address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Subjects {
    pub(super) users: HashSet<UserId>,
    pub(super) addresses: HashSet<String>,
}

impl Subjects {
    /// Adds a user with these hashes of addresses.
    pub(super) fn add(&mut self, user: UserId, addresses: impl IntoIterator<Item = String>) {
        self.users.insert(user);
        self.addresses.extend(addresses);
    }

    /// Returns whether a queued payload is about one of the users: an event of the user, or one about no user that names the id or
    /// an address. An event of another user, or of an organization, a role or a permission, is not.
    pub(super) fn are_in(&self, scheme: &str, payload: &[u8]) -> bool {
        let decoded = Payload::from_parts(scheme, None, Bytes::copy_from_slice(payload)).map(|payload| {
            let entry = Entry { event_id: String::new(), received_at: Micros(0), payload };
            decode::decode(&entry, Micros(i64::MAX))
        });
        if let Some(user) = decoded.as_ref().and_then(|decoded| decoded.event.user.as_ref()) {
            return self.users.iter().any(|known| known.as_str() == user);
        }
        decoded.is_none_or(|decoded| decoded.changes.is_empty())
            && self.are_named_in(&String::from_utf8_lossy(payload))
    }

    /// Returns whether a JSON text contains the id or an address of one of the users as a string. Of another text, only the ids
    /// are found.
    pub(super) fn are_named_in(&self, text: &str) -> bool {
        match serde_json::from_str::<Value>(text) {
            Ok(value) => self.are_named(&value),
            Err(_) => self.users.iter().any(|user| text.contains(user.as_str())),
        }
    }

    pub(crate) fn are_named(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.is_one(text),
            Value::Array(list) => list.iter().any(|value| self.are_named(value)),
            Value::Object(members) => {
                members.iter().any(|(key, value)| self.is_one(key) || self.are_named(value))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    /// Returns the value with each text replaced, except for the ids of the users.
    pub(crate) fn without_texts(&self, value: &Value) -> Value {
        match value {
            Value::String(text) if !self.is_id(text) => "erased".into(),
            Value::Array(list) => list.iter().map(|value| self.without_texts(value)).collect(),
            Value::Object(members) => {
                members.iter().map(|(key, value)| (key.clone(), self.without_texts(value))).collect()
            }
            other => other.clone(),
        }
    }

    fn is_one(&self, text: &str) -> bool {
        self.is_id(text) || self.is_address(text)
    }

    fn is_id(&self, text: &str) -> bool {
        self.users.iter().any(|user| user.as_str() == text)
    }

    fn is_address(&self, text: &str) -> bool {
        text.contains('@') && self.addresses.contains(&hashed(text))
    }
}

/// Returns the strings and keys in a JSON text: some of them may be ids of users.
pub(crate) fn strings(text: &str) -> HashSet<String> {
    fn add(value: &Value, found: &mut HashSet<String>) {
        match value {
            Value::String(text) => _ = found.insert(text.clone()),
            Value::Array(list) => list.iter().for_each(|value| add(value, found)),
            Value::Object(members) => members.iter().for_each(|(key, value)| {
                found.insert(key.clone());
                add(value, found);
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut found = HashSet::new();
    if let Ok(value) = serde_json::from_str(text) {
        add(&value, &mut found);
    }
    found
}

/// Returns the hash of the address in a state.
pub(super) fn addresses(state: &UserState) -> Option<String> {
    state.text(Field::Email).map(hashed)
}

/// Returns the hash of an address without regard to case and surrounding white space.
fn hashed(address: &str) -> String {
    log_entry::hash(format!("address {}", email::folded(address)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ada() -> Subjects {
        let mut subjects = Subjects::default();
        subjects.add(UserId::parse("kp_ada").unwrap(), [hashed("Ada@Example.com")]);
        subjects
    }

    fn is_about(event: &str) -> bool {
        ada().are_in("hmac_sha256", event.as_bytes())
    }

    #[test]
    fn an_event_of_another_user_with_the_same_address_is_not_about_the_erased_one() {
        let event = |user: &str| {
            format!(
                r#"{{"type":"user.updated","event_id":"e","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"{user}","email":"ada@example.com"}}}}}}"#
            )
        };
        assert!(is_about(&event("kp_ada")));
        assert!(!is_about(&event("kp_bob")) && !is_about(&event("kp_ada2")));
    }

    #[test]
    fn an_event_about_no_user_is_found_by_the_id_or_an_address_in_any_case() {
        let event = |value: &str| {
            format!(
                r#"{{"type":"unknown.type","event_id":"e","timestamp":"2026-01-01T00:00:00Z","data":{{"who":"{value}"}}}}"#
            )
        };
        assert!(is_about(&event("kp_ada")) && is_about(&event(" ADA@example.com")));
        assert!(!is_about(&event("lada@example.com")) && !is_about(&event("kp_adam")));
        assert!(is_about("{\"half of an event of kp_ada"));
    }
}
