//! Users as requests see them: loaded like the authenticator does, which decodes again only what has changed.

use std::collections::HashMap;

use kinsync_core::{UserDocument, UserId};
use kinsync_engine::internal::{
    known_users::{KnownUser, KnownUsers},
    store::{Digest, Reloaded, Store},
};
use tokio::sync::Mutex;

/// The request path of one process.
#[derive(Default)]
pub(crate) struct Requests {
    known: KnownUsers,
    loaded: Mutex<HashMap<UserId, (KnownUser, Option<Digest>)>>,
}

impl Requests {
    /// The same process, so much later that it does not assume that there is nothing to join.
    pub(crate) fn later(self) -> Self {
        Self { known: KnownUsers::default(), ..self }
    }

    /// Returns the user; `None` if it is not stored.
    pub(crate) async fn document(&self, store: &dyn Store, user: &str) -> Option<UserDocument> {
        let id = UserId::parse(user).expect("an id");
        let mut loaded = self.loaded.lock().await;
        let digest = loaded.get(&id).and_then(|(_, digest)| *digest);
        let mut found = self.known.reload(store, &[(id.clone(), digest)]).await.expect("the store answers");
        match found.pop().expect("one result") {
            Reloaded::Absent => None,
            Reloaded::Unchanged => Some(loaded[&id].0.row.document()),
            Reloaded::Loaded(user, digest) => {
                let document = user.row.document();
                loaded.insert(id, (user, digest));
                Some(document)
            }
        }
    }
}
