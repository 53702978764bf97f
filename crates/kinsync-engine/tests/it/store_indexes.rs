//! Indexes of kinsync and of the application in the collection of users.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bson::{Document, doc};
use kinsync_core::Field;
use kinsync_engine::internal::store::{
    Outcome, Severity, Store,
    mongo::{IndexFault, MongoStore, Topology},
};

use crate::{
    store_mongo::{document, fresh, of_its_document, prepared, store, users},
    store_rows::{event, get, outcome, put, row, stored, with},
};

#[tokio::test]
async fn index_faults_lists_the_indexes_that_prepare_creates_and_creates_none() {
    let store = MongoStore::connect(fresh().await).await.unwrap();
    let missing = store.index_faults().await.unwrap();
    assert!(missing.iter().all(|fault| fault.missing().is_some()));
    assert_eq!(store.database().unwrap().list_collection_names().await.unwrap(), Vec::<String>::new());
    store.prepare().await.unwrap();
    assert_eq!(store.index_faults().await.unwrap(), []);
    let mut names = users(&store).list_index_names().await.unwrap();
    for collection in ["user_events", "kinsync_state"] {
        let collection = store.database().unwrap().collection::<Document>(collection);
        names.extend(collection.list_index_names().await.unwrap());
    }
    names.retain(|name| name != "_id_");
    assert_eq!(missing.iter().filter_map(IndexFault::missing).collect::<Vec<_>>(), names);
    let server = store.server().await.unwrap();
    assert_eq!(server.topology, Topology::ReplicaSet { name: "rs0".into(), members: 1 });
    assert!(server.majority_lag.is_some());
}

#[tokio::test]
async fn indexes_of_the_application_are_used_or_reported() {
    let config = fresh().await;
    let store = MongoStore::connect(config).await.unwrap();
    let make = |key: Document, unique: bool, name: &'static str| {
        let index = doc! { "key": key, "unique": unique, "name": name };
        let command = doc! { "createIndexes": "users", "indexes": [index] };
        let database = store.database().unwrap().clone();
        async move { database.run_command(command).await.unwrap() }
    };
    make(doc! { "updatedAt": 1.0 }, false, "updatedAt_1").await;
    make(doc! { "email": 1 }, true, "email_1").await;
    make(doc! { "username": 1, "tenant": 1 }, true, "username_1").await;
    store.prepare().await.unwrap();
    let problems = store.examine().await.unwrap();
    let of = |name: &str| problems.iter().find(|problem| problem.subject.ends_with(name)).unwrap();
    assert!(of("email_1").fix.contains("dropIndex(\"email_1\")"), "{problems:?}");
    assert!(of("username_1").what.contains("`username` and `tenant`"), "{problems:?}");
    users(&store).drop_index("email_1").await.unwrap();
    store.prepare().await.expect("again is fine");
    let names = users(&store).list_index_names().await.unwrap();
    assert!(!names.contains(&"kinsync_updatedAt".to_owned()), "the application's serves: {names:?}");
    put(&store, &with(row("kp_ada", None), Field::Username, "ada")).await;
    let eve = outcome(&store, &with(row("kp_eve", None), Field::Username, "ada")).await;
    assert!(matches!(&eve, Outcome::Refused(why) if why.reason.contains("username")), "{eve:?}");
}

/// Creates the indexes that the version before the lists of users has, as a process of that version does.
pub(crate) async fn make_former_indexes(store: &MongoStore) {
    let collation = doc! { "locale": "en", "strength": 2, "alternate": "shifted", "maxVariable": "space" };
    let indexes = [
        doc! { "name": "kinsync_addresses", "key": { "kinsync.values.email": 1 }, "sparse": true, "collation": collation },
        doc! { "name": "kinsync_deleted", "key": { "kinsync.deletedAt": 1 }, "sparse": true },
        doc! { "name": "kinsync_providedIds", "key": { "kinsync.values.providedId": 1 }, "sparse": true },
    ];
    make(store, indexes.into()).await;
}

async fn make(store: &MongoStore, indexes: Vec<Document>) {
    let command = doc! { "createIndexes": "users", "indexes": indexes };
    store.database().unwrap().run_command(command).await.unwrap();
}

