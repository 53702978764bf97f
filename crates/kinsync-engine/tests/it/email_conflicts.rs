//! Addresses that several documents have: which document shows one, and what others record.

use bson::{Document, doc};
use kinsync_core::{Observation, Profile, What};
use kinsync_engine::internal::{
    apply::apply,
    email_ownership::Sweep,
    store::{
        Store,
        mongo::{Config, MongoStore},
    },
};

use crate::{
    linking::{NOW, event, everything, is_linked, observe, profile, text, with_own_row},
    store_mongo::{fresh, prepared, store, users},
    store_rows::{get, row},
};

#[tokio::test]
async fn an_email_conflict_ends_when_the_document_of_the_application_disappears() {
    let store = store().await;
    with_own_row(&store).await;
    observe(&store, vec![event("kp_ada", 1, "a@x.org"), event("kp_bob", 2, "a@x.org")]).await;
    let held_by = async |user: &str| get(&store, user).await.unwrap().metadata.email_held_by;
    assert_eq!(
        (held_by("kp_ada").await, held_by("kp_bob").await),
        (Some("own".into()), Some("kp_ada".into()))
    );
    let mut sweep = Sweep::default();
    let before = everything(&store).await;
    assert_eq!(sweep.run(&store, NOW).await.unwrap(), 0, "nothing has changed");
    assert_eq!(everything(&store).await, before);
    users(&store).insert_one(doc! { "_id": "late", "email": "b@x.org" }).await.unwrap();
    users(&store).update_one(doc! { "_id": "own" }, doc! { "$set": { "email": "c@x.org" } }).await.unwrap();
    sweep.run(&store, NOW).await.unwrap();
    let ada = get(&store, "kp_ada").await.unwrap();
    assert_eq!((ada.document().email.as_deref(), ada.metadata.email_held_by), (Some("a@x.org"), None));
    assert_eq!(held_by("kp_bob").await.as_deref(), Some("kp_ada"));
    assert_eq!(sweep.run(&store, NOW).await.unwrap(), 0, "all is where it belongs");
}

#[tokio::test]
async fn an_address_that_the_application_writes_back_is_removed_again() {
    let store = store().await;
    observe(&store, vec![event("kp_ada", 1, "a@x.org"), event("kp_bob", 2, "a@x.org")]).await;
    // The owner changes its address, and the application writes it into documents of a waiting and of a deleted user.
    let deleted = Observation { what: What::Deleted, ..event("kp_eve", 1, "a@x.org") };
    observe(&store, vec![event("kp_ada", 3, "b@x.org"), event("kp_bob", 4, "c@x.org"), deleted]).await;
    observe(&store, vec![event("kp_ada", 5, "a@x.org"), event("kp_bob", 6, "a@x.org")]).await;
    for user in ["kp_bob", "kp_eve"] {
        let set = async |user: &str, change: Document| {
            users(&store).update_one(doc! { "kindeId": user }, change).await.unwrap();
        };
        set("kp_ada", doc! { "$unset": { "email": 1 } }).await;
        set(user, doc! { "$set": { "email": "a@x.org" } }).await;
        let at = NOW.0 + get(&store, "kp_ada").await.unwrap().revision;
        observe(&store, vec![event("kp_ada", at, "d@x.org"), event("kp_ada", at + 1, "a@x.org")]).await;
        let ada = get(&store, "kp_ada").await.unwrap();
        assert_eq!(ada.document().email.as_deref(), Some("a@x.org"), "of {user}");
        let other = users(&store).find_one(doc! { "kindeId": user }).await.unwrap().unwrap();
        assert!(!other.contains_key("email"), "{other}");
    }
    // If a validator prevents the removal, the address stays, and no other user is blocked.
    let validator = doc! { "$nor": [{ "kindeId": "kp_bob", "email": { "$exists": false } }] };
    observe(&store, vec![event("kp_ada", NOW.0 + 100, "e@x.org")]).await;
    let written = doc! { "$set": { "email": "a@x.org" } };
    observe(
        &store,
        vec![
            event("kp_bob", NOW.0 + 101, "f@x.org"),
            Observation { what: What::Deleted, ..event("kp_bob", NOW.0 + 102, "") },
        ],
    )
    .await;
    users(&store).update_one(doc! { "kindeId": "kp_bob" }, written).await.unwrap();
    store.database().unwrap().run_command(doc! { "collMod": "users", "validator": validator }).await.unwrap();
    observe(&store, vec![event("kp_ada", NOW.0 + 103, "a@x.org")]).await;
    assert_eq!(get(&store, "kp_ada").await.unwrap().metadata.email_held_by.as_deref(), Some("kp_bob"));
}

