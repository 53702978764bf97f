//! Every store that the engine's tests run on, fresh.

use std::sync::Arc;

use kinsync_engine::internal::store::{Store, embedded::EmbeddedStore, mongo};
use kinsync_testing::mongo::TestMongo;

/// Makes one test for each store of each function that takes a [`Fresh`], so that a failure on one store hides no other.
macro_rules! on_every_store {
    ($($test:ident)*) => {
        mod on_mongodb {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::stores::mongo().await).await;
            })*
        }
        mod on_the_embedded_store {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::stores::embedded()).await;
            })*
        }
    };
}
pub(crate) use on_every_store;

/// A store of its own, and what must live as long as it is used.
pub(crate) struct Fresh {
    pub(crate) name: &'static str,
    pub(crate) store: Arc<dyn Store>,
    _dir: Option<tempfile::TempDir>,
}

pub(crate) fn embedded() -> Fresh {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = EmbeddedStore::open(dir.path()).expect("an empty folder opens");
    Fresh { name: "embedded", store: Arc::new(store), _dir: Some(dir) }
}

/// This store, which lives as long as its database.
pub(crate) fn over(store: mongo::MongoStore) -> Fresh {
    Fresh { name: "mongodb", store: Arc::new(store), _dir: None }
}

pub(crate) async fn mongo() -> Fresh {
    let mongo = TestMongo::shared().await;
    let config = mongo::Config { database: Some(mongo.database()), ..crate::store_mongo::patient(mongo) };
    let store = mongo::MongoStore::connect(config).await.expect("the test server is there");
    store.prepare().await.expect("an empty database is prepared");
    Fresh { name: "mongodb", store: Arc::new(store), _dir: None }
}