#[tokio::test]
async fn processes_of_two_versions_keep_the_indexes_of_each_other() {
    let config = fresh().await;
    let older = MongoStore::connect(config.clone()).await.unwrap();
    make_former_indexes(&older).await;
    let former = users(&older).list_index_names().await.unwrap();
    for _ in 0..2 {
        let newer = prepared(config.clone()).await;
        assert_eq!((newer.index_faults().await.unwrap(), newer.examine().await.unwrap()), (vec![], vec![]));
        assert_eq!(users(&newer).list_index_names().await.unwrap()[..former.len()], former);
        make_former_indexes(&older).await;
    }
}

#[tokio::test]
async fn an_index_of_another_version_stays_and_one_of_another_mapping_is_replaced() {
    let config = fresh().await;
    let store = MongoStore::connect(config.clone()).await.unwrap();
    let of_a_version = doc! { "name": "kinsync_changed", "key": { "kinsync.updatedAt": 1 }, "sparse": true };
    let held_by = doc! { "externalId": 1, "kinsync.heldBy": 1 };
    let rule = doc! { "kinsync.heldBy": { "$exists": true } };
    let of_a_mapping = doc! { "name": "kinsync_heldBy", "key": held_by, "partialFilterExpression": rule };
    make(&store, vec![of_a_version, of_a_mapping]).await;
    store.prepare().await.unwrap();
    let faults = store.index_faults().await.unwrap();
    let [IndexFault::Changed { name: "kinsync_changed", .. }] = faults[..] else { panic!("{faults:?}") };
    let problems = store.examine().await.unwrap();
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert!(problem.fix.contains(r#"dropIndex("kinsync_changed")"#), "{problem:?}");
}

#[tokio::test]
async fn many_indexes_of_the_application_leave_the_unique_ones_and_the_problem_names_the_limit() {
    let store = MongoStore::connect(fresh().await).await.unwrap();
    let of_the_application =
        (0..48).map(|n| doc! { "name": format!("own_{n}"), "key": { format!("own{n}"): 1 } });
    make(&store, of_the_application.collect()).await;
    store.prepare().await.unwrap();
    assert!(store.enforces_unique_emails());
    let problems = store.examine().await.unwrap();
    assert!(!problems.is_empty());
    for problem in problems {
        assert_eq!(problem.severity, Severity::Warning, "{problem:?}");
        assert!(problem.fix.contains("64 indexes") && !problem.fix.contains("shard"), "{problem:?}");
    }
}

#[tokio::test]
async fn queries_by_id_and_by_address_use_their_indexes() {
    let store = store().await;
    let queries = [
        (doc! { "kindeId": "kp_a" }, "kinsync_kindeId"),
        (doc! { "kindeId": { "$in": ["kp_a", "kp_b"] } }, "kinsync_kindeId"),
        (doc! { "kindeId": "kp_a", "kinsync.revision": 1_i64 }, "kinsync_kindeId"),
        (doc! { "kindeId": { "$gt": "" }, "isDeleted": false }, "kinsync_kindeId"),
        (doc! { "email": "a@x.org" }, "kinsync_email"),
        (doc! { "email": { "$in": ["a@x.org", "$b"] } }, "kinsync_email"),
    ];
    for (filter, index) in queries {
        let explain = doc! { "explain": { "find": "users", "filter": filter.clone() } };
        let plan = store.database().unwrap().run_command(explain).await.unwrap();
        let winner =
            plan.get_document("queryPlanner").unwrap().get_document("winningPlan").unwrap().to_string();
        assert!(winner.contains("IXSCAN") && winner.contains(index), "{filter}: {winner}");
    }
}

#[tokio::test]
async fn email_conflicts_are_found_by_an_index() {
    let store = store().await;
    let many: Vec<_> = (0..300).map(|n| row(&format!("kp_{n:03}"), None)).collect();
    store.write(&many).await.unwrap();
    let mut held = Vec::new();
    for n in [7, 8, 250] {
        let mut waits = with(stored(&many[n]), Field::Email, "a@x.org");
        waits.metadata.holds_email = false;
        waits.metadata.email_held_by = Some("own".into());
        held.push(put(&store, &waits).await);
    }
    assert_eq!(store.conflicted(None, 2).await.unwrap(), held[..2]);
    assert_eq!(store.conflicted(Some(&held[1].id), 2).await.unwrap(), held[2..]);
    let filter = doc! { "kinsync.heldBy": { "$exists": true }, "kindeId": { "$gt": "" } };
    let find = doc! { "find": "users", "filter": filter, "sort": { "kindeId": 1 }, "limit": 2 };
    assert_eq!(documents_read_by(&store, find).await, 2);
}

#[tokio::test]
async fn the_users_of_an_organization_are_found_by_an_index_page_by_page() {
    let store = store().await;
    let mut many: Vec<_> = (0..300).map(|n| row(&format!("kp_{n:03}"), None)).collect();
    for row in &mut many[..200] {
        row.state.directory.add("org_a", kinsync_core::Entry::default());
        row.state.directory.add("role", kinsync_core::Entry::default());
    }
    store.write(&many).await.unwrap();
    let marked = serde_json::json!({ "due": true });
    for n in 0..20 {
        let value = if n == 7 { marked.clone() } else { serde_json::json!({}) };
        assert!(store.put_state(&format!("directory/{n}"), &value, 0).await.unwrap());
    }
    for ids in [vec!["org_a"], vec!["org_a", "role", "other"]] {
        let filter = doc! { "kinsync.directory.entries.id": { "$in": &ids }, "kindeId": { "$gt": "kp_100" } };
        let find = doc! { "find": "users", "filter": filter, "sort": { "kindeId": 1 }, "limit": 10, "projection": { "_id": 0, "kindeId": 1 } };
        assert!(documents_read_by(&store, find).await <= 10 * i32::try_from(ids.len()).unwrap(), "{ids:?}");
    }
    let find =
        doc! { "find": "kinsync_state", "filter": { "isDue": true }, "sort": { "_id": 1 }, "limit": 10 };
    assert_eq!(documents_read_by(&store, find).await, 1);
}

pub(crate) async fn documents_read_by(store: &MongoStore, find: Document) -> i32 {
    let plan = doc! { "explain": find, "verbosity": "executionStats" };
    let plan = store.database().unwrap().run_command(plan).await.unwrap();
    plan.get_document("executionStats").unwrap().get_i32("totalDocsExamined").unwrap()
}

#[tokio::test]
async fn pending_resolutions_and_events_of_a_type_are_found_by_an_index() {
    let store = store().await;
    let many: Vec<_> = (0..300).map(|n| row(&format!("kp_{n:03}"), None)).collect();
    store.write(&many).await.unwrap();
    for n in [7, 8, 250] {
        let mut pending = stored(&many[n]);
        pending.pending_emails.insert("a@x.org".into());
        put(&store, &pending).await;
    }
    let filter = doc! { "kinsync.pendingEmails": { "$exists": true }, "kindeId": { "$gt": "" } };
    let find = doc! { "find": "users", "filter": filter, "sort": { "kindeId": 1 }, "limit": 2 };
    assert_eq!(documents_read_by(&store, find).await, 2);

    let mut events: Vec<_> = (1..300).map(|n| event(&format!("e{n}"), Some("kp_a"), n)).collect();
    events[150].kind = "user.deleted".into();
    store.log(&events).await.unwrap();
    let newest_first = doc! { "kinsync.receivedAt": -1, "_id": -1 };
    let filter = doc! { "type": "user.deleted" };
    let find = doc! { "find": "user_events", "filter": filter, "sort": newest_first, "limit": 51 };
    assert_eq!(documents_read_by(&store, find).await, 1);
}

#[tokio::test]
async fn whichever_index_refuses_first_a_user_gets_the_document_with_the_kinde_id() {
    let store = store().await;
    let database = store.database().unwrap();
    let index = doc! { "key": { "username": 1 }, "unique": true, "sparse": true, "name": "own" };
    // The server checks the indexes in the order of their creation: this one before that of kinsync.
    users(&store).drop_indexes().await.unwrap();
    database.run_command(doc! { "createIndexes": "users", "indexes": [index] }).await.unwrap();
    store.prepare().await.unwrap();
    let own = [("kp_ada", "ada"), ("kp_sam", "sam")].map(
        |(id, name)| doc! { "kindeId": id, "username": name, "email": format!("{name}@x.org"), "plan": "pro" },
    );
    users(&store).insert_many(own).await.unwrap();
    put(&store, &with(row("kp_eve", None), Field::Username, "eve")).await;
    let with_username = |user, name: &str| with(row(user, None), Field::Username, name);
    let batch = [
        with_username("kp_ada", "ada"),
        row("kp_sam", Some("sam@x.org")),
        with_username("kp_eve", "eve"),
        with_username("kp_new", "eve"),
        with_username("kp_other", "ada"),
        row("kp_one", Some("sam@x.org")),
    ];
    let outcomes = store.write(&batch).await.unwrap();
    assert_eq!(outcomes[..3], vec![Outcome::Stale; 3], "a document appeared since the load: {outcomes:?}");
    assert!(outcomes[3..5].iter().all(|refused| matches!(refused, Outcome::Refused(_))), "{outcomes:?}");
    assert_eq!(outcomes[5], Outcome::EmailTaken);
    let again = [of_its_document(&store, &batch[0]).await, of_its_document(&store, &batch[1]).await];
    assert_eq!(store.write(&again).await.unwrap(), vec![Outcome::Written; 2]);
    assert_eq!(document(&store, "kp_ada").await.get_str("plan").unwrap(), "pro");
    assert_eq!(users(&store).count_documents(doc! {}).await.unwrap(), 3);
    // A validator looks before any index does.
    let validator = doc! { "collMod": "users", "validator": { "plan": { "$exists": true } } };
    users(&store).insert_one(doc! { "kindeId": "kp_pat", "plan": "free" }).await.unwrap();
    database.run_command(validator).await.unwrap();
    let outcomes = store.write(&[row("kp_pat", None), row("kp_ned", None)]).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Stale, Outcome::Refused(_)]), "{outcomes:?}");
    let pat = of_its_document(&store, &row("kp_pat", None)).await;
    assert_eq!(outcome(&store, &pat).await, Outcome::Written);
}

