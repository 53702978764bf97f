//! The one shape in which events and dead letters leave over HTTP, beside that of users: instants as RFC 3339 text in UTC
//! with microseconds, everything else as the types say.

use kinsync_core::Micros;
use kinsync_engine::{
    explain::Told,
    queue::{DeadLetter, Stats},
    reconcile::record::Run,
    store::LoggedEvent,
};
use kinsync_tower::document::time;
use serde_json::{Value, json};

pub use kinsync_tower::document::user;

fn optional_time(at: Option<Micros>) -> Value {
    at.map_or(Value::Null, time)
}

/// A run of the reconciler, without examples: for lists.
pub fn run(run: &Run) -> Value {
    let mut value = run_with_examples(run);
    value.as_object_mut().map(|run| run.remove("examples"));
    value
}

/// A run of the reconciler, with some of the users who differed.
pub fn run_with_examples(run: &Run) -> Value {
    let mut value = serde_json::to_value(run).expect("a run has only text keys");
    value["startedAt"] = time(run.started_at);
    value["endedAt"] = optional_time(run.ended_at);
    value.as_object_mut().map(|run| run.remove("before"));
    value["since"] = optional_time(run.before.map(|before| before.began));
    value["missedByWebhooks"] = run.tally.missed().into();
    for (example, drift) in value["examples"].as_array_mut().into_iter().flatten().zip(&run.tally.examples) {
        example["knownAt"] = optional_time(drift.known_at);
    }
    value
}

/// Something that was told of a user.
pub fn told(told: &Told) -> Value {
    let mut value = serde_json::to_value(told).expect("what was told has only text keys");
    value["at"] = optional_time(told.at);
    value["receivedAt"] = optional_time(told.received_at);
    for (word, told) in value["fields"].as_array_mut().into_iter().flatten().zip(&told.fields) {
        word["value"] = plain(&told.value);
    }
    value
}

/// A value of a field, as a user document shows it.
fn plain(value: &kinsync_core::Value) -> Value {
    use kinsync_core::Value as Told;
    match value {
        Told::Null => Value::Null,
        Told::Flag(flag) => (*flag).into(),
        Told::Time(at) => time(*at),
        Told::Text(text) => (**text).into(),
        Told::Organizations(list) => json!(list),
        Told::Codes(list) => json!(list),
        Told::Identities(list) => json!(list),
    }
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
