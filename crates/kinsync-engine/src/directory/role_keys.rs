//! Finds roles by key.
//!
//! A record of a role is named by the id, and its key may change. Each key that a role has had therefore has a record of its own,
//! named by the key and the id, so that a read of the names that begin with a key finds the roles. It is written before the record
//! of the role and never removed: what is read is compared with the records of the roles.

use kinsync_core::Fact;
use serde_json::json;

use super::{Kind, PAGE, Stored, read};
use crate::store::{Error, Store};

const PREFIX: &str = "role_keys/";

/// Adds the key of a role that is about to be stored, unless the stored one has the same.
pub(super) async fn add(
    store: &dyn Store,
    id: &str,
    known: Option<&Stored>,
    next: &Stored,
) -> Result<(), Error> {
    let Some(key) = key_of(next).filter(|key| known.and_then(key_of) != Some(*key)) else { return Ok(()) };
    // `false`: the role has had the key before.
    store.put_state(&format!("{PREFIX}{key}/{id}"), &json!({}), 0).await.map(|_| ())
}

fn key_of(stored: &Stored) -> Option<&str> {
    stored.entry.text(Fact::Key).filter(|_| stored.kind == Kind::Role)
}

/// Returns the ids of the roles with this key, deleted ones included. Reads the records of these roles, of roles that had the key
/// before, and of roles with a key that begins with this one and a slash.
///
/// # Errors
/// Fails when the store fails.
pub async fn roles_with_key(store: &dyn Store, key: &str) -> Result<Vec<String>, Error> {
    let prefix = format!("{PREFIX}{key}/");
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_states(&prefix, after.as_deref(), PAGE).await?;
        let ids: Vec<String> = page.iter().map(|(name, _)| name[prefix.len()..].to_owned()).collect();
        let roles = read(store, &ids).await?;
        found.extend(roles.into_iter().filter(|(_, stored)| key_of(stored) == Some(key)).map(|(id, _)| id));
        if page.len() < PAGE {
            return Ok(found);
        }
        after = page.into_iter().next_back().map(|(name, _)| name);
    }
}
