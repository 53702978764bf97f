//! kinsync's own records in the store, as typed values under a key.

use serde::{Serialize, de::DeserializeOwned};

use crate::store::{Error, Saved, Store};

/// Loads a record. Returns the default if it is missing or another version of kinsync wrote it.
pub(crate) async fn load<T: DeserializeOwned + Default>(store: &dyn Store, key: &str) -> Result<T, Error> {
    Ok(read(store.state(key).await?.as_ref()))
}

/// Changes a record with compare-and-set. `change` runs again after a concurrent write. Writes nothing if the value stays
/// the same.
pub(crate) async fn change<T>(store: &dyn Store, key: &str, change: impl Fn(&mut T)) -> Result<(), Error>
where
    T: Serialize + DeserializeOwned + Default + PartialEq + Clone,
{
    loop {
        let saved = store.state(key).await?;
        let before: T = read(saved.as_ref());
        let mut after = before.clone();
        change(&mut after);
        if saved.is_some() && after == before {
            return Ok(());
        }
        let value = serde_json::to_value(&after).expect("texts, numbers and names are JSON");
        if store.put_state(key, &value, saved.map_or(0, |saved| saved.revision)).await? {
            return Ok(());
        }
    }
}

/// Decodes a loaded record, with the default on failure.
pub(crate) fn read<T: DeserializeOwned + Default>(saved: Option<&Saved>) -> T {
    saved.and_then(|saved| T::deserialize(&saved.value).ok()).unwrap_or_default()
}
