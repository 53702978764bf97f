//! Existing documents of an application are linked to the users with their verified address.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bson::{Document, doc};
use futures_util::{TryStreamExt, future::join_all};
use kinsync_core::{Field, Micros, Observation, Profile, Source, Value, Version, What};
use kinsync_engine::internal::{
    apply::apply,
    email_ownership::Sweep,
    link::{self, Run, Verdict},
    store::{
        Outcome, Row, Store,
        mongo::{Config, LinkByEmail, MongoStore},
    },
};
use kinsync_testing::mongo::TestMongo;

use crate::{
    store_mongo::{fresh, prepared, store, users},
    store_rows::{get, id, row},
};

const NOW: Micros = Micros(9_000_000);

/// The observation of the address by an event.
fn event(user: &str, at: i64, email: &str) -> Observation {
    let version = Version::event(Micros(at), format!("event_{at}"));
    let what = What::Fields(Profile::new().with(Field::Email, email));
    Observation { user: id(user), version, source: Source::Webhook, what }
}

/// The observation of the address by Kinde's profile endpoint.
fn profile(user: &str, at: i64, email: &str, verified: bool) -> Observation {
    let fields = Profile::new().with(Field::Email, email).with(Field::EmailVerified, Value::Flag(verified));
    let version = Version::snapshot(Micros(at), format!("profile_{at}"));
    Observation { user: id(user), version, source: Source::Profile, what: What::Fields(fields) }
}

/// The observation of the address by a scan. The list does not contain whether it is verified.
fn listed(user: &str, at: i64, email: &str) -> Observation {
    let what = What::Fields(Profile::new().with(Field::Email, email));
    Observation { source: Source::Reconcile, what, ..profile(user, at, email, false) }
}

async fn observe(store: &MongoStore, observations: Vec<Observation>) {
    for observation in observations {
        apply(store, [observation], NOW).await.unwrap();
    }
}

async fn everything(store: &MongoStore) -> Vec<Document> {
    let users = users(store);
    users.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap().try_collect().await.unwrap()
}

fn text<'a>(doc: &'a Document, key: &str) -> Option<&'a str> {
    doc.get_str(key).ok()
}

async fn with_own_row(store: &MongoStore) {
    users(store).insert_one(doc! { "_id": "own", "email": "a@x.org", "plan": "pro" }).await.unwrap();
}

/// Whether the application's row is the user's now, with everything in it.
async fn is_linked(store: &MongoStore) -> bool {
    let all = everything(store).await;
    let own = all.iter().find(|doc| text(doc, "_id") == Some("own")).unwrap();
    assert_eq!(text(own, "plan"), Some("pro"), "the application's fields stay");
    assert_eq!(text(own, "email"), Some("a@x.org"));
    if !own.contains_key("kindeId") {
        assert!(!own.contains_key("kinsync"), "either all or nothing: {own}");
        return false;
    }
    assert_eq!(text(own, "kindeId"), Some("kp_ada"));
    assert_eq!(all.len(), 1, "the document that kinsync created is deleted");
    assert!(!own.contains_key("emailConflict"));
    true
}

#[tokio::test]
async fn a_document_with_the_verified_address_of_a_user_is_linked() {
    let store = store().await;
    with_own_row(&store).await;
    observe(&store, vec![event("kp_ada", 1, "a@x.org")]).await;
    assert!(!is_linked(&store).await, "an event does not say that an address is verified");
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(is_linked(&store).await);
    observe(&store, vec![event("kp_ada", 3, "b@x.org")]).await;
    let all = everything(&store).await;
    assert_eq!((all.len(), text(&all[0], "email")), (1, Some("b@x.org")), "it is kept true from now on");
    assert_eq!((text(&all[0], "_id"), text(&all[0], "plan")), (Some("own"), Some("pro")));
}

