//! Addresses that differ in case or in surrounding white space.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bson::{Document, doc};
use kinsync_engine::internal::{
    apply::apply,
    link::{self, LinkReport, Run, Verdict},
    store::{
        Selection, Store, UserFilter,
        mongo::{Config, FieldMapping, LinkByEmail, MongoStore},
    },
};

use crate::{
    linking::{NOW, event, everything, observe, profile, text},
    store_mongo::{fresh, prepared, store, users},
    store_rows::{get, id},
};

async fn insert(store: &MongoStore, documents: &[(&str, &str)]) {
    let document = |(id, email): &(&str, &str)| doc! { "_id": *id, "email": *email, "plan": "pro" };
    users(store).insert_many(documents.iter().map(document)).await.unwrap();
}

async fn dry_run(store: &MongoStore) -> LinkReport {
    link::link(store, NOW, Run::Dry, &|_| {}).await.unwrap()
}

fn verdicts(report: &LinkReport) -> Vec<(&str, &str, Verdict)> {
    report.candidates.iter().map(|one| (one.row.as_str(), one.user.as_str(), one.verdict)).collect()
}

async fn found_by(store: &MongoStore, email: &str) -> Vec<String> {
    let filter = UserFilter { selection: Selection::Email(email.into()), limit: 9, ..UserFilter::default() };
    store.users(&filter).await.unwrap().into_iter().map(|row| row.id.to_string()).collect()
}

async fn own(store: &MongoStore, id: &str) -> Document {
    users(store).find_one(doc! { "_id": id }).await.unwrap().unwrap()
}

async fn ignoring_case() -> MongoStore {
    prepared(Config { link_by_email: LinkByEmail::VerifiedIgnoreCase, ..fresh().await }).await
}

pub(crate) async fn in_lower_case() -> MongoStore {
    let fields = FieldMapping { lowercase_email: true, ..FieldMapping::default() };
    prepared(Config { fields, ..fresh().await }).await
}

#[tokio::test]
async fn a_document_with_an_address_in_another_form_is_reported_with_the_user() {
    let store = store().await;
    insert(&store, &[("own", "grace@example.com"), ("spaced", " Ada@x.org "), ("lone", "eve@x.org")]).await;
    let users = [profile("kp_grace", 1, "Grace@Example.com", true), profile("kp_ada", 1, "ada@x.org", true)];
    observe(&store, users.into()).await;
    let report = dry_run(&store).await;
    assert_eq!((report.rows, report.unlinked), (3, 1));
    let expected = [("spaced", "kp_ada", Verdict::OtherForm), ("own", "kp_grace", Verdict::OtherForm)];
    assert_eq!(verdicts(&report), expected);
    let done = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(done, report, "by default nothing in another form is linked");
    assert_eq!(everything(&store).await.len(), 5);
    assert_eq!(found_by(&store, "GRACE@example.com").await, ["kp_grace"]);
}

#[tokio::test]
async fn the_search_for_an_address_in_any_case_uses_an_index() {
    let store = store().await;
    let many = (0..300).map(|n| event(&format!("kp_{n}"), 1, &format!("User{n}@x.org")));
    apply(&store, many, NOW).await.unwrap();
    assert_eq!(found_by(&store, "user7@X.ORG").await, ["kp_7"]);
    let collation = doc! { "locale": "en", "strength": 2, "alternate": "shifted", "maxVariable": "space" };
    let find = doc! { "find": "users", "collation": collation,
    "filter": { "kinsync.values.email": { "$in": ["user7@X.ORG"] } } };
    assert_eq!(crate::store_indexes::documents_read_by(&store, find).await, 1);
}

#[tokio::test]
async fn a_document_in_another_case_is_linked_if_the_settings_ignore_case_and_keeps_its_form() {
    let store = ignoring_case().await;
    insert(&store, &[("own", "grace@example.com")]).await;
    observe(&store, vec![event("kp_grace", 1, "Grace@Example.com")]).await;
    assert_eq!(verdicts(&dry_run(&store).await), [("own", "kp_grace", Verdict::NotVerified)]);
    observe(&store, vec![profile("kp_grace", 2, "Grace@Example.com", true)]).await;
    let linked = own(&store, "own").await;
    assert_eq!((text(&linked, "kindeId"), text(&linked, "plan")), (Some("kp_grace"), Some("pro")));
    assert_eq!(text(&linked, "email"), Some("grace@example.com"), "the application's value stays");
    assert_eq!(everything(&store).await.len(), 1);
    let grace = get(&store, "kp_grace").await.unwrap();
    assert!(grace.metadata.keeps_email && grace.pending_emails.is_empty());
    assert_eq!(grace.document().email.as_deref(), Some("Grace@Example.com"));
    assert_eq!(grace.document().kept["email"], "grace@example.com");
    observe(&store, vec![event("kp_grace", 3, "new@example.com")]).await;
    assert_eq!(text(&own(&store, "own").await, "email"), Some("grace@example.com"));
}

