//! Events without a time of the sender take effect in the order of receipt.

use kinde::{
    management,
    webhook::{Delivery, Scheme},
};
use kinsync_core::{Micros, UserDocument, UserId};
use kinsync_engine::{
    Clock, Engine,
    internal::{
        clock::ReceiptClock, explain::explain, pending_checks::PendingChecks, queue::Entry,
        store::EventFilter,
    },
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    pipeline::{dead_letters, deliver, drain, event_entry},
    stores::{Fresh, on_every_store},
};

/// A time of receipt, in microseconds: 2023-11-14T22:13:20Z.
const RECEIVED: i64 = 1_700_000_000_000_000;

/// What one sender sends: by HMAC, without `event_id` and `timestamp`.
struct Sender(ReceiptClock);

impl Sender {
    fn new() -> Self {
        Self(ReceiptClock::new(Clock::from_fn(|| Micros(RECEIVED))))
    }

    fn send(&self, body: &str) -> Entry {
        self.deliver(None, None, body)
    }

    fn named(&self, name: &str) -> Entry {
        self.send(&named(name))
    }

    fn deliver(&self, id: Option<&str>, signed_at: Option<i64>, body: &str) -> Entry {
        let signed_at = signed_at.map(|at| jiff::Timestamp::from_microsecond(at).expect("in range"));
        let (id, body) = (id.map(ToOwned::to_owned), body.to_owned().into());
        let scheme = if signed_at.is_some() { Scheme::StandardWebhooks } else { Scheme::Hmac };
        let delivery = Delivery::from_verified_parts(id, "user.updated".into(), scheme, body, signed_at);
        Entry::new(&delivery, self.0.next())
    }
}