#[tokio::test]
async fn a_collection_with_a_collation_of_its_own_is_used_by_the_comparison_of_bytes() {
    let config = fresh().await;
    let store = MongoStore::connect(config.clone()).await.unwrap();
    let collation = doc! { "locale": "en", "strength": 2 };
    store.database().unwrap().run_command(doc! { "create": "users", "collation": collation }).await.unwrap();
    for _ in 0..3 {
        let store = prepared(config.clone()).await;
        assert_eq!((store.index_faults().await.unwrap(), store.examine().await.unwrap()), (vec![], vec![]));
    }
    let store = prepared(config).await;
    let (upper, lower) = (row("kp_ADA", Some("Ada@x.org")), row("kp_ada", Some("ada@x.org")));
    let upper = put(&store, &upper).await;
    let lower = put(&store, &lower).await;
    assert_eq!(store.load(std::slice::from_ref(&lower.id)).await.unwrap(), [Some(lower.clone())]);
    let renamed = put(&store, &with(upper.clone(), Field::FirstName, "Ada")).await;
    assert_eq!(get(&store, "kp_ada").await, Some(lower), "the other user is unchanged");
    assert_eq!(get(&store, "kp_ADA").await, Some(renamed));
    let holders = store.email_holders(&["Ada@x.org".into()]).await.unwrap();
    assert_eq!(holders["Ada@x.org"].name(), "kp_ADA");
}

#[tokio::test]
async fn a_validator_that_refuses_every_user_is_a_problem_with_a_command_that_resolves_it() {
    let store = store().await;
    assert_eq!(store.examine().await.unwrap(), []);
    let rule = doc! { "$jsonSchema": { "required": ["tenant"] } };
    store.database().unwrap().run_command(doc! { "collMod": "users", "validator": rule }).await.unwrap();
    let problems = store.examine().await.unwrap();
    assert_eq!(problems, store.conflicting_rules().await.unwrap());
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!((problem.subject.as_str(), problem.severity), ("validator", Severity::Error));
    assert!(problem.what.contains("tenant") && problem.fix.contains("collMod"), "{problem:?}");
}