#[tokio::test]
async fn conflicts_beyond_the_limit_of_one_sweep_are_resolved_by_later_sweeps() {
    let store = store().await;
    let address = |n| format!("u{n}@x.org");
    users(&store).insert_many((0..1050).map(|n| doc! { "email": address(n) })).await.unwrap();
    apply(&store, (0..1050).map(|n| event(&format!("kp_{n:04}"), 1, &address(n))), NOW).await.unwrap();
    users(&store).delete_one(doc! { "email": address(1049) }).await.unwrap();
    let mut sweep = Sweep::default();
    let found = [sweep.run(&store, NOW).await.unwrap(), sweep.run(&store, NOW).await.unwrap()];
    assert_eq!(found, [0, 1], "the last one is in the second sweep");
    assert_eq!(get(&store, "kp_1049").await.unwrap().document().email, Some(address(1049)));
}

#[tokio::test]
async fn an_address_refused_by_an_index_or_a_validator_blocks_no_other_user() {
    let store = store().await;
    let database = store.database().unwrap();
    let collation = doc! { "locale": "en", "strength": 2 };
    let index = doc! { "key": { "email": 1 }, "unique": true, "name": "any_case", "collation": collation,
    "partialFilterExpression": { "email": { "$gt": "" } } };
    database.run_command(doc! { "createIndexes": "users", "indexes": [index] }).await.unwrap();
    let lower = [event("kp_low", 2, "a@x.org"), event("kp_other", 2, "b@x.org")];
    observe(&store, vec![event("kp_up", 1, "A@x.org")]).await;
    apply(&store, lower, NOW).await.expect("a refused address blocks no user");
    let email = async |user: &str| get(&store, user).await.unwrap().document().email;
    assert_eq!((email("kp_low").await, email("kp_other").await), (None, Some("b@x.org".into())));
    Sweep::default().run(&store, NOW).await.expect("nor does a sweep");
    observe(&store, vec![event("kp_up", 3, "c@x.org")]).await;
    Sweep::default().run(&store, NOW).await.unwrap();
    assert_eq!(email("kp_low").await.as_deref(), Some("a@x.org"), "as soon as the index lets it");
    // A validator that refuses the owner with the address, the former holder without it, or every write.
    let forbid = async |users: Document| {
        let command = doc! { "collMod": "users", "validator": { "$nor": [users] } };
        database.run_command(command).await.unwrap();
    };
    observe(&store, vec![event("kp_eve", 5, "d@x.org"), event("kp_dan", 6, "d@x.org")]).await;
    forbid(doc! { "kindeId": "kp_dan", "email": "d@x.org" }).await;
    apply(&store, [event("kp_eve", 7, "e@x.org")], NOW).await.expect("a refused address blocks no user");
    assert_eq!((email("kp_eve").await.as_deref(), email("kp_dan").await), (Some("e@x.org"), None));
    observe(&store, vec![event("kp_one", 8, "f@x.org"), event("kp_two", 9, "f@x.org")]).await;
    forbid(doc! { "kindeId": "kp_one", "email": { "$exists": false } }).await;
    apply(&store, [event("kp_two", 4, "f@x.org")], NOW).await.expect("a refused address blocks no user");
    assert_eq!((email("kp_one").await.as_deref(), email("kp_two").await), (Some("f@x.org"), None));
    let mut marked = get(&store, "kp_eve").await.unwrap();
    marked.pending_emails.insert("g@x.org".into());
    store.write(&[marked]).await.unwrap();
    forbid(doc! { "kindeId": { "$in": ["kp_two", "kp_eve"] } }).await;
    Sweep::default().run(&store, NOW).await.expect("a mark that cannot be removed is no reason");
    forbid(doc! { "kindeId": "none" }).await;
    Sweep::default().run(&store, NOW).await.unwrap();
    assert_eq!(
        (email("kp_dan").await.as_deref(), email("kp_two").await.as_deref()),
        (Some("d@x.org"), Some("f@x.org"))
    );
    assert_eq!(Sweep::default().run(&store, NOW).await.unwrap(), 0, "all is where it belongs");
}