#[tokio::test]
async fn a_document_with_a_kinde_id_as_its_own_id_is_linked_like_any_other() {
    // The id of its own user, or of another claimant of the address.
    for id in ["kp_ada", "kp_bob"] {
        let store = store().await;
        users(&store).insert_one(doc! { "_id": id, "email": "a@x.org", "plan": "pro" }).await.unwrap();
        observe(&store, vec![event("kp_ada", 1, "a@x.org"), event("kp_bob", 2, "a@x.org")]).await;
        let ada = get(&store, "kp_ada").await.unwrap();
        assert_eq!(ada.metadata.email_held_by.as_deref(), Some(id));
        observe(&store, vec![profile("kp_ada", 3, "a@x.org", true)]).await;
        let all = everything(&store).await;
        let own = all.iter().find(|doc| text(doc, "_id") == Some(id)).unwrap();
        assert_eq!((text(own, "kindeId"), text(own, "plan")), (Some("kp_ada"), Some("pro")));
    }
}

#[tokio::test]
async fn a_document_that_an_index_of_the_application_rejects_is_not_linked_and_blocks_no_user() {
    let store = store().await;
    with_own_row(&store).await;
    // One first name for each plan, and another document on this plan has it.
    let index = doc! { "key": { "plan": 1, "firstName": 1 }, "unique": true, "name": "own",
    "partialFilterExpression": { "plan": "pro" } };
    store.database().run_command(doc! { "createIndexes": "users", "indexes": [index] }).await.unwrap();
    users(&store).insert_one(doc! { "_id": "other", "plan": "pro", "firstName": "Ada" }).await.unwrap();
    let named = What::Fields(Profile::new().with(Field::FirstName, "Ada"));
    let named = Observation { what: named, ..event("kp_ada", 1, "a@x.org") };
    observe(&store, vec![named, profile("kp_ada", 2, "a@x.org", true)]).await;
    let ada = get(&store, "kp_ada").await.unwrap();
    assert_eq!(ada.metadata.email_held_by.as_deref(), Some("own"), "a conflict, and no outage");
    assert!(
        !everything(&store)
            .await
            .iter()
            .any(|doc| text(doc, "_id") == Some("own") && doc.contains_key("kindeId"))
    );
}

#[tokio::test]
async fn a_new_user_with_a_verified_address_is_linked_at_once() {
    let store = store().await;
    with_own_row(&store).await;
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(is_linked(&store).await);
}

#[tokio::test]
async fn an_unverified_address_links_no_document() {
    let histories = [
        vec![event("kp_ada", 1, "a@x.org")],
        vec![profile("kp_ada", 1, "a@x.org", false)],
        // Verified was another address.
        vec![profile("kp_ada", 1, "other@x.org", true), event("kp_ada", 2, "a@x.org")],
        vec![event("kp_ada", 2, "a@x.org"), profile("kp_ada", 1, "other@x.org", true)],
        vec![profile("kp_ada", 1, "other@x.org", true), listed("kp_ada", 2, "a@x.org")],
        // Verified once, then observed again without a verification.
        vec![event("kp_ada", 2, "a@x.org"), profile("kp_ada", 1, "a@x.org", true)],
    ];
    for history in histories {
        let store = store().await;
        with_own_row(&store).await;
        observe(&store, history.clone()).await;
        assert!(!is_linked(&store).await, "{history:?}");
        let user = users(&store).find_one(doc! { "kindeId": "kp_ada" }).await.unwrap().unwrap();
        let conflict = user.get_document("emailConflict").unwrap();
        assert_eq!(conflict, &doc! { "email": "a@x.org", "heldBy": "own" });
    }
}

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
    store.database().run_command(doc! { "collMod": "users", "validator": validator }).await.unwrap();
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
async fn an_address_rejected_by_an_index_or_a_validator_blocks_no_other_user() {
    let store = store().await;
    let database = store.database();
    let collation = doc! { "locale": "en", "strength": 2 };
    let index = doc! { "key": { "email": 1 }, "unique": true, "name": "any_case", "collation": collation,
    "partialFilterExpression": { "email": { "$gt": "" } } };
    database.run_command(doc! { "createIndexes": "users", "indexes": [index] }).await.unwrap();
    let lower = [event("kp_low", 2, "a@x.org"), event("kp_other", 2, "b@x.org")];
    observe(&store, vec![event("kp_up", 1, "A@x.org")]).await;
    apply(&store, lower, NOW).await.expect("a rejected address blocks no user");
    let email = async |user: &str| get(&store, user).await.unwrap().document().email;
    assert_eq!((email("kp_low").await, email("kp_other").await), (None, Some("b@x.org".into())));
    Sweep::default().run(&store, NOW).await.expect("nor does a sweep");
    observe(&store, vec![event("kp_up", 3, "c@x.org")]).await;
    Sweep::default().run(&store, NOW).await.unwrap();
    assert_eq!(email("kp_low").await.as_deref(), Some("a@x.org"), "as soon as the index lets it");
    // A validator that rejects the owner with the address, the former holder without it, or every write.
    let forbid = async |users: Document| {
        let command = doc! { "collMod": "users", "validator": { "$nor": [users] } };
        database.run_command(command).await.unwrap();
    };
    observe(&store, vec![event("kp_eve", 5, "d@x.org"), event("kp_dan", 6, "d@x.org")]).await;
    forbid(doc! { "kindeId": "kp_dan", "email": "d@x.org" }).await;
    apply(&store, [event("kp_eve", 7, "e@x.org")], NOW).await.expect("a rejected address blocks no user");
    assert_eq!((email("kp_eve").await.as_deref(), email("kp_dan").await), (Some("e@x.org"), None));
    observe(&store, vec![event("kp_one", 8, "f@x.org"), event("kp_two", 9, "f@x.org")]).await;
    forbid(doc! { "kindeId": "kp_one", "email": { "$exists": false } }).await;
    apply(&store, [event("kp_two", 4, "f@x.org")], NOW).await.expect("a rejected address blocks no user");
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
    store.database().run_command(doc! { "collMod": "users", "validator": validator }).await.unwrap();
    let mut sweep = Sweep::default();
    for _ in 0..2 {
        sweep.run(&store, NOW).await.expect("a mark that cannot be removed is no reason");
    }
    assert_eq!(get(&store, "kp_z").await.unwrap().document().email.as_deref(), Some("z@x.org"));
}

