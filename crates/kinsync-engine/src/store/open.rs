//! Opens the store that the settings name.

use std::{path::Path, sync::Arc};

use super::{
    Error, Store,
    embedded::EmbeddedStore,
    mongo::{self, MongoStore},
};

/// An opened store. [`OpenedStore::prepare`] comes before the first write.
#[derive(Clone, Debug)]
pub enum OpenedStore {
    /// Users in MongoDB.
    Mongo(MongoStore),
    /// Users in an SQLite file.
    Embedded(Arc<EmbeddedStore>),
    /// A store that was opened and prepared elsewhere.
    Prepared(Arc<dyn Store>),
}

/// Opens the store in MongoDB or, without its settings, the one in the data folder.
///
/// # Errors
/// When the URI or a field name is wrong, or the folder cannot be used. MongoDB need not answer.
pub async fn open(data_dir: &Path, mongodb: Option<mongo::Config>) -> Result<OpenedStore, Error> {
    if let Some(config) = mongodb {
        return MongoStore::connect(config).await.map(OpenedStore::Mongo);
    }
    let data_dir = data_dir.to_owned();
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&data_dir)).await;
    let opened =
        opened.map_err(|source| Error::Unavailable { doing: "open the store", source: source.into() })?;
    opened.map(Arc::new).map(OpenedStore::Embedded)
}

impl OpenedStore {
    /// `mongodb`, `embedded` or `prepared`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Mongo(_) => "mongodb",
            Self::Embedded(_) => "embedded",
            Self::Prepared(_) => "prepared",
        }
    }

    /// The store behind the trait.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Mongo(store) => Arc::new(store.clone()),
            Self::Embedded(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Prepared(store) => Arc::clone(store),
        }
    }

    /// Whether [`OpenedStore::prepare`] does anything.
    pub fn needs_preparation(&self) -> bool {
        matches!(self, Self::Mongo(_))
    }

    /// Makes what the store needs before its first write. See [`MongoStore::prepare`].
    pub async fn prepare(&self) -> Result<(), Error> {
        match self {
            Self::Mongo(store) => store.prepare().await,
            Self::Embedded(_) | Self::Prepared(_) => Ok(()),
        }
    }
}
