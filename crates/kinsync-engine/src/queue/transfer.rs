//! Moves entries from one queue into another.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Claimed, Enqueued, Entry, Error, Payload, Queue};

/// Pause until an entry that was not accepted can be claimed again.
const PAUSE: Duration = Duration::from_secs(1);

/// What became of the claimed entries.
#[derive(Debug, Default)]
pub struct Transferred {
    /// Entries that the other queue has now.
    pub moved: u64,
    /// Sightings that the other queue has no room for. The next request of the user makes one again.
    pub dropped: u64,
    /// Entries that became dead letters, because they are larger than the other queue ever accepts.
    pub dead: u64,
    /// Why the others stay.
    pub failure: Option<Error>,
}

/// Moves claimed entries of a queue. `accept` offers one to the other queue. What it does not accept now stays and can be claimed again
/// after a second. Cancelled, some entries may be in both queues.
///
/// # Errors
/// As [`Queue::ack`], [`Queue::retry`] and [`Queue::dead_letter`] of `from`: entries may be in both queues then.
pub async fn transfer<F>(
    from: &dyn Queue,
    claimed: Vec<Claimed>,
    accept: impl Fn(Entry) -> F,
) -> Result<Transferred, Error>
where
    F: Future<Output = Result<Enqueued, Error>>,
{
    let outcomes = join_all(claimed.iter().map(|claimed| accept(claimed.entry.clone()))).await;
    let (mut done, mut kept, mut dead) = (Vec::new(), Vec::new(), Vec::new());
    let mut transferred = Transferred::default();
    for (Claimed { id, entry, .. }, outcome) in claimed.into_iter().zip(outcomes) {
        match outcome {
            Ok(_) => {
                transferred.moved += 1;
                done.push(id);
            }
            // Kept, it would hold up deliveries, which a queue accepts up to twice as many of.
            Err(Error::Full { .. }) if matches!(entry.payload, Payload::Sighting(_)) => {
                transferred.dropped += 1;
                done.push(id);
            }
            Err(error @ Error::TooLarge { .. }) => dead.push((id, error.to_string())),
            Err(error) => {
                kept.push(id);
                transferred.failure = Some(error);
            }
        }
    }
    from.ack(&done).await?;
    from.retry(&kept, PAUSE).await?;
    if !dead.is_empty() {
        from.dead_letter(&dead).await?;
        transferred.dead = dead.len() as u64;
    }
    Ok(transferred)
}
