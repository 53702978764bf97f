//! Users that a rule of the store refuses: an index or a validator of the application.
//!
//! What the store does not take of a user is kept as one record among kinsync's own, until the rule allows the document.
//! The projector then writes it, without a further event. The request path joins the record into what it loads, so that
//! a deletion or a suspension takes effect although no document shows it.

use futures_util::{StreamExt, TryStreamExt, stream};
use kinsync_core::{Micros, Source, UserId, UserState};
use serde::{Deserialize, Serialize};

use crate::store::{Error, Saved, Store};

const PREFIX: &str = "refused/";

/// Version of the format of a record.
const FORMAT: u32 = 1;

/// Records read per call.
const PAGE: usize = 1000;

/// Records written concurrently.
const CONCURRENCY: usize = 8;

/// What the store refuses of a user.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedUser {
    /// State of the user, including what could not be written.
    pub state: UserState,
    /// Source of the newest observation.
    pub source: Source,
    /// The rule that failed, for an operator.
    pub reason: String,
    /// Time of the first refusal.
    pub since: Micros,
}

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    #[serde(flatten)]
    user: RefusedUser,
}

/// A refused user as read from the store.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Id of the user.
    pub id: UserId,
    /// What the store refuses.
    pub user: RefusedUser,
    revision: i64,
}

/// Adds what the store refuses of these users to their records.
///
/// # Errors
/// Fails when the store fails, or when a newer kinsync wrote a record. A repetition is safe.
pub(crate) async fn add(store: &dyn Store, refused: Vec<(UserId, RefusedUser)>) -> Result<(), Error> {
    let writes = refused.into_iter().map(|(id, user)| add_one(store, id, user));
    stream::iter(writes).buffer_unordered(CONCURRENCY).try_collect().await
}

async fn add_one(store: &dyn Store, id: UserId, user: RefusedUser) -> Result<(), Error> {
    let key = format!("{PREFIX}{id}");
    loop {
        let saved = store.state(&key).await?;
        let known = saved.as_ref().map(|saved| decode(&key, saved)).transpose()?.map(|known| known.user);
        let next = match &known {
            None => user.clone(),
            Some(known) => RefusedUser {
                state: known.state.clone().join(user.state.clone()),
                since: known.since,
                ..user.clone()
            },
        };
        if known.as_ref() == Some(&next) {
            return Ok(());
        }
        let value =
            serde_json::to_value(Record { format: FORMAT, user: next }).expect("texts and numbers are JSON");
        if store.put_state(&key, &value, saved.map_or(0, |saved| saved.revision)).await? {
            if known.is_none_or(|known| known.reason != user.reason) {
                tracing::error!(
                    user = id.as_str(),
                    reason = user.reason,
                    "the store refuses a user; the user is stored as soon as the rule allows it"
                );
                metrics::counter!("kinsync_users_refused_total").increment(1);
            }
            return Ok(());
        }
    }
}

/// Lists refused users in the order of their ids, after this one.
///
/// # Errors
/// Fails when the store fails, or when a newer kinsync wrote a record.
pub async fn list(store: &dyn Store, after: Option<&UserId>, limit: usize) -> Result<Vec<Refused>, Error> {
    let after = after.map(|id| format!("{PREFIX}{id}"));
    let records = store.list_states(PREFIX, after.as_deref(), limit).await?;
    records.iter().map(|(key, saved)| decode(key, saved)).collect()
}

/// Lists a page of refused users, and the position of the next page, if any.
pub(crate) async fn page(
    store: &dyn Store,
    after: Option<&UserId>,
) -> Result<(Vec<Refused>, Option<UserId>), Error> {
    let page = list(store, after, PAGE).await?;
    let next = page.last().filter(|_| page.len() == PAGE).map(|last| last.id.clone());
    Ok((page, next))
}

/// Returns whether any user is refused.
pub(crate) async fn is_any(store: &dyn Store) -> Result<bool, Error> {
    Ok(!store.list_states(PREFIX, None, 1).await?.is_empty())
}

/// Returns the number of refused users.
///
/// # Errors
/// Those of the store.
pub async fn count(store: &dyn Store) -> Result<u64, Error> {
    store.count_states(PREFIX).await
}

/// Returns what the store refuses of these users, in the same order.
///
/// # Errors
/// Fails when the store fails, or when a newer kinsync wrote a record.
pub async fn of(store: &dyn Store, ids: &[UserId]) -> Result<Vec<Option<RefusedUser>>, Error> {
    let keys: Vec<String> = ids.iter().map(|id| format!("{PREFIX}{id}")).collect();
    let records = store.states(&keys).await?;
    let decoded = keys.iter().zip(records).map(|(key, saved)| match saved {
        Some(saved) => decode(key, &saved).map(|refused| Some(refused.user)),
        None => Ok(None),
    });
    decoded.collect()
}

/// Removes the record of a user.
pub(crate) async fn remove_user(store: &dyn Store, user: &UserId) -> Result<(), Error> {
    let key = key(user);
    match store.state(&key).await? {
        Some(saved) => store.remove_states(&[(key, saved.revision)]).await,
        None => Ok(()),
    }
}

/// Returns the key of the record of a user.
pub fn key(user: &UserId) -> String {
    format!("{PREFIX}{user}")
}

/// Removes the records of users that the store has taken, unless they have changed since they were read.
pub(crate) async fn remove(store: &dyn Store, taken: &[Refused]) -> Result<(), Error> {
    let records: Vec<(String, i64)> =
        taken.iter().map(|refused| (format!("{PREFIX}{}", refused.id), refused.revision)).collect();
    if records.is_empty() { Ok(()) } else { store.remove_states(&records).await }
}

fn decode(key: &str, saved: &Saved) -> Result<Refused, Error> {
    let id = key.strip_prefix(PREFIX).and_then(|id| UserId::parse(id).ok());
    let record = Record::deserialize(&saved.value).ok().filter(|record| record.format == FORMAT);
    match (id, record) {
        (Some(id), Some(record)) => Ok(Refused { id, user: record.user, revision: saved.revision }),
        _ => Err(Error::Refused {
            doing: "read the record of a refused user",
            hint: format!("this kinsync cannot read the record `{key}`; run the version that wrote it"),
            source: None,
        }),
    }
}
