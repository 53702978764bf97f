//! What every queue backend must do. Each case is one test per backend. A backend that remembers no ids has a case less.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    future::{Future as _, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use kinde::webhook::Scheme;
use kinsync_core::Micros;
use kinsync_engine::internal::queue::{
    Claimed, Enqueued, Entry, EntryId, Error, Found, Matched, Payload, Queue, Search,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

const DEADLINE: Duration = Duration::from_mins(2);
/// Longer than any test.
pub(crate) const LEASE: Duration = Duration::from_hours(1);

/// An empty queue, and what must live as long as it is used.
pub(crate) struct Fresh {
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) _dir: Option<tempfile::TempDir>,
}

/// An empty queue of each backend.
mod backend {
    pub(super) use crate::{queue_embedded::embedded, queue_rabbitmq::rabbitmq, queue_redis::redis};
}

/// Makes a module for each backend with one test for each case.
macro_rules! conformance {
    ([$($backend:ident),+], $cases:tt) => {
        $(mod $backend { conformance!($backend, $cases); })+
    };
    ($backend:ident, [$($case:ident),+ $(,)?]) => {
        $(
            #[tokio::test]
            async fn $case() {
                super::$case(super::backend::$backend().await).await;
            }
        )+
    };
}

conformance!(
    [embedded, redis, rabbitmq],
    [
        an_entry_comes_out_as_it_went_in,
        a_sighting_comes_out_as_it_went_in,
        a_repetition_is_a_success,
        entries_are_claimed_oldest_first,
        every_id_is_claimed_once_by_many_consumers,
        a_dropped_claim_takes_nothing,
        a_claim_waits_for_an_entry,
        a_retried_entry_comes_again_and_counts,
        a_retry_waits_for_its_time,
        an_entry_comes_again_after_its_lease,
        an_ack_after_the_lease_still_removes_the_entry,
        acks_may_come_twice_and_for_unknown_ids,
        a_dead_letter_is_kept_listed_and_put_back,
        dead_letters_are_paged_in_order,
        an_entry_larger_than_the_queue_accepts_is_refused,
        a_closed_queue_refuses_every_call,
    ]
);

/// The backends that remember ids and show what is queued.
mod full {
    use super::{
        a_duplicate_is_claimed_once, a_search_removes_entries_of_every_state_and_no_others, backend,
    };

    conformance!(
        [embedded, redis],
        [a_duplicate_is_claimed_once, a_search_removes_entries_of_every_state_and_no_others]
    );
}

pub(crate) fn entry(event_id: &str) -> Entry {
    Entry {
        event_id: event_id.into(),
        received_at: Micros(1_000),
        payload: Payload::Delivery {
            scheme: Scheme::Hmac,
            signed_at: Some(Micros(900)),
            body: Bytes::from(format!("{{\"id\":\"{event_id}\"}}")),
        },
    }
}

pub(crate) async fn claim(queue: &dyn Queue, max: usize) -> Vec<Claimed> {
    claim_for(queue, max, LEASE).await
}

async fn claim_for(queue: &dyn Queue, max: usize, lease: Duration) -> Vec<Claimed> {
    timeout(DEADLINE, queue.claim(max, lease)).await.expect("there is something to claim").unwrap()
}

