//! Opens the store that the settings name.

#[cfg(feature = "mongodb")]
use std::time::Duration;
use std::{path::Path, sync::Arc};

#[cfg(feature = "mongodb")]
use super::mongo::{self, KeptKey, MongoStore, REMEDIES, SearchProgress, UnwrittenSearch};
use super::{Error, Store, embedded::EmbeddedStore};
use crate::{breaker::error_chain, log_snapshots, thread::Panicked};

#[cfg(feature = "mongodb")]
use crate::clock::Clock;
#[cfg(feature = "mongodb")]
use tokio::sync::watch;

/// Pause between two searches for documents under former names of keys.
#[cfg(feature = "mongodb")]
const MOVE_PAUSE: Duration = Duration::from_secs(30);

/// Pause between two steps of the search for documents that kinsync has not written: it must not slow down other work.
#[cfg(feature = "mongodb")]
const SEARCH_PAUSE: Duration = Duration::from_millis(100);

/// Pause after a failed step.
#[cfg(feature = "mongodb")]
const FAILED_PAUSE: Duration = Duration::from_secs(10);

/// Where users are stored.
#[derive(Clone, Debug, Default)]
pub enum Location {
    /// In an SQLite file in the data folder.
    #[default]
    DataFolder,
    /// In MongoDB.
    #[cfg(feature = "mongodb")]
    Mongo(Box<mongo::Config>),
    /// In a store that was opened and prepared elsewhere.
    Prepared(Arc<dyn Store>),
}

#[cfg(feature = "mongodb")]
impl From<Option<mongo::Config>> for Location {
    fn from(config: Option<mongo::Config>) -> Self {
        config.map_or(Self::DataFolder, |config| Self::Mongo(Box::new(config)))
    }
}

/// An opened store. [`OpenedStore::prepare`] comes before the first write.
#[derive(Clone, Debug)]
pub enum OpenedStore {
    /// Users in MongoDB.
    #[cfg(feature = "mongodb")]
    Mongo(MongoStore),
    /// Users in an SQLite file.
    Embedded(Arc<EmbeddedStore>),
    /// A store that was opened and prepared elsewhere.
    Prepared(Arc<dyn Store>),
}

/// Opens the store at this location.
///
/// # Errors
/// When the URI or a field name is wrong, or the folder cannot be used. MongoDB need not answer.
pub async fn open(data_dir: &Path, location: Location) -> Result<OpenedStore, Error> {
    match location {
        Location::DataFolder => {}
        #[cfg(feature = "mongodb")]
        Location::Mongo(config) => return MongoStore::connect(*config).await.map(OpenedStore::Mongo),
        Location::Prepared(store) => return Ok(OpenedStore::Prepared(store)),
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
            #[cfg(feature = "mongodb")]
            Self::Mongo(_) => "mongodb",
            Self::Embedded(_) => "embedded",
            Self::Prepared(_) => "prepared",
        }
    }

    /// Reports values of the application that stay, and rewrites documents under former names of keys, until none is left.
    #[cfg(feature = "mongodb")]
    pub(crate) async fn maintain_documents(&self, clock: &Clock, search: &watch::Sender<SearchProgress>) {
        let Self::Mongo(store) = self else { return };
        tokio::join!(report_kept(store, search), move_documents(store, clock));
    }

    /// The store behind the trait.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            #[cfg(feature = "mongodb")]
            Self::Mongo(store) => Arc::new(store.clone()),
            Self::Embedded(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Prepared(store) => Arc::clone(store),
        }
    }

    /// Waits for the end of a thread of the embedded store, as [`EmbeddedStore::panicked`] does; `None` for another store.
    pub(crate) fn panicked(&self) -> Option<impl Future<Output = Option<Panicked>> + Send + use<>> {
        match self {
            #[cfg(feature = "mongodb")]
            Self::Mongo(_) => None,
            Self::Embedded(store) => Some(store.panicked()),
            Self::Prepared(_) => None,
        }
    }

    /// Whether [`OpenedStore::prepare`] does anything.
    pub fn needs_preparation(&self) -> bool {
        match self {
            #[cfg(feature = "mongodb")]
            Self::Mongo(_) => true,
            Self::Embedded(_) | Self::Prepared(_) => false,
        }
    }

    /// Returns the place of the users, and the setting that determines it; `None` outside MongoDB.
    pub(crate) fn place(&self) -> Option<(String, &'static str)> {
        match self {
            #[cfg(feature = "mongodb")]
            Self::Mongo(store) => Some(store.place()),
            Self::Embedded(_) | Self::Prepared(_) => None,
        }
    }

    /// Makes what the store needs before its first write. See [`MongoStore::prepare`].
    pub async fn prepare(&self) -> Result<(), Error> {
        match self {
            #[cfg(feature = "mongodb")]
            Self::Mongo(store) => store.prepare().await?,
            Self::Embedded(_) | Self::Prepared(_) => {}
        }
        if let Err(error) = log_snapshots::begin(&*self.store()).await {
            // Some users get an entry more than they need.
            tracing::debug!(
                error = error_chain(&error),
                "the log of an empty store could not be marked as complete"
            );
        }
        Ok(())
    }
}

/// Rewrites documents under former names of keys, until none is left.
#[cfg(feature = "mongodb")]
async fn move_documents(store: &MongoStore, clock: &Clock) {
    while store.has_documents_to_move() {
        match store.move_documents(clock.now()).await {
            Ok(0) => {}
            Ok(documents) => tracing::info!(documents, "moved values to their new names"),
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                "the move of values to their new names was interrupted and continues in a minute"
            ),
        }
        // Another process with the former names may still write.
        tokio::time::sleep(MOVE_PAUSE).await;
    }
}

/// Reports values of the application that stay. Searches a large collection for minutes, a step at a time.
#[cfg(feature = "mongodb")]
async fn report_kept(store: &MongoStore, progress: &watch::Sender<SearchProgress>) {
    let kept = loop {
        match store.kept_keys().await {
            Ok(kept) => break kept,
            Err(error) => pause_after(&error).await,
        }
    };
    report(kept, "the application's values stay under a key of kinsync");
    let mut search = UnwrittenSearch::default();
    while !search.progress().is_done {
        match store.search_unwritten(&mut search).await {
            Ok(()) => tokio::time::sleep(SEARCH_PAUSE).await,
            Err(error) => pause_after(&error).await,
        }
        progress.send_replace(search.progress());
    }
    report(
        store.unwritten_keys(search),
        "documents with a Kinde id have values of the application, which stay unless they equal Kinde's",
    );
}

#[cfg(feature = "mongodb")]
async fn pause_after(error: &Error) {
    tracing::warn!(
        error = error_chain(error),
        "the search for values of the application was interrupted and continues in a moment"
    );
    tokio::time::sleep(FAILED_PAUSE).await;
}

#[cfg(feature = "mongodb")]
fn report(keys: Vec<KeptKey>, message: &str) {
    for key in keys {
        tracing::warn!(
            key = key.path,
            documents = key.documents,
            examples = key.examples.join(", "),
            "{message}; remedies: {REMEDIES}"
        );
    }
}