#[tokio::test]
async fn many_rejected_addresses_block_no_other_user() {
    let store = store().await;
    let index = doc! { "key": { "email": 1 }, "unique": true, "name": "any_case",
    "collation": { "locale": "en", "strength": 2 }, "partialFilterExpression": { "email": { "$gt": "" } } };
    store.database().run_command(doc! { "createIndexes": "users", "indexes": [index] }).await.unwrap();
    let own = (0..20).map(|n| doc! { "email": format!("u{n}@x.org") });
    users(&store).insert_many(own.chain([doc! { "_id": "own", "email": "z@x.org" }])).await.unwrap();
    observe(&store, vec![event("kp_ada", 1, "z@x.org")]).await;
    let many = (0..20).map(|n| event(&format!("kp_{n}"), 2, &format!("U{n}@x.org")));
    apply(&store, many, NOW).await.expect("a rejected address blocks no user");
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

#[tokio::test]
async fn a_document_with_fields_of_the_application_is_not_deleted() {
    let store = store().await;
    with_own_row(&store).await;
    observe(&store, vec![event("kp_ada", 1, "a@x.org")]).await;
    users(&store).update_one(doc! { "kindeId": "kp_ada" }, doc! { "$set": { "cart": [1] } }).await.unwrap();
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(!is_linked(&store).await);
    let found = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(found.candidates[0].verdict, Verdict::FieldsInBoth);
    users(&store).update_one(doc! { "kindeId": "kp_ada" }, doc! { "$unset": { "cart": 1 } }).await.unwrap();
    let found = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(found.candidates[0].verdict, Verdict::Linked);
    assert!(is_linked(&store).await);
}

#[tokio::test]
async fn linking_can_be_disabled() {
    let store = prepared(Config { link_by_email: LinkByEmail::Never, ..fresh().await }).await;
    with_own_row(&store).await;
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(!is_linked(&store).await);
    let found = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(found.candidates[0].verdict, Verdict::Refused);
    assert!(!is_linked(&store).await);
}

#[tokio::test]
async fn a_dry_run_lists_links_and_conflicts_and_changes_nothing() {
    let config = Config { unique_email: false, ..fresh().await };
    let store = prepared(Config { link_by_email: LinkByEmail::Never, ..config.clone() }).await;
    let own = [("own", "a@x.org"), ("one", "twins@x.org"), ("two", "twins@x.org"), ("eve", "e@x.org")];
    let rows = own.map(|(id, email)| doc! { "_id": id, "email": email, "plan": "pro" });
    users(&store).insert_many(rows).await.unwrap();
    let many = (0..1500).map(|n| doc! { "email": format!("user{n}@x.org") });
    users(&store).insert_many(many).await.unwrap();
    let profiles =
        [("kp_ada", "a@x.org", true), ("kp_twin", "twins@x.org", true), ("kp_eve", "e@x.org", false)];
    observe(&store, profiles.map(|(user, email, verified)| profile(user, 1, email, verified)).into()).await;
    let before = everything(&store).await;
    let store = prepared(Config { link_by_email: LinkByEmail::Verified, ..config }).await;
    let pages = std::sync::Mutex::new(Vec::new());
    let progress = |seen: &link::LinkReport| pages.lock().unwrap().push(seen.rows);
    let found = link::link(&store, NOW, Run::Dry, &progress).await.unwrap();
    assert_eq!(everything(&store).await, before);
    assert_eq!((found.rows, found.unlinked), (1504, 1500));
    assert_eq!(pages.into_inner().unwrap().last(), Some(&1504));
    let verdicts: Vec<_> =
        found.candidates.iter().map(|one| (one.row.as_str(), one.user.as_str(), one.verdict)).collect();
    let expected = [
        ("own", "kp_ada", Verdict::Linked),
        ("eve", "kp_eve", Verdict::NotVerified),
        ("one", "kp_twin", Verdict::SeveralRows),
    ];
    assert_eq!(verdicts, expected);
    let done = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(done, found, "a dry run foretells what is done");
    let own = users(&store).find_one(doc! { "_id": "own" }).await.unwrap().unwrap();
    assert_eq!(text(&own, "kindeId"), Some("kp_ada"));
    assert_eq!(users(&store).count_documents(doc! {}).await.unwrap(), before.len() as u64 - 1);
}

#[tokio::test]
async fn of_several_documents_with_one_address_none_is_linked() {
    let store = prepared(Config { unique_email: false, ..fresh().await }).await;
    users(&store).insert_many(["own", "too"].map(|id| doc! { "_id": id, "email": "a@x.org" })).await.unwrap();
    observe(&store, vec![profile("kp_ada", 1, "a@x.org", true)]).await;
    let before = everything(&store).await;
    // As the decision of an owner passes it: the row shows the address.
    let mut ada = get(&store, "kp_ada").await.unwrap();
    ada.metadata.holds_email = true;
    ada.metadata.email_held_by = None;
    assert_eq!(store.link(&ada).await.unwrap(), Outcome::EmailTaken);
    assert_eq!(everything(&store).await, before);
    users(&store).delete_one(doc! { "_id": "too" }).await.unwrap();
    let stale = Row { revision: ada.revision + 1, ..ada.clone() };
    assert_eq!(store.link(&stale).await.unwrap(), Outcome::Stale, "a concurrent write of the user");
    assert_eq!(store.link(&ada).await.unwrap(), Outcome::Written);
}

#[tokio::test]
async fn concurrent_links_of_one_document_link_it_once() {
    for _ in 0..10 {
        let store = store().await;
        with_own_row(&store).await;
        let observe = |n| {
            let observation = if n % 2 == 0 {
                profile("kp_ada", n, "a@x.org", true)
            } else {
                event("kp_ada", n, "a@x.org")
            };
            apply(&store, [observation], NOW)
        };
        join_all((1..9).map(observe)).await.into_iter().for_each(|applied| _ = applied.unwrap());
        assert!(is_linked(&store).await, "the newest observation verifies the address");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_during_a_link_leaves_both_documents_or_one() {
    let mongo = TestMongo::start_own().await;
    for command in ["find", "aggregate", "delete", "update", "commitTransaction"] {
        let store = prepared(Config { database: Some(mongo.database()), ..Config::new(mongo.uri()) }).await;
        with_own_row(&store).await;
        observe(&store, vec![event("kp_ada", 1, "a@x.org")]).await;
        let data = doc! { "failCommands": [command], "closeConnection": true };
        let fail = mongo.fail_point(doc! { "times": 3 }, data).await;
        _ = apply(&store, [profile("kp_ada", 2, "a@x.org", true)], NOW).await;
        drop(fail);
        is_linked(&store).await; // checks that it is all or nothing
        observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
        assert!(is_linked(&store).await, "after `{command}` broke");
    }
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