#[tokio::test]
async fn a_thousand_marks_that_cannot_be_removed_hide_no_other_one() {
    let store = store().await;
    let marked = |user: &str, address: &str| {
        let mut row = row(user, Some(address));
        row.metadata.holds_email = false;
        row.pending_emails.insert(address.to_owned());
        row
    };
    let many = (0..1_000).map(|n| marked(&format!("kp_{n:04}"), &format!("u{n}@x.org")));
    let rows: Vec<_> = many.chain([marked("kp_z", "z@x.org")]).collect();
    store.write(&rows).await.unwrap();
    let validator = doc! { "$nor": [{ "kindeId": { "$lt": "kp_1" } }] };
    store.database().unwrap().run_command(doc! { "collMod": "users", "validator": validator }).await.unwrap();
    let mut sweep = Sweep::default();
    for _ in 0..2 {
        sweep.run(&store, NOW).await.expect("a mark that cannot be removed is no reason");
    }
    assert_eq!(get(&store, "kp_z").await.unwrap().document().email.as_deref(), Some("z@x.org"));
}

#[tokio::test]
async fn many_refused_addresses_block_no_other_user() {
    let store = store().await;
    let index = doc! { "key": { "email": 1 }, "unique": true, "name": "any_case",
    "collation": { "locale": "en", "strength": 2 }, "partialFilterExpression": { "email": { "$gt": "" } } };
    store
        .database()
        .unwrap()
        .run_command(doc! { "createIndexes": "users", "indexes": [index] })
        .await
        .unwrap();
    let own = (0..20).map(|n| doc! { "email": format!("u{n}@x.org") });
    users(&store).insert_many(own.chain([doc! { "_id": "own", "email": "z@x.org" }])).await.unwrap();
    observe(&store, vec![event("kp_ada", 1, "z@x.org")]).await;
    let many = (0..20).map(|n| event(&format!("kp_{n}"), 2, &format!("U{n}@x.org")));
    apply(&store, many, NOW).await.expect("a refused address blocks no user");
    users(&store).delete_one(doc! { "_id": "own" }).await.unwrap();
    Sweep::default().run(&store, NOW).await.expect("nor does a sweep");
    assert_eq!(get(&store, "kp_ada").await.unwrap().document().email.as_deref(), Some("z@x.org"));
}

#[tokio::test]
async fn a_document_with_a_kinde_id_that_kinsync_never_wrote_keeps_its_address_and_blocks_no_user() {
    let store = store().await;
    let own =
        [doc! { "kindeId": "kp_old", "email": "a@x.org" }, doc! { "_id": "list", "email": ["b@x.org"] }];
    users(&store).insert_many(own).await.unwrap();
    observe(&store, vec![event("kp_new", 1, "a@x.org"), event("kp_other", 1, "b@x.org")]).await;
    let held_by = async |user: &str| get(&store, user).await.unwrap().metadata.email_held_by;
    assert_eq!(
        (held_by("kp_new").await.as_deref(), held_by("kp_other").await.as_deref()),
        (Some("kp_old"), Some("list"))
    );
    // The user is finally observed, with another address: the document keeps the application's.
    observe(&store, vec![event("kp_old", 2, "c@x.org")]).await;
    Sweep::default().run(&store, NOW).await.unwrap();
    assert_eq!(held_by("kp_new").await.as_deref(), Some("kp_old"));
    let old = users(&store).find_one(doc! { "kindeId": "kp_old" }).await.unwrap().unwrap();
    assert_eq!(text(&old, "email"), Some("a@x.org"));
}

