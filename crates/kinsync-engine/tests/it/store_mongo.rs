//! What only the store in MongoDB promises.

use kinsync_engine::store::mongo::{Config, MongoStore};
use kinsync_testing::mongo::TestMongo;

/// A store in a database of its own.
pub(crate) async fn store() -> MongoStore {
    let mongo = TestMongo::shared().await;
    let store = MongoStore::connect(config(mongo)).await.unwrap();
    store.prepare().await.unwrap();
    store
}

fn config(mongo: &TestMongo) -> Config {
    Config { database: Some(mongo.database()), ..Config::new(mongo.uri()) }
}