#[tokio::test]
async fn the_command_links_in_another_case_what_was_verified_before_the_setting() {
    let config = fresh().await;
    let before = prepared(config.clone()).await;
    insert(&before, &[("own", "GRACE@example.com")]).await;
    observe(&before, vec![profile("kp_grace", 1, "Grace@Example.com", true)]).await;
    let store = prepared(Config { link_by_email: LinkByEmail::VerifiedIgnoreCase, ..config }).await;
    let report = dry_run(&store).await;
    assert_eq!(verdicts(&report), [("own", "kp_grace", Verdict::Linked)]);
    assert_eq!(report.kept[0].path, "email", "the form stays");
    assert_eq!(link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap(), report);
    assert_eq!(text(&own(&store, "own").await, "kindeId"), Some("kp_grace"));
}

#[tokio::test]
async fn of_several_documents_or_users_in_different_cases_only_the_exact_form_is_linked() {
    let store = ignoring_case().await;
    insert(&store, &[("one", "grace@x.org"), ("two", "GRACE@x.org")]).await;
    observe(&store, vec![profile("kp_grace", 1, "Grace@x.org", true)]).await;
    let several = Verdict::SeveralRows;
    assert_eq!(
        verdicts(&dry_run(&store).await),
        [("two", "kp_grace", several), ("one", "kp_grace", several)]
    );
    assert!(!own(&store, "one").await.contains_key("kindeId"));
    insert(&store, &[("ada", "ada@x.org")]).await;
    observe(&store, vec![event("kp_upper", 1, "ADA@x.org"), profile("kp_title", 2, "Ada@x.org", true)]).await;
    assert!(!own(&store, "ada").await.contains_key("kindeId"), "it may be of either user");
    observe(&store, vec![profile("kp_lower", 3, "ada@x.org", true)]).await;
    assert_eq!(text(&own(&store, "ada").await, "kindeId"), Some("kp_lower"));
}

#[tokio::test]
async fn a_letter_that_only_looks_like_an_ascii_letter_links_no_document() {
    // The Kelvin sign has the lower case `k`.
    for store in [ignoring_case().await, in_lower_case().await] {
        insert(&store, &[("own", "kim@x.org")]).await;
        observe(&store, vec![profile("kp_evil", 1, "\u{212a}im@x.org", true)]).await;
        assert!(!own(&store, "own").await.contains_key("kindeId"));
    }
}

#[tokio::test]
async fn an_address_is_shown_in_lower_case_and_owned_in_that_form() {
    let store = in_lower_case().await;
    insert(&store, &[("own", "grace@x.org")]).await;
    observe(&store, vec![event("kp_old", 1, "Ada@X.org"), event("kp_new", 2, "ADA@x.org")]).await;
    let shown = async |user: &str| get(&store, user).await.unwrap().document();
    assert_eq!(shown("kp_old").await.email.as_deref(), Some("ada@x.org"));
    let conflict = shown("kp_new").await.email_conflict.unwrap();
    assert_eq!((conflict.email.as_str(), conflict.held_by.as_deref()), ("ada@x.org", Some("kp_old")));
    let old = users(&store).find_one(doc! { "kindeId": "kp_old" }).await.unwrap().unwrap();
    let values = old.get_document("kinsync").unwrap().get_document("values").unwrap();
    assert_eq!((text(&old, "email"), text(values, "email")), (Some("ada@x.org"), Some("Ada@X.org")));
    observe(&store, vec![event("kp_old", 3, "Other@x.org")]).await;
    assert_eq!(shown("kp_new").await.email.as_deref(), Some("ada@x.org"), "the next owner shows it");
    observe(&store, vec![profile("kp_grace", 4, "Grace@X.org", true)]).await;
    let linked = own(&store, "own").await;
    assert_eq!((text(&linked, "kindeId"), text(&linked, "email")), (Some("kp_grace"), Some("grace@x.org")));
    assert!(!get(&store, "kp_grace").await.unwrap().metadata.keeps_email);
}

#[tokio::test]
async fn documents_change_to_lower_case_and_back_without_a_further_event() {
    let config = fresh().await;
    let lower = FieldMapping { lowercase_email: true, ..FieldMapping::default() };
    let before = prepared(config.clone()).await;
    observe(&before, vec![event("kp_old", 1, "Ada@X.org"), event("kp_new", 2, "ada@x.org")]).await;
    let store = prepared(Config { fields: lower, ..config.clone() }).await;
    assert!(
        get(&store, "kp_old").await.unwrap().document.unwrap().edited().is_empty(),
        "no edit is reported"
    );
    while store.move_documents(NOW).await.unwrap() > 0 {}
    let shown = async |store: &MongoStore, user: &str| {
        let document = users(store).find_one(doc! { "kindeId": user }).await.unwrap().unwrap();
        text(&document, "email").map(ToOwned::to_owned)
    };
    let both = [shown(&store, "kp_old").await, shown(&store, "kp_new").await];
    assert_eq!(both, [Some("ada@x.org".to_owned()), None]);
    assert_eq!(get(&store, "kp_new").await.unwrap().metadata.email_held_by.as_deref(), Some("kp_old"));
    let store = prepared(config).await;
    while store.move_documents(NOW).await.unwrap() > 0 {}
    let both = [shown(&store, "kp_old").await, shown(&store, "kp_new").await];
    assert_eq!(both, ["Ada@X.org", "ada@x.org"].map(|email| Some(email.to_owned())));
    assert!(store.load(&[id("kp_new")]).await.unwrap()[0].as_ref().unwrap().metadata.email_held_by.is_none());
}