/// Enqueues from eight tasks until the server is killed, and returns what was accepted: at least 500 entries.
pub(crate) async fn accepted_until_killed(queue: &Arc<dyn Queue>, kill: impl FnOnce()) -> BTreeSet<String> {
    let (accepted, is_killed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut producers = JoinSet::new();
    for producer in 0..8 {
        let (queue, count, is_killed) = (Arc::clone(queue), Arc::clone(&accepted), Arc::clone(&is_killed));
        producers.spawn(async move {
            let mut accepted = BTreeSet::new();
            loop {
                let id = format!("{producer}-{}", accepted.len());
                match queue.enqueue(entry(&id)).await {
                    Ok(_) => {
                        accepted.insert(id);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Error::Unavailable { .. }) if is_killed.load(Ordering::Relaxed) => return accepted,
                    Err(Error::Unavailable { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    let enough = async {
        while accepted.load(Ordering::Relaxed) < 500 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(DEADLINE, enough).await.expect("500 entries are accepted");
    is_killed.store(true, Ordering::Relaxed);
    kill();
    producers.join_all().await.into_iter().flatten().collect()
}

/// Claims until there are this many: a backend may return fewer than it holds.
pub(crate) async fn claim_all(queue: &dyn Queue, count: usize) -> Vec<Claimed> {
    let mut claimed = Vec::new();
    while claimed.len() < count {
        claimed.extend(claim(queue, count - claimed.len()).await);
    }
    claimed
}

/// Whether nothing can be claimed, without waiting longer than it takes to look.
async fn is_empty(queue: &dyn Queue) -> bool {
    timeout(Duration::from_millis(50), queue.claim(1, LEASE)).await.is_err()
}

pub(crate) fn ids(claimed: &[Claimed]) -> Vec<EntryId> {
    claimed.iter().map(|claimed| claimed.id.clone()).collect()
}

pub(crate) fn event_ids(claimed: &[Claimed]) -> Vec<&str> {
    claimed.iter().map(|claimed| claimed.entry.event_id.as_str()).collect()
}

/// Entries and dead letters.
pub(crate) async fn counts(queue: &dyn Queue) -> (u64, u64) {
    let stats = queue.stats().await.unwrap();
    (stats.depth, stats.dead_letters)
}

pub(crate) async fn dead_letter(queue: &dyn Queue, claimed: &[Claimed], reason: &str) {
    let letters: Vec<_> = ids(claimed).into_iter().map(|id| (id, reason.to_owned())).collect();
    queue.dead_letter(&letters).await.unwrap();
}

async fn an_entry_comes_out_as_it_went_in(Fresh { queue, .. }: Fresh) {
    let mut odd = entry("odd 🦀 $$NOW");
    odd.payload = Payload::Delivery {
        scheme: Scheme::KindeJwt,
        signed_at: None,
        body: Bytes::from_static(b"\xff\x00 not text"),
    };
    queue.enqueue(odd.clone()).await.unwrap();
    assert_eq!(counts(&*queue).await, (1, 0));
    let claimed = claim(&*queue, 10).await;
    assert_eq!(queue.stats().await.unwrap().oldest_received_at, Some(odd.received_at));
    assert_eq!(claimed.len(), 1);
    assert_eq!((&claimed[0].entry, claimed[0].attempts), (&odd, 0));
    assert_eq!(counts(&*queue).await, (1, 0), "a claimed entry still counts");
    queue.ack(&ids(&claimed)).await.unwrap();
    assert_eq!(counts(&*queue).await, (0, 0));
    assert_eq!(queue.stats().await.unwrap().oldest_received_at, None);
    assert!(is_empty(&*queue).await);
}

async fn a_sighting_comes_out_as_it_went_in(Fresh { queue, .. }: Fresh) {
    let payload = Payload::Sighting(Bytes::from_static(b"{}"));
    let sighting = Entry { event_id: "kinsync:login:1:kp_a".into(), received_at: Micros(7), payload };
    queue.enqueue(sighting.clone()).await.unwrap();
    assert_eq!(claim(&*queue, 10).await[0].entry, sighting);
}

async fn a_repetition_is_a_success(Fresh { queue, .. }: Fresh) {
    for outcome in join_all((0..50).map(|_| queue.enqueue(entry("same")))).await {
        outcome.unwrap();
    }
    while counts(&*queue).await.0 > 0 {
        let claimed = claim(&*queue, 100).await;
        assert!(claimed.iter().all(|claimed| claimed.entry == entry("same")));
        queue.ack(&ids(&claimed)).await.unwrap();
    }
}

async fn a_duplicate_is_claimed_once(Fresh { queue, .. }: Fresh) {
    let outcomes = join_all((0..50).map(|_| queue.enqueue(entry("same")))).await;
    let new = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Enqueued::New))).count();
    assert_eq!((new, outcomes.iter().filter(|outcome| outcome.is_err()).count()), (1, 0));
    let claimed = claim(&*queue, 100).await;
    assert_eq!(claimed.len(), 1);
    queue.ack(&ids(&claimed)).await.unwrap();
    assert_eq!(queue.enqueue(entry("same")).await.unwrap(), Enqueued::Duplicate, "also after the ack");
    assert!(is_empty(&*queue).await);
}

async fn entries_are_claimed_oldest_first(Fresh { queue, .. }: Fresh) {
    for number in 0..9 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    let (first, second) = (claim_all(&*queue, 4).await, claim_all(&*queue, 5).await);
    assert_eq!(event_ids(&first), ["0", "1", "2", "3"]);
    assert_eq!(event_ids(&second), ["4", "5", "6", "7", "8"]);
}

async fn every_id_is_claimed_once_by_many_consumers(Fresh { queue, .. }: Fresh) {
    let produce = join_all((0..20).map(|producer| {
        let queue = Arc::clone(&queue);
        async move {
            for number in 0..200 {
                queue.enqueue(entry(&format!("{producer}-{number}"))).await.unwrap();
            }
        }
    }));
    let done = Arc::new(tokio::sync::Semaphore::new(0));
    let consume = join_all((0..20).map(|_| {
        let (queue, done) = (Arc::clone(&queue), Arc::clone(&done));
        async move {
            let mut seen = Vec::new();
            loop {
                let claimed = tokio::select! {
                    claimed = queue.claim(7, LEASE) => claimed.unwrap(),
                    _ = done.acquire() => return seen,
                };
                queue.ack(&ids(&claimed)).await.unwrap();
                seen.extend(claimed.into_iter().map(|claimed| claimed.entry.event_id));
            }
        }
    }));
    let produce_and_drain = async {
        produce.await;
        while counts(&*queue).await.0 > 0 {
            tokio::task::yield_now().await;
        }
        done.close();
    };
    let both = async { tokio::join!(produce_and_drain, consume) };
    let ((), seen) = timeout(DEADLINE, both).await.expect("all are claimed");
    let seen: Vec<String> = seen.into_iter().flatten().collect();
    assert_eq!(seen.len(), 4000);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 4000);
}

async fn a_dropped_claim_takes_nothing(Fresh { queue, .. }: Fresh) {
    for number in 0..200 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    let mut taken = BTreeSet::new();
    for polls in 0..100 {
        // Dropped after some polls: what it returned counts, everything else must stay.
        let mut claim = std::pin::pin!(queue.claim(3, LEASE));
        for _ in 0..polls % 4 {
            let polled = poll_fn(|context| Poll::Ready(claim.as_mut().poll(context))).await;
            if let Poll::Ready(claimed) = polled {
                taken.extend(claimed.unwrap().into_iter().map(|claimed| claimed.entry.event_id));
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    while taken.len() < 200 {
        taken.extend(claim(&*queue, 50).await.into_iter().map(|claimed| claimed.entry.event_id));
    }
    assert!(is_empty(&*queue).await);
}

async fn a_claim_waits_for_an_entry(Fresh { queue, .. }: Fresh) {
    let (claimed, _) = tokio::join!(claim(&*queue, 1), async {
        tokio::task::yield_now().await;
        queue.enqueue(entry("late")).await.unwrap()
    });
    assert_eq!(event_ids(&claimed), ["late"]);
}

async fn a_retried_entry_comes_again_and_counts(Fresh { queue, .. }: Fresh) {
    queue.enqueue(entry("again")).await.unwrap();
    for attempts in 0..3 {
        let claimed = claim(&*queue, 1).await;
        assert_eq!((claimed[0].attempts, &claimed[0].entry), (attempts, &entry("again")));
        queue.retry(&ids(&claimed), Duration::ZERO).await.unwrap();
    }
    assert_eq!(counts(&*queue).await, (1, 0));
}

async fn a_retry_waits_for_its_time(Fresh { queue, .. }: Fresh) {
    queue.enqueue(entry("later")).await.unwrap();
    queue.enqueue(entry("soon")).await.unwrap();
    let claimed = ids(&claim_all(&*queue, 2).await);
    queue.retry(&claimed[..1], Duration::from_hours(1)).await.unwrap();
    assert!(is_empty(&*queue).await, "an hour has not passed");
    queue.retry(&claimed[1..], Duration::from_millis(20)).await.unwrap();
    assert_eq!(event_ids(&claim(&*queue, 2).await), ["soon"]);
}

async fn an_entry_comes_again_after_its_lease(Fresh { queue, .. }: Fresh) {
    queue.enqueue(entry("a")).await.unwrap();
    queue.enqueue(entry("b")).await.unwrap();
    assert_eq!(event_ids(&claim_for(&*queue, 1, Duration::from_millis(200)).await), ["a"]);
    assert_eq!(event_ids(&claim(&*queue, 1).await), ["b"]);
    let again = claim(&*queue, 9).await;
    assert_eq!((event_ids(&again), again[0].attempts), (vec!["a"], 1));
    assert!(is_empty(&*queue).await, "the second lease has not ended");
}

async fn an_ack_after_the_lease_still_removes_the_entry(Fresh { queue, .. }: Fresh) {
    queue.enqueue(entry("slow")).await.unwrap();
    let first = claim_for(&*queue, 1, Duration::from_millis(1)).await;
    let second = claim(&*queue, 1).await;
    assert_eq!(event_ids(&second), ["slow"]);
    queue.ack(&ids(&first)).await.unwrap();
    queue.ack(&ids(&second)).await.unwrap();
    assert_eq!(counts(&*queue).await, (0, 0));
}

async fn acks_may_come_twice_and_for_unknown_ids(Fresh { queue, .. }: Fresh) {
    queue.enqueue(entry("a")).await.unwrap();
    queue.enqueue(entry("b")).await.unwrap();
    let first = ids(&claim(&*queue, 1).await);
    queue.ack(&first).await.unwrap();
    let unknown = [first[0].clone(), EntryId::new("18446744073709551615"), EntryId::new("not an id")];
    queue.ack(&unknown).await.unwrap();
    queue.retry(&unknown, Duration::ZERO).await.unwrap();
    queue.dead_letter(&unknown.map(|id| (id, "why".to_owned()))).await.unwrap();
    assert_eq!(counts(&*queue).await, (1, 0));
    assert_eq!(event_ids(&claim(&*queue, 5).await), ["b"]);
}

async fn a_dead_letter_is_kept_listed_and_put_back(Fresh { queue, .. }: Fresh) {
    queue.enqueue(entry("poison")).await.unwrap();
    let claimed = claim(&*queue, 1).await;
    for reason in ["no user id", "again"] {
        dead_letter(&*queue, &claimed, reason).await;
    }
    assert_eq!(counts(&*queue).await, (0, 1));
    let letters = queue.dead_letters(None, 10).await.unwrap();
    assert_eq!((letters.len(), letters[0].event_id.as_str()), (1, "poison"));
    assert_eq!((letters[0].reason.as_str(), letters[0].scheme.as_str()), ("no user id", "hmac_sha256"));
    assert_eq!(letters[0].payload.as_deref(), Some("{\"id\":\"poison\"}"));
    assert_eq!(queue.find_dead_letter(&letters[0].id).await.unwrap(), letters[0]);
    queue.retry_dead_letter(&letters[0].id).await.unwrap();
    assert_eq!(counts(&*queue).await, (1, 0));
    let claimed = claim(&*queue, 1).await;
    assert_eq!(claimed[0].entry, entry("poison"));
    dead_letter(&*queue, &claimed, "still").await;
    let id = queue.dead_letters(None, 10).await.unwrap()[0].id.clone();
    queue.drop_dead_letter(&id).await.unwrap();
    assert_eq!(counts(&*queue).await, (0, 0));
    for id in [id, EntryId::new("not an id")] {
        let outcomes = [
            queue.drop_dead_letter(&id).await,
            queue.retry_dead_letter(&id).await,
            queue.find_dead_letter(&id).await.map(drop),
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Err(Error::NoSuchDeadLetter { .. })), "{outcome:?}");
        }
    }
}

async fn a_search_removes_entries_of_every_state_and_no_others(Fresh { queue, .. }: Fresh) {
    for id in ["dead", "dead-other", "claimed", "claimed-other", "waiting", "waiting-other"] {
        queue.enqueue(entry(id)).await.unwrap();
    }
    let first = claim(&*queue, 4).await;
    dead_letter(&*queue, &first[..2], "why").await;
    let is_wanted =
        |scheme: &str, payload: &[u8]| scheme == "hmac_sha256" && !payload.ends_with(b"-other\"}");
    let found = async |search| queue.search(Arc::new(is_wanted), search).await.unwrap();
    let expected = Matched { queued: 2, dead_letters: 1, entries: Vec::new() };
    assert_eq!(found(Search::Count).await, expected);
    let listed = found(Search::List).await;
    let entries = ["claimed", "waiting"].map(|id| Found::from(&entry(id))).to_vec();
    assert_eq!(listed, Matched { entries, ..expected.clone() });
    assert_eq!(counts(&*queue).await, (4, 2), "a count removes nothing");
    assert_eq!(found(Search::Remove).await, expected);
    assert_eq!(counts(&*queue).await, (2, 1));
    assert_eq!(found(Search::Count).await, Matched::default());
    // The consumer of a removed entry does not know it.
    queue.ack(&ids(&first[2..])).await.unwrap();
    assert_eq!(event_ids(&claim(&*queue, 9).await), ["waiting-other"]);
    assert!(is_empty(&*queue).await);
    assert_eq!(queue.dead_letters(None, 9).await.unwrap()[0].event_id, "dead-other");
}

async fn dead_letters_are_paged_in_order(Fresh { queue, .. }: Fresh) {
    for number in 0..12 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    dead_letter(&*queue, &claim_all(&*queue, 12).await, "why").await;
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = queue.dead_letters(after.as_ref(), 5).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        found.extend(page.into_iter().map(|letter| letter.event_id));
    }
    assert_eq!(found, (0..12).map(|number| number.to_string()).collect::<Vec<_>>());
}

async fn an_entry_larger_than_the_queue_accepts_is_refused(Fresh { queue, .. }: Fresh) {
    let body = Bytes::from(vec![b'x'; 64 << 20]);
    let payload = Payload::Delivery { scheme: Scheme::Hmac, signed_at: None, body };
    let refused = queue.enqueue(Entry { payload, ..entry("large") }).await;
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    assert_eq!(counts(&*queue).await, (0, 0));
}

async fn a_closed_queue_refuses_every_call(Fresh { queue, .. }: Fresh) {
    queue.enqueue(entry("a")).await.unwrap();
    let claimed = ids(&claim(&*queue, 1).await);
    queue.close().await;
    queue.close().await;
    let id = claimed[0].clone();
    let outcomes = [
        queue.enqueue(entry("b")).await.map(drop),
        queue.claim(1, LEASE).await.map(drop),
        queue.ack(&claimed).await,
        queue.retry(&claimed, Duration::ZERO).await,
        queue.dead_letter(&[(id.clone(), String::new())]).await,
        queue.stats().await.map(drop),
        queue.dead_letters(None, 1).await.map(drop),
        queue.find_dead_letter(&id).await.map(drop),
        queue.retry_dead_letter(&id).await,
        queue.drop_dead_letter(&id).await,
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    }
}