#[tokio::test]
async fn an_address_of_a_user_without_observations_belongs_to_the_application() {
    let store = store().await;
    let seen = Observation { what: What::Fields(Profile::new()), ..event("kp_bob", 1, "") };
    observe(&store, vec![seen]).await;
    let bob = doc! { "kindeId": "kp_bob" };
    users(&store).update_one(bob.clone(), doc! { "$set": { "email": "a@x.org" } }).await.unwrap();
    observe(&store, vec![event("kp_ada", 2, "a@x.org")]).await;
    assert_eq!(get(&store, "kp_ada").await.unwrap().metadata.email_held_by.as_deref(), Some("kp_bob"));
    assert_eq!(text(&users(&store).find_one(bob.clone()).await.unwrap().unwrap(), "email"), Some("a@x.org"));
    observe(&store, vec![event("kp_bob", 3, "b@x.org")]).await;
    assert_eq!(text(&users(&store).find_one(bob.clone()).await.unwrap().unwrap(), "email"), Some("a@x.org"));
    // The application removes its address: the key is kinsync's again.
    users(&store).update_one(bob.clone(), doc! { "$unset": { "email": 1 } }).await.unwrap();
    observe(&store, vec![event("kp_bob", 3, "b@x.org")]).await;
    Sweep::default().run(&store, NOW).await.unwrap();
    assert_eq!(text(&users(&store).find_one(bob).await.unwrap().unwrap(), "email"), Some("b@x.org"));
    let ada = get(&store, "kp_ada").await.unwrap();
    assert_eq!(ada.document().email.as_deref(), Some("a@x.org"));
}

/// The Kinde ids of the documents that show this address, and of those with a conflict about it.
async fn shown_by(store: &MongoStore, email: &str) -> (Vec<String>, Vec<String>) {
    let all = everything(store).await;
    let ids = |is_one: &dyn Fn(&Document) -> bool| {
        let found = all.iter().filter(|doc| is_one(doc));
        found.map(|doc| text(doc, "kindeId").unwrap_or("own").to_owned()).collect()
    };
    let in_conflict = |doc: &Document| {
        doc.get_document("emailConflict").is_ok_and(|about| text(about, "email") == Some(email))
    };
    (ids(&|doc| text(doc, "email") == Some(email)), ids(&in_conflict))
}

#[tokio::test]
async fn without_a_unique_index_one_document_shows_an_address_in_any_order_of_arrival() {
    let older = event("kp_older", 1, "a@x.org");
    let younger = event("kp_younger", 2, "a@x.org");
    for arrivals in [[&older, &younger], [&younger, &older]] {
        let store = prepared(Config { unique_email: false, ..fresh().await }).await;
        observe(&store, arrivals.map(Clone::clone).into()).await;
        assert_eq!(shown_by(&store, "a@x.org").await, (vec!["kp_older".into()], vec!["kp_younger".into()]));
        observe(&store, vec![event("kp_older", 3, "b@x.org")]).await;
        assert_eq!(shown_by(&store, "a@x.org").await, (vec!["kp_younger".into()], vec![]));
        assert_eq!(shown_by(&store, "b@x.org").await, (vec!["kp_older".into()], vec![]));
    }
}

#[tokio::test]
async fn without_a_unique_index_a_document_of_the_application_holds_its_address_or_is_linked() {
    let store = prepared(Config { unique_email: false, ..fresh().await }).await;
    with_own_row(&store).await;
    observe(&store, vec![event("kp_ada", 1, "a@x.org")]).await;
    assert_eq!(shown_by(&store, "a@x.org").await, (vec!["own".into()], vec!["kp_ada".into()]));
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(is_linked(&store).await);
}

#[tokio::test]
async fn every_batch_of_a_first_scan_records_the_documents_that_show_the_addresses() {
    let store = store().await;
    let address = |n| format!("u{n}@x.org");
    users(&store).insert_many((0..9).map(|n| doc! { "_id": address(n), "email": address(n) })).await.unwrap();
    // Batches with taken addresses only, with some, and with none.
    for batch in [0..4, 4..10, 10..20] {
        apply(&store, batch.map(|n| event(&format!("kp_{n}"), 1, &address(n))), NOW).await.unwrap();
    }
    for n in 0..20 {
        let row = get(&store, &format!("kp_{n}")).await.unwrap();
        assert!(row.pending_emails.is_empty());
        let expected = if n < 9 { (None, Some(address(n))) } else { (Some(address(n)), None) };
        assert_eq!((row.document().email, row.metadata.email_held_by), expected, "{n}");
    }
}
