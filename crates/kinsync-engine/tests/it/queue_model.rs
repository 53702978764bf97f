//! The embedded queue behaves like a simple model, for any calls in any order.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kinsync_engine::internal::queue::{Enqueued, EntryId, Queue as _, embedded::Config};
use proptest::prelude::*;

use crate::{
    queue_conformance::{claim, entry},
    queue_embedded::open,
};

#[derive(Clone, Debug)]
enum Step {
    Enqueue(u8),
    Claim(usize),
    /// These act on one of the claimed entries.
    Ack(usize),
    Retry(usize),
    DeadLetter(usize),
    /// These on one of the dead letters.
    RetryDead(usize),
    DropDead(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..40_u8).prop_map(Step::Enqueue),
        3 => (1..6_usize).prop_map(Step::Claim),
        3 => any::<usize>().prop_map(Step::Ack),
        1 => any::<usize>().prop_map(Step::Retry),
        1 => any::<usize>().prop_map(Step::DeadLetter),
        1 => any::<usize>().prop_map(Step::RetryDead),
        1 => any::<usize>().prop_map(Step::DropDead),
        1 => Just(Step::Reopen),
    ]
}

/// Entries by what they are: event ids may repeat, as redelivered dead letters do.
#[derive(Debug, Default)]
struct Model {
    seen: BTreeSet<String>,
    /// Not claimed: how often each id is there.
    waiting: BTreeMap<String, usize>,
    claimed: Vec<(EntryId, String)>,
    dead: Vec<(EntryId, String)>,
}

impl Model {
    fn wait(&mut self, id: String) {
        *self.waiting.entry(id).or_default() += 1;
    }

    fn depth(&self) -> usize {
        self.waiting.values().sum::<usize>() + self.claimed.len()
    }
}

fn pick<T>(from: &mut Vec<T>, at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(at % from.len()))
}

async fn run(steps: Vec<Step>) {
    let config = Config::default();
    let dir = tempfile::tempdir().unwrap();
    let mut queue = open(dir.path(), config).unwrap();
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Enqueue(number) => {
                let id = number.to_string();
                let is_new = model.seen.insert(id.clone());
                let outcome = queue.enqueue(entry(&id)).await.unwrap();
                assert_eq!(outcome, if is_new { Enqueued::New } else { Enqueued::Duplicate });
                if is_new {
                    model.wait(id);
                }
            }
            Step::Claim(max) if !model.waiting.is_empty() => {
                for claimed in claim(&queue, max).await {
                    let id = claimed.entry.event_id.clone();
                    assert_eq!(claimed.entry, entry(&id));
                    let count = model.waiting.get_mut(&id).expect("nothing comes that is not there");
                    *count -= 1;
                    model.waiting.retain(|_, count| *count > 0);
                    model.claimed.push((claimed.id, id));
                }
            }
            Step::Claim(_) => {}
            Step::Ack(at) => {
                if let Some((entry_id, _)) = pick(&mut model.claimed, at) {
                    queue.ack(&[entry_id]).await.unwrap();
                }
            }
            Step::Retry(at) => {
                if let Some((entry_id, id)) = pick(&mut model.claimed, at) {
                    queue.retry(&[entry_id], Duration::ZERO).await.unwrap();
                    model.wait(id);
                }
            }
            Step::DeadLetter(at) => {
                if let Some((entry_id, id)) = pick(&mut model.claimed, at) {
                    queue.dead_letter(&[(entry_id.clone(), "why".into())]).await.unwrap();
                    model.dead.push((entry_id, id));
                }
            }
            Step::RetryDead(at) => {
                if let Some((letter, id)) = pick(&mut model.dead, at) {
                    queue.retry_dead_letter(&letter).await.unwrap();
                    model.wait(id);
                }
            }
            Step::DropDead(at) => {
                if let Some((letter, _)) = pick(&mut model.dead, at) {
                    queue.drop_dead_letter(&letter).await.unwrap();
                }
            }
            Step::Reopen => {
                queue.close().await;
                queue = open(dir.path(), config).unwrap();
                for (_, id) in std::mem::take(&mut model.claimed) {
                    model.wait(id);
                }
            }
        }
        assert_eq!(queue.stats().await.unwrap().depth, model.depth() as u64);
        let mut dead: Vec<_> = model.dead.clone();
        dead.sort_by_key(|(id, _)| id.as_str().parse::<u64>().unwrap());
        let letters = queue.dead_letters(None, 100).await.unwrap();
        assert_eq!(letters.into_iter().map(|dead| (dead.id, dead.event_id)).collect::<Vec<_>>(), dead);
    }
}

/// As [`run`], without enqueueing an id again that a reopened queue may have forgotten.
fn with_fresh_ids(steps: Vec<Step>) -> Vec<Step> {
    let mut reopened = false;
    let mut next = 100_u8;
    let fresh = |step| match step {
        Step::Enqueue(_) if reopened => {
            next = next.saturating_add(1);
            (next < u8::MAX).then_some(Step::Enqueue(next))
        }
        step => {
            reopened |= matches!(step, Step::Reopen);
            Some(step)
        }
    };
    steps.into_iter().filter_map(fresh).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_queue_does_what_the_model_does(steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(with_fresh_ids(steps)));
    }
}
