//! Sightings in the queue: users made from tokens when the store is back.

use kinde::webhook::Scheme;
use kinsync_core::{Field, Micros, Observation, Profile, Source, UserDocument, UserId, Version, What};
use kinsync_engine::internal::{
    apply::apply,
    log_entry,
    queue::{Entry, Payload},
    sighting::Sighting,
    store::EventFilter,
};

use crate::{
    pipeline::{dead_letters, deliver},
    stores::{Fresh, on_every_store},
};

const NOW: Micros = Micros(1_700_000_000_000_000);

fn sighting(email: Option<&str>) -> Sighting {
    let user = UserId::parse("kp_ada").expect("a plain id");
    let profile = email.map_or_else(Profile::new, |email| Profile::new().with(Field::Email, email));
    Sighting { user, profile, seen_at: NOW }
}

fn delivery(event_id: &str, payload: &str) -> Entry {
    let body = payload.as_bytes().to_vec().into();
    let payload = Payload::Delivery { scheme: Scheme::Hmac, signed_at: None, body };
    Entry { event_id: event_id.to_owned(), received_at: NOW, payload }
}

fn event(kind: &str, id: &str, email: &str) -> Entry {
    let body = format!(
        r#"{{"type":"{kind}","event_id":"{id}","timestamp":"2020-01-01T00:00:00Z",
            "data":{{"user":{{"id":"kp_ada","email":"{email}"}}}}}}"#
    );
    delivery(id, &body)
}

async fn after(fresh: &Fresh, entries: impl IntoIterator<Item = Entry>) -> Option<UserDocument> {
    let (engine, _dir) = deliver(fresh, entries).await;
    assert_eq!(dead_letters(&engine).await, 0);
    let ada = [sighting(None).user];
    let row = fresh.store.load(&ada).await.expect("the store answers").pop().flatten();
    row.map(|row| row.document())
}

on_every_store! {
    a_sighting_creates_the_user_with_the_time_of_the_request
    every_event_and_snapshot_outranks_a_sighting_in_any_order
    a_sighting_never_restores_a_deleted_user
    a_delivery_that_looks_like_a_sighting_is_none
    the_last_seen_time_alone_is_no_change_of_the_user
}

async fn a_sighting_creates_the_user_with_the_time_of_the_request(fresh: Fresh) {
    let ada = after(&fresh, [sighting(Some("ada@x.org")).entry()]).await.expect("made");
    assert_eq!(ada.email.as_deref(), Some("ada@x.org"), "{}", fresh.name);
    assert_eq!(ada.last_seen_at, Some(NOW));
    let logged = fresh.store.events(&EventFilter { limit: 9, ..EventFilter::default() }).await;
    assert_eq!(logged.expect("the store answers")[0].kind, log_entry::kind::LOGIN);
}

async fn every_event_and_snapshot_outranks_a_sighting_in_any_order(fresh: Fresh) {
    let created = event("user.created", "event_1", "kinde@x.org");
    let ada = after(&fresh, [created, sighting(Some("token@x.org")).entry()]).await.expect("made");
    assert_eq!(ada.email.as_deref(), Some("kinde@x.org"), "{}", fresh.name);
}

async fn a_sighting_never_restores_a_deleted_user(fresh: Fresh) {
    let deleted = event("user.deleted", "event_1", "");
    let ada = after(&fresh, [deleted, sighting(Some("a@x.org")).entry()]).await.expect("a tombstone");
    assert!(ada.is_deleted, "{}", fresh.name);
}

async fn a_delivery_that_looks_like_a_sighting_is_none(fresh: Fresh) {
    let typed = r#"{"type":"kinsync.login","event_id":"e1","data":{"user":{"id":"kp_ada"}}}"#;
    let bare = String::from_utf8(sighting(None).entry().payload.bytes().to_vec()).expect("it is JSON");
    assert_eq!(after(&fresh, [delivery("e1", typed)]).await, None, "{}", fresh.name);
    let (engine, _dir) = deliver(&fresh, [delivery("e2", &bare)]).await;
    let rows = fresh.store.load(&[sighting(None).user]).await.expect("the store answers");
    assert_eq!((rows, dead_letters(&engine).await), (vec![None], 1), "{}", fresh.name);
}

#[test]
fn repetitions_within_an_hour_are_one_entry() {
    let at = |seen_at| Sighting { seen_at: Micros(seen_at), ..sighting(None) }.entry().event_id;
    let hour = 3_600_000_000;
    assert_eq!(at(5 * hour), at(6 * hour - 1));
    assert_ne!(at(5 * hour), at(6 * hour));
}

async fn the_last_seen_time_alone_is_no_change_of_the_user(fresh: Fresh) {
    let made = after(&fresh, [event("user.created", "event_1", "ada@x.org")]).await.expect("made");
    let seen = Observation {
        user: made.kinde_id.clone(),
        version: Version::provisional(),
        source: Source::Login,
        what: What::Seen(NOW),
    };
    let later = Micros(made.updated_at.0 + 1_000_000);
    apply(&*fresh.store, [seen], later).await.expect("the store answers");
    let seen = fresh.store.load(std::slice::from_ref(&made.kinde_id)).await.expect("the store answers").pop();
    let seen = seen.flatten().expect("stored").document();
    let expected = UserDocument { last_seen_at: Some(NOW), ..made };
    assert_eq!(seen, expected, "{}: neither `updatedAt` nor `source`", fresh.name);
}
