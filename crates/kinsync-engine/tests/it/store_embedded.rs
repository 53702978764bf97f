//! What only the embedded store promises: its file is private, locked and never misread.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{os::unix::fs::PermissionsExt, path::Path};

use kinsync_core::Field;
use kinsync_engine::internal::store::{Error, Selection, Store, UserFilter, embedded::EmbeddedStore};

use crate::store_rows::{event, get, put, row, tombstone, with};

fn hint<T: std::fmt::Debug>(refused: Result<T, Error>) -> String {
    match refused {
        Err(Error::Refused { hint, .. }) => hint,
        other => panic!("not refused: {other:?}"),
    }
}

fn open(folder: &Path) -> EmbeddedStore {
    EmbeddedStore::open(folder).unwrap()
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("made/on/demand");
    let ada = {
        let store = open(&inner);
        store.log(&[event("event_1", None, 1)]).await.unwrap();
        put(&store, &row("kp_ada", Some("a@x.org"))).await
    };
    let store = open(&inner);
    assert_eq!(get(&store, "kp_ada").await, Some(ada));
    assert!(store.event("event_1").await.unwrap().is_some());
}

#[tokio::test]
async fn a_second_writer_is_refused_and_a_reader_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let empty =
        hint(EmbeddedStore::open_read_only(&folder.path().join("none")).map_err(|error| match error {
            Error::Unavailable { doing, .. } => {
                Error::Refused { doing, hint: "nothing there".into(), source: None }
            }
            other => other,
        }));
    assert_eq!(empty, "nothing there");
    let store = open(folder.path());
    let second = hint(EmbeddedStore::open(folder.path()));
    assert!(second.contains("KINSYNC_DATA_DIR"), "{second}");
    let ada = put(&store, &row("kp_ada", None)).await;
    let reader = EmbeddedStore::open_read_only(folder.path()).unwrap();
    assert_eq!(get(&reader, "kp_ada").await, Some(ada.clone()));
    assert!(hint(reader.write(&[ada]).await).contains("reading only"));
    assert!(hint(reader.ping().await).contains("reading only"));
}

#[tokio::test]
async fn the_files_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    put(&store, &row("kp_ada", None)).await;
    let mut files = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        files += 1;
    }
    assert_eq!(files, 4, "database, log, shared memory and lock");
}

#[tokio::test]
async fn a_file_of_a_newer_kinsync_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let sqlite = rusqlite::Connection::open(folder.path().join("kinsync.sqlite")).unwrap();
    sqlite.pragma_update(None, "user_version", 99).unwrap();
    drop(sqlite);
    for refused in [EmbeddedStore::open(folder.path()), EmbeddedStore::open_read_only(folder.path())] {
        assert!(hint(refused).contains("newer kinsync"));
    }
}

#[tokio::test]
async fn a_file_of_an_older_kinsync_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let mut ada = row("kp_ada", None);
    ada.state.directory.add("org_a", kinsync_core::Entry::default());
    ada = with(with(ada, Field::IsSuspended, true), Field::ProvidedId, "own-7");
    let ada = put(&open(folder.path()), &ada).await;
    put(&open(folder.path()), &tombstone("kp_eve")).await;
    let sqlite = rusqlite::Connection::open(folder.path().join("kinsync.sqlite")).unwrap();
    sqlite
        .execute_batch(
            "DROP TABLE state; DROP TABLE user_references; DROP INDEX users_address; ALTER TABLE users DROP COLUMN compared_since; \
             ALTER TABLE users DROP COLUMN changed_after; DROP INDEX events_source; ALTER TABLE events DROP COLUMN source; \
             ALTER TABLE events DROP COLUMN version; ALTER TABLE events DROP COLUMN schema; \
             ALTER TABLE events DROP COLUMN checksum",
        )
        .unwrap();
    for index in [
        "first_name",
        "last_name",
        "phone",
        "provided_id",
        "updated_at",
        "live",
        "deleted_at",
        "suspended",
        "in_conflict",
    ] {
        sqlite.execute_batch(&format!("DROP INDEX users_{index}")).unwrap();
    }
    for column in ["first_name", "last_name", "phone", "provided_id", "is_suspended", "deleted_at"] {
        sqlite.execute_batch(&format!("ALTER TABLE users DROP COLUMN {column}")).unwrap();
    }
    sqlite.pragma_update(None, "user_version", 1).unwrap();
    drop(sqlite);
    assert!(hint(EmbeddedStore::open_read_only(folder.path())).contains("start the server once"));
    let store = open(folder.path());
    assert_eq!(store.referring(&["org_a".into()], None, 10).await.unwrap(), std::slice::from_ref(&ada.id));
    assert_eq!(get(&store, "kp_ada").await, Some(ada));
    let lists = [
        (Selection::NamePrefix("ADA".into()), "kp_ada"),
        (Selection::ProvidedId("own-7".into()), "kp_ada"),
        (Selection::Suspended, "kp_ada"),
        (Selection::Deleted, "kp_eve"),
    ];
    for (selection, user) in lists {
        let listed = store.users(&UserFilter { selection, limit: 9, ..UserFilter::default() }).await.unwrap();
        assert_eq!(listed.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), [user]);
    }
    assert!(store.put_state("lease", &serde_json::json!(1), 0).await.unwrap());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kinsync.sqlite");
    std::fs::write(&path, "not a database, but the only copy of something".repeat(100)).unwrap();
    assert!(hint(EmbeddedStore::open(folder.path())).contains("damaged"));
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("not a database"));
}

#[tokio::test(flavor = "multi_thread")]
async fn erasures_of_several_users_empty_the_log_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    for round in 0..20 {
        put(&store, &row(&format!("kp_{round}"), None)).await;
        let all = futures_util::future::join_all((0..8).map(|_| store.scrub())).await;
        all.into_iter().collect::<Result<Vec<()>, _>>().unwrap();
    }
    let log = std::fs::metadata(folder.path().join("kinsync.sqlite-wal")).unwrap();
    assert_eq!(log.len(), 0);
}
