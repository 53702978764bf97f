//! Writes rows with as many keys as the store accepts, and keeps what it refuses as records of kinsync.

use std::collections::HashSet;

use kinsync_core::{Micros, Source, UserId};

use super::without_email;
use crate::{
    refused_users::{self, RefusedUser},
    store::{DocumentKey, Error, Outcome, RefusedKeys, Row, Store},
};

/// Writes the rows, each with as many keys as the store accepts.
pub(super) async fn write(
    store: &dyn Store,
    rows: Vec<Row>,
    now: Micros,
) -> Result<Vec<(Row, Outcome)>, Error> {
    let is_stored: HashSet<UserId> =
        rows.iter().filter(|row| row.revision > 0).map(|row| row.id.clone()).collect();
    // A key that was refused before may be accepted now.
    let rows = rows.into_iter().map(|row| Row { refused: RefusedKeys::default(), ..row }).collect();
    let mut done = write_without(store, rows, reduced).await?;
    let marked = |row: &Row, outcome: &Outcome| {
        let reason = refusal(outcome)?.to_owned();
        let is_due =
            is_locked_out(row) || (is_stored.contains(&row.id) && matches!(outcome, Outcome::Refused(_)));
        let refused = RefusedKeys { all: Some(reason), ..RefusedKeys::default() };
        (is_due && row.refused.all.is_none()).then(|| Row { refused, ..row.clone() })
    };
    retry(store, &mut done, marked).await?;
    keep_refused(store, &done, now).await?;
    for (row, _) in done.iter_mut().filter(|(_, outcome)| *outcome == Outcome::Written) {
        report_edits(row);
        report_refused(row);
        row.written();
    }
    Ok(done)
}

/// Writes the rows. A row that the store refuses is written again as `next` returns it, until it returns none.
pub(super) async fn write_without(
    store: &dyn Store,
    rows: Vec<Row>,
    next: impl Fn(&Row, &Outcome) -> Option<Row>,
) -> Result<Vec<(Row, Outcome)>, Error> {
    let outcomes = store.write(&rows).await?;
    let mut done: Vec<(Row, Outcome)> = rows.into_iter().zip(outcomes).collect();
    while retry(store, &mut done, &next).await? {}
    Ok(done)
}

/// Writes the rows that `next` returns instead of refused ones. Returns whether there were any. A refusal of such a row
/// leaves the former one, unless `next` has a further one for it.
async fn retry(
    store: &dyn Store,
    done: &mut [(Row, Outcome)],
    next: impl Fn(&Row, &Outcome) -> Option<Row>,
) -> Result<bool, Error> {
    let again = done.iter().enumerate();
    let (places, rows): (Vec<usize>, Vec<Row>) =
        again.filter_map(|(place, (row, outcome))| Some((place, next(row, outcome)?))).unzip();
    if rows.is_empty() {
        return Ok(false);
    }
    let outcomes = store.write(&rows).await?;
    for ((place, row), outcome) in places.into_iter().zip(rows).zip(outcomes) {
        done[place] = (row, outcome);
    }
    Ok(true)
}

/// Returns the row without what the store refuses: an address that another document shows, which gets a pending mark, or keys
/// that a rule of the application names.
pub(super) fn reduced(row: &Row, outcome: &Outcome) -> Option<Row> {
    match outcome {
        Outcome::EmailTaken if row.metadata.holds_email => Some(without_email(row.clone())),
        Outcome::Refused(rule) => {
            let mut next = row.clone();
            let is_new = |key: &&DocumentKey| !row.refused.keys.contains_key(key);
            next.refused.keys.extend(rule.keys.iter().filter(is_new).map(|key| (*key, rule.reason.clone())));
            (next.refused != row.refused).then_some(next)
        }
        _ => None,
    }
}

/// Reports keys that a rule of the application keeps out of the document.
fn report_refused(row: &Row) {
    let before = row.document.as_ref().map(|stored| stored.refused());
    if row.refused.is_empty() || before.is_some_and(|before| *before == row.refused) {
        return;
    }
    let reasons: Vec<String> =
        row.refused.reasons().into_iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
    tracing::warn!(
        user = row.id.as_str(),
        refused = reasons.join("; "),
        "a rule of the database keeps values out of the document of a user"
    );
    metrics::counter!("kinsync_keys_refused_total").increment(1);
}

/// Keeps what the store refuses as records of kinsync, for [`super::apply_refused`] and for the request path. For a write that only
/// failed, it keeps a deletion or a suspension: the caller applies everything else again.
async fn keep_refused(store: &dyn Store, done: &[(Row, Outcome)], now: Micros) -> Result<(), Error> {
    let is_kept = |row: &Row, outcome: &Outcome| match outcome {
        Outcome::Refused(_) => true,
        Outcome::Failed(_) => is_locked_out(row),
        Outcome::Written | Outcome::Stale | Outcome::EmailTaken => false,
    };
    let kept = done.iter().filter(|(row, outcome)| is_kept(row, outcome)).map(|(row, outcome)| {
        let refused = RefusedUser {
            state: row.state.clone(),
            source: row.metadata.source.unwrap_or(Source::Reconcile),
            reason: refusal(outcome).unwrap_or_default().to_owned(),
            since: now,
        };
        (row.id.clone(), refused)
    });
    refused_users::add(store, kept.collect()).await
}

/// Whether requests of this user are refused.
fn is_locked_out(row: &Row) -> bool {
    let document = row.document();
    document.is_deleted || document.is_suspended == Some(true)
}

/// Why the row was refused, unless it was written or has to be loaded again.
fn refusal(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Refused(rule) => Some(&rule.reason),
        Outcome::Failed(reason) => Some(reason),
        Outcome::EmailTaken | Outcome::Stale | Outcome::Written => None,
    }
}

/// Reports keys of kinsync that the application had changed, and that this write restored.
fn report_edits(row: &Row) {
    let Some(document) = row.document.as_ref().filter(|document| !document.edited().is_empty()) else {
        return;
    };
    let keys: Vec<&str> = document.edited().iter().map(DocumentKey::name).collect();
    tracing::warn!(
        user = row.id.as_str(),
        keys = keys.join(","),
        "the application had changed values of kinsync in a document; they were restored"
    );
    for key in keys {
        metrics::counter!("kinsync_document_edits_total", "key" => key).increment(1);
    }
}
