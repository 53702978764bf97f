//! What every queue must do, whatever it is made of. A new backend runs [`suite`].

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    future::{Future as _, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use kinsync_core::Micros;
use kinsync_engine::queue::{Claimed, DeadLetter, Enqueued, Entry, Error, Queue, Receipt};
use tokio::time::timeout;

/// Makes empty queues.
pub(crate) type Factory<'a> = &'a dyn Fn() -> Arc<dyn Queue>;

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn entry(event_id: &str) -> Entry {
    Entry {
        event_id: event_id.into(),
        scheme: "hmac".into(),
        received_at: Micros(1_000),
        signed_at: Some(Micros(900)),
        payload: Bytes::from(format!("{{\"id\":\"{event_id}\"}}")),
    }
}

pub(crate) async fn claim(queue: &dyn Queue, max: usize) -> Vec<Claimed> {
    timeout(DEADLINE, queue.claim(max)).await.expect("there is something to claim").unwrap()
}

/// Whether nothing can be claimed, without waiting longer than it takes to look.
async fn is_empty(queue: &dyn Queue) -> bool {
    timeout(Duration::from_millis(50), queue.claim(1)).await.is_err()
}

pub(crate) fn receipts(claimed: &[Claimed]) -> Vec<Receipt> {
    claimed.iter().map(|claimed| claimed.receipt).collect()
}

pub(crate) async fn suite(make: Factory<'_>) {
    an_entry_comes_out_as_it_went_in(&*make()).await;
    a_duplicate_is_a_success_and_comes_once(make()).await;
    every_id_is_seen_once(make()).await;
    a_dropped_claim_takes_nothing(make()).await;
    a_claim_waits_for_an_entry(make()).await;
    a_retried_entry_comes_again_and_counts(&*make()).await;
    a_retry_waits_for_its_time(&*make()).await;
    acks_may_come_twice_and_for_anything(&*make()).await;
    a_dead_letter_is_kept_listed_and_redelivered(&*make()).await;
    dead_letters_are_paged_in_order(&*make()).await;
}

async fn an_entry_comes_out_as_it_went_in(queue: &dyn Queue) {
    let mut odd = entry("odd 🦀 $$NOW");
    odd.payload = Bytes::from_static(b"\xff\x00 not text");
    odd.signed_at = None;
    queue.enqueue(odd.clone()).await.unwrap();
    assert_eq!(queue.stats().depth, 1);
    assert_eq!(queue.stats().oldest_received_at, Some(odd.received_at));
    let claimed = claim(queue, 10).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!((&claimed[0].entry, claimed[0].attempts), (&odd, 0));
    assert_eq!(queue.stats().depth, 1, "a claimed entry still counts");
    queue.ack(&receipts(&claimed)).await.unwrap();
    assert_eq!(queue.stats().depth, 0);
    assert_eq!(queue.stats().oldest_received_at, None);
    assert!(is_empty(queue).await);
}

async fn a_duplicate_is_a_success_and_comes_once(queue: Arc<dyn Queue>) {
    let outcomes = join_all((0..50).map(|_| queue.enqueue(entry("same")))).await;
    let new = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Enqueued::New))).count();
    assert_eq!((new, outcomes.iter().filter(|outcome| outcome.is_err()).count()), (1, 0));
    let claimed = claim(&*queue, 100).await;
    assert_eq!(claimed.len(), 1);
    queue.ack(&receipts(&claimed)).await.unwrap();
    assert_eq!(queue.enqueue(entry("same")).await.unwrap(), Enqueued::Duplicate, "also when it is done");
    assert!(is_empty(&*queue).await);
}

async fn every_id_is_seen_once(queue: Arc<dyn Queue>) {
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
                    claimed = queue.claim(7) => claimed.unwrap(),
                    _ = done.acquire() => return seen,
                };
                queue.ack(&receipts(&claimed)).await.unwrap();
                seen.extend(claimed.into_iter().map(|claimed| claimed.entry.event_id));
            }
        }
    }));
    let drained = async {
        while queue.stats().depth > 0 {
            tokio::task::yield_now().await;
        }
        done.close();
    };
    let ((), seen) = timeout(DEADLINE, async {
        tokio::join!(
            async {
                produce.await;
                drained.await;
            },
            consume
        )
    })
    .await
    .expect("all are seen");
    let seen: Vec<String> = seen.into_iter().flatten().collect();
    assert_eq!(seen.len(), 4000);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 4000);
}

