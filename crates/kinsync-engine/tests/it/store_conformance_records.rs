//! What every store promises of kinsync's own records, proved for each on its real server or file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kinsync_engine::internal::store::Saved;
use serde_json::json;

use crate::store_conformance::{Shared, conformance};

conformance! {
    a_record_is_written_over_what_was_read_and_nothing_else
    of_many_concurrent_writes_of_a_record_one_succeeds
    records_are_listed_by_prefix_and_removed_at_the_revision_that_was_read
    marked_records_are_listed_until_the_mark_is_removed
}

async fn a_record_is_written_over_what_was_read_and_nothing_else(store: Shared) {
    assert_eq!(store.state("lease").await.unwrap(), None);
    let first = json!({"holder": "a", "$where": "1", "a.b": ["\0", "$$NOW", null, 1.5, i64::MAX]});
    assert!(!store.put_state("lease", &first, 3).await.unwrap(), "it is not there");
    assert!(store.put_state("lease", &first, 0).await.unwrap());
    assert!(!store.put_state("lease", &json!("late"), 0).await.unwrap(), "it is there");
    let saved = store.state("lease").await.unwrap().unwrap();
    assert_eq!(saved, Saved { value: first, revision: 1 });
    assert!(store.put_state("lease", &json!(null), 1).await.unwrap());
    assert!(!store.put_state("lease", &json!("late"), 1).await.unwrap());
    let saved = store.state("lease").await.unwrap().unwrap();
    assert_eq!(saved, Saved { value: json!(null), revision: 2 });
    assert_eq!(store.state("other").await.unwrap(), None);
    store.ping().await.unwrap();
}

async fn of_many_concurrent_writes_of_a_record_one_succeeds(store: Shared) {
    for expected in [0, 1] {
        let tries = (0..32).map(|n| {
            let store = store.clone();
            async move { store.put_state("lease", &json!({ "holder": n }), expected).await.unwrap() }
        });
        let taken = futures_util::future::join_all(tries).await;
        let winners: Vec<_> = taken.iter().enumerate().filter(|(_, taken)| **taken).collect();
        assert_eq!(winners.len(), 1, "{taken:?}");
        let saved = store.state("lease").await.unwrap().unwrap();
        assert_eq!(saved, Saved { value: json!({ "holder": winners[0].0 }), revision: expected + 1 });
    }
}

async fn records_are_listed_by_prefix_and_removed_at_the_revision_that_was_read(store: Shared) {
    let keys = ["set/b", "set/a", "set/äc", "se", "set0", "set"].map(ToOwned::to_owned);
    for key in &keys {
        assert!(store.put_state(key, &json!(key), 0).await.unwrap(), "{key}");
    }
    let names = |list: Vec<(String, Saved)>| list.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    let all = store.list_states("set/", None, 10).await.unwrap();
    assert_eq!(all[0].1, Saved { value: json!("set/a"), revision: 1 });
    assert_eq!(names(all), ["set/a", "set/b", "set/äc"]);
    assert_eq!(names(store.list_states("set/", Some("set/a"), 1).await.unwrap()), ["set/b"]);
    assert_eq!(store.count_states("set/").await.unwrap(), 3);
    let requested = ["set/b", "none", "set/a"].map(ToOwned::to_owned);
    let found = store.states(&requested).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|saved| saved.map(|saved| saved.value)).collect();
    assert_eq!(found, [Some(json!("set/b")), None, Some(json!("set/a"))]);
    assert!(store.put_state("set/b", &json!("newer"), 1).await.unwrap());
    store.remove_states(&[("set/a".into(), 1), ("set/b".into(), 1), ("none".into(), 1)]).await.unwrap();
    assert_eq!(names(store.list_states("set/", None, 10).await.unwrap()), ["set/b", "set/äc"]);
}

async fn marked_records_are_listed_until_the_mark_is_removed(store: Shared) {
    let [marked, other] = [json!({ "due": true, "n": 1 }), json!({ "due": false })];
    for (key, value) in [("b", &marked), ("a", &marked), ("c", &other), ("d", &json!("due"))] {
        assert!(store.put_state(key, value, 0).await.unwrap());
    }
    let due_after = async |after, limit| {
        let records = store.due_states(after, limit).await.unwrap();
        records.into_iter().map(|(key, saved)| (key, saved.revision)).collect::<Vec<_>>()
    };
    let due = async |limit| due_after(None, limit).await;
    assert_eq!(due(10).await, [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    assert_eq!(due_after(Some("a"), 10).await, [("b".to_owned(), 1)]);
    assert_eq!(due(1).await, [("a".to_owned(), 1)]);
    assert!(store.put_state("a", &other, 1).await.unwrap());
    assert!(store.put_state("c", &marked, 1).await.unwrap());
    assert!(!store.put_state("b", &other, 7).await.unwrap());
    assert_eq!(due(10).await, [("b".to_owned(), 1), ("c".to_owned(), 2)]);
    store.remove_states(&[("b".into(), 1)]).await.unwrap();
    assert_eq!(due(10).await, [("c".to_owned(), 2)]);
    assert_eq!(store.due_states(None, 1).await.unwrap()[0].1.value, marked);
}