fn named(name: &str) -> String {
    format!(r#"{{"type":"user.updated","user":{{"id":"kp_ada","first_name":"{name}"}}}}"#)
}

async fn ada(fresh: &Fresh) -> UserDocument {
    let id = UserId::parse("kp_ada").expect("a plain id");
    let row = fresh.store.load(&[id]).await.expect("the store answers").pop().flatten();
    row.expect("the user is stored").document()
}

async fn name(fresh: &Fresh) -> Option<String> {
    ada(fresh).await.first_name
}

async fn each_of_eight_updates_takes_effect(fresh: Fresh) {
    let sender = Sender::new();
    for n in 1..=8 {
        let update = format!("Ada {n}");
        deliver(&fresh, [sender.named(&update)]).await;
        assert_eq!(name(&fresh).await, Some(update), "{}", fresh.name);
    }
}

async fn a_value_that_returns_is_not_taken_for_a_repetition(fresh: Fresh) {
    let sender = Sender::new();
    let mut entries = ["A", "B", "A", "B"].map(|name| sender.named(name)).to_vec();
    deliver(&fresh, entries[..3].to_vec()).await;
    assert_eq!(name(&fresh).await.as_deref(), Some("A"), "{}", fresh.name);
    // Redelivered by the queue, in another order and several times.
    entries.extend(entries.clone());
    entries.shuffle(&mut StdRng::seed_from_u64(7));
    deliver(&fresh, entries).await;
    assert_eq!(name(&fresh).await.as_deref(), Some("B"), "{}", fresh.name);
    let logged = fresh.store.events(&EventFilter { limit: 100, ..EventFilter::default() }).await;
    assert_eq!(logged.expect("the store answers").items.len(), 4, "{}: each once", fresh.name);
}

async fn an_event_with_a_time_wins_if_it_is_newer(fresh: Fresh) {
    let sender = Sender::new();
    let at = |seconds, id, name| {
        event_entry("user.updated", seconds, id, &format!(r#"{{"id":"kp_ada","first_name":"{name}"}}"#))
    };
    deliver(&fresh, [sender.named("received")]).await;
    deliver(&fresh, [at(-1, "event_1", "older")]).await;
    assert_eq!(name(&fresh).await.as_deref(), Some("received"), "{}", fresh.name);
    deliver(&fresh, [at(0, "event_2", "equal")]).await;
    assert_eq!(name(&fresh).await.as_deref(), Some("equal"), "{}", fresh.name);
}

async fn a_deletion_has_the_time_of_its_receipt(fresh: Fresh) {
    let deleted = Sender::new().send(r#"{"type":"user.deleted","user":{"id":"kp_ada"}}"#);
    deliver(&fresh, [deleted]).await;
    let ada = ada(&fresh).await;
    assert_eq!((ada.is_deleted, ada.deleted_at), (true, Some(Micros(RECEIVED))), "{}", fresh.name);
}

async fn signed_deliveries_of_one_second_take_effect_in_the_order_of_receipt(fresh: Fresh) {
    let sender = Sender::new();
    let signed = |id, name| sender.deliver(Some(id), Some(RECEIVED - 5_000_000), &named(name));
    let (first, second) = (signed("msg_z", "first"), signed("msg_a", "second"));
    deliver(&fresh, [second, first]).await;
    assert_eq!(name(&fresh).await.as_deref(), Some("second"), "{}", fresh.name);
}

async fn a_repeated_message_id_keeps_the_version_of_its_first_delivery(fresh: Fresh) {
    let sender = Sender::new();
    let signed =
        |id, seconds: i64, name| sender.deliver(Some(id), Some(RECEIVED + seconds * 1_000_000), &named(name));
    deliver(&fresh, [signed("msg_1", 0, "A")]).await;
    deliver(&fresh, [signed("msg_2", 1, "B")]).await;
    // Each delivery of this test has a queue of its own, as after the window for duplicates of one queue.
    deliver(&fresh, [signed("msg_1", 2, "A")]).await;
    assert_eq!(name(&fresh).await.as_deref(), Some("B"), "{}", fresh.name);
}

async fn an_incomplete_jwt_of_kinde_becomes_a_dead_letter(fresh: Fresh) {
    let complete = r#"{"type":"user.updated","event_id":"e","timestamp":"2023-11-14T22:13:20Z","data":{"user":{"id":"kp_ada"}}}"#;
    let receipts = Sender::new();
    let incomplete = ["data", "type", "event_id", "timestamp"].map(|claim| {
        let body = complete.replacen(&format!("\"{claim}\""), "\"x\"", 1).into();
        let delivery = Delivery::from_verified_parts(None, String::new(), Scheme::KindeJwt, body, None);
        Entry::new(&delivery, receipts.0.next())
    });
    let (engine, _dir) = deliver(&fresh, incomplete).await;
    let letters = engine.queue().dead_letters(None, 10).await.expect("the queue answers");
    let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    let missing = |field| format!("the event cannot be decoded: `{field}` is missing");
    assert_eq!(reasons, ["data", "type", "event_id", "timestamp"].map(missing), "{}", fresh.name);
    assert_eq!(dead_letters(&engine).await, 4);
}

async fn an_explanation_names_events_without_a_time(fresh: Fresh) {
    let sender = Sender::new();
    let entries = ["A", "B"].map(|name| sender.named(name));
    let ids = entries.each_ref().map(|entry| Some(entry.event_id.clone()));
    deliver(&fresh, entries).await;
    let id = UserId::parse("kp_ada").expect("a plain id");
    let row = fresh.store.load(&[id]).await.expect("the store answers").pop().flatten();
    let filter = EventFilter { limit: 100, ..EventFilter::default() };
    let events = fresh.store.events(&filter).await.expect("the store answers").items;
    let explained = explain(row.as_ref(), &events);
    assert_eq!(explained.iter().map(|one| one.event_id.clone()).collect::<Vec<_>>(), ids);
    let [first, second] = [&explained[0], &explained[1]].map(|one| one.fields[0].clone());
    assert!(second.is_set && !first.is_set, "{}", fresh.name);
    let by = first.superseded_by.expect("a newer event");
    let newest = ids[1].as_deref().expect("each has one");
    assert!(by.starts_with(&format!("user.updated {newest} of ")), "{by}");
}

/// Delivers to an engine with a reconciler for which no Kinde listens: the checks stay pending. Returns their users.
async fn checked(fresh: &Fresh, entries: [Entry; 2]) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let kinde = management::Config::new("http://127.0.0.1:9".parse().expect("a URL"), "id", "secret".into());
    let builder = Engine::builder(dir.path()).store(fresh.store.clone());
    let engine = builder.management(kinde).scan_every(None).open().await.expect("the folder opens");
    for entry in entries {
        engine.queue().enqueue(entry).await.expect("the queue accepts it");
    }
    drain(&engine).await;
    let checks = PendingChecks::load(&*fresh.store).await.expect("the store answers");
    checks.users.keys().map(|user| user.as_str().to_owned()).collect()
}

async fn a_user_with_an_event_without_a_time_is_checked(fresh: Fresh) {
    let timed = event_entry("user.updated", 0, "event_1", r#"{"id":"kp_eve"}"#);
    let users = checked(&fresh, [Sender::new().named("A"), timed]).await;
    assert_eq!(users, ["kp_ada"], "{}: Kinde's own time needs no check", fresh.name);
}

async fn a_user_with_an_event_that_cannot_be_decoded_is_listed_and_checked(fresh: Fresh) {
    let sender = Sender::new();
    let unreadable = sender.send(r#"{"type":"user.deleted","timestamp":"?","user":{"id":"kp_eve"}}"#);
    let users = checked(&fresh, [unreadable, sender.send("{")]).await;
    assert_eq!(users, ["kp_eve"], "{}", fresh.name);
    let filter = EventFilter { kind: Some("user.deleted".into()), limit: 9, ..EventFilter::default() };
    let listed = fresh.store.events(&filter).await.expect("the store answers").items;
    assert_eq!(listed.len(), 1, "{}: {listed:?}", fresh.name);
    assert_eq!(listed[0].user.as_deref(), Some("kp_eve"));
}

on_every_store! {
    each_of_eight_updates_takes_effect
    a_value_that_returns_is_not_taken_for_a_repetition
    an_event_with_a_time_wins_if_it_is_newer
    a_deletion_has_the_time_of_its_receipt
    signed_deliveries_of_one_second_take_effect_in_the_order_of_receipt
    a_repeated_message_id_keeps_the_version_of_its_first_delivery
    an_incomplete_jwt_of_kinde_becomes_a_dead_letter
    an_explanation_names_events_without_a_time
    a_user_with_an_event_without_a_time_is_checked
    a_user_with_an_event_that_cannot_be_decoded_is_listed_and_checked
}