async fn a_dropped_claim_takes_nothing(queue: Arc<dyn Queue>) {
    for number in 0..200 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    let mut taken = BTreeSet::new();
    for polls in 0..100 {
        // Dropped after some polls: what it answered counts, what it did not answer must stay.
        let mut claim = std::pin::pin!(queue.claim(3));
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

async fn a_claim_waits_for_an_entry(queue: Arc<dyn Queue>) {
    let (claimed, _) = tokio::join!(claim(&*queue, 1), async {
        tokio::task::yield_now().await;
        queue.enqueue(entry("late")).await.unwrap()
    });
    assert_eq!(claimed[0].entry.event_id, "late");
}

async fn a_retried_entry_comes_again_and_counts(queue: &dyn Queue) {
    queue.enqueue(entry("again")).await.unwrap();
    for attempts in 0..3 {
        let claimed = claim(queue, 1).await;
        assert_eq!((claimed[0].attempts, &claimed[0].entry), (attempts, &entry("again")));
        queue.retry(&receipts(&claimed), Duration::ZERO).await.unwrap();
    }
    assert_eq!(queue.stats().depth, 1);
}

async fn a_retry_waits_for_its_time(queue: &dyn Queue) {
    queue.enqueue(entry("later")).await.unwrap();
    queue.enqueue(entry("soon")).await.unwrap();
    let claimed = claim(queue, 2).await;
    queue.retry(&[claimed[0].receipt], Duration::from_hours(1)).await.unwrap();
    assert!(is_empty(queue).await, "an hour has not passed");
    queue.retry(&[claimed[1].receipt], Duration::from_millis(20)).await.unwrap();
    assert_eq!(claim(queue, 2).await[0].entry.event_id, "soon");
}

async fn acks_may_come_twice_and_for_anything(queue: &dyn Queue) {
    queue.enqueue(entry("a")).await.unwrap();
    queue.enqueue(entry("b")).await.unwrap();
    let first = claim(queue, 1).await;
    queue.ack(&receipts(&first)).await.unwrap();
    queue.ack(&[first[0].receipt, Receipt(u64::MAX)]).await.unwrap();
    queue.retry(&receipts(&first), Duration::ZERO).await.unwrap();
    assert_eq!(queue.stats().depth, 1);
    let second = claim(queue, 5).await;
    assert_eq!((second.len(), second[0].entry.event_id.as_str()), (1, "b"));
}

async fn a_dead_letter_is_kept_listed_and_redelivered(queue: &dyn Queue) {
    queue.enqueue(entry("poison")).await.unwrap();
    let claimed = claim(queue, 1).await;
    queue.dead_letter(claimed[0].receipt, "no user id").await.unwrap();
    queue.dead_letter(claimed[0].receipt, "again").await.unwrap();
    assert_eq!((queue.stats().depth, queue.stats().dead_letters), (0, 1));
    let letters = queue.dead_letters(None, 10).await.unwrap();
    let DeadLetter { id, event_id, reason, payload, .. } = &letters[0];
    assert_eq!(
        (letters.len(), event_id.as_str(), reason.as_str(), payload.as_str()),
        (1, "poison", "no user id", "{\"id\":\"poison\"}")
    );
    queue.retry_dead_letter(*id).await.unwrap();
    assert_eq!((queue.stats().depth, queue.stats().dead_letters), (1, 0));
    let claimed = claim(queue, 1).await;
    assert_eq!(claimed[0].entry, entry("poison"));
    queue.dead_letter(claimed[0].receipt, "still").await.unwrap();
    let id = queue.dead_letters(None, 10).await.unwrap()[0].id;
    queue.drop_dead_letter(id).await.unwrap();
    assert_eq!((queue.stats().depth, queue.stats().dead_letters), (0, 0));
    for outcome in [queue.drop_dead_letter(id).await, queue.retry_dead_letter(id).await] {
        assert!(matches!(outcome, Err(Error::NoSuchDeadLetter { .. })), "{outcome:?}");
    }
}

async fn dead_letters_are_paged_in_order(queue: &dyn Queue) {
    for number in 0..5 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    for claimed in claim(queue, 5).await {
        queue.dead_letter(claimed.receipt, "why").await.unwrap();
    }
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let page = queue.dead_letters(after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        ids.extend(page.into_iter().map(|letter| letter.event_id));
    }
    assert_eq!(ids, ["0", "1", "2", "3", "4"]);
}
