//! The one shape in which users, events and dead letters leave over HTTP: instants as RFC 3339 text in UTC with
//! microseconds, everything else as the types say.

use jiff::Timestamp;
use kinsync_core::{Micros, UserDocument};
use kinsync_engine::{
    queue::{DeadLetter, Stats},
    store::LoggedEvent,
};
use serde_json::{Value, json};

/// The keys of a user document that are instants.
const TIMES: [&str; 5] = ["createdAt", "updatedAt", "lastSeenAt", "lastSignedInAt", "deletedAt"];

/// `2024-05-01T07:41:45.592145Z`; null for an instant that no calendar has.
pub fn time(at: Micros) -> Value {
    Timestamp::from_microsecond(at.0).map_or(Value::Null, |at| format!("{at:.6}").into())
}

fn optional_time(at: Option<Micros>) -> Value {
    at.map_or(Value::Null, time)
}

/// A user document.
pub fn user(document: &UserDocument) -> Value {
    let mut user = serde_json::to_value(document).expect("a user document has only text keys");
    for key in TIMES {
        if let Some(at) = user.get(key).and_then(Value::as_i64) {
            user[key] = time(Micros(at));
        }
    }
    user
}

/// An event of the log, without what it says: for lists.
pub fn event(event: &LoggedEvent) -> Value {
    json!({
        "eventId": event.event_id,
        "type": event.event_type,
        "user": event.user,
        "at": optional_time(event.at),
        "receivedAt": time(event.received_at),
        "scheme": event.scheme,
    })
}

/// An event of the log.
pub fn event_with_payload(logged: &LoggedEvent) -> Value {
    let mut value = event(logged);
    value["payload"] = payload(&logged.payload);
    value
}

/// A dead letter, without what it says: for lists.
pub fn dead_letter(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id,
        "eventId": letter.event_id,
        "scheme": letter.scheme,
        "receivedAt": time(letter.received_at),
        "deadAt": time(letter.dead_at),
        "reason": letter.reason,
    })
}

/// A dead letter.
pub fn dead_letter_with_payload(letter: &DeadLetter) -> Value {
    let mut value = dead_letter(letter);
    value["payload"] = payload(&letter.payload);
    value
}

/// How the queue is doing.
pub fn queue(stats: &Stats) -> Value {
    json!({
        "depth": stats.depth,
        "oldestReceivedAt": optional_time(stats.oldest_received_at),
        "bytes": stats.bytes,
        "deadLetters": stats.dead_letters,
    })
}

/// The event as JSON where it is JSON, else as text.
fn payload(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_rfc_3339_with_microseconds() {
        assert_eq!(time(Micros(1_714_549_305_592_145)), "2024-05-01T07:41:45.592145Z");
        assert_eq!(time(Micros(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(Micros(-1)), "1969-12-31T23:59:59.999999Z");
        assert_eq!(time(Micros(i64::MAX)), Value::Null);
    }
}
