//! The exploration of every reachable state.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, hash_map::DefaultHasher},
    fmt::Write as _,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    ops::Deref,
};

use super::{History, properties::violation, steps::Steps, world::World};
use crate::{scan_watermark::ScanWatermarks, store::Row};

/// A value that many states share, with its hash. It is never freed: there are few thousand of them.
#[derive(Debug)]
pub(in crate::reconcile) struct Shared<T: 'static> {
    value: &'static T,
    pub(in crate::reconcile) hash: u64,
}

impl<T: Hash> Shared<T> {
    pub(in crate::reconcile) fn new(value: T) -> Self {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&value);
        Self { value: Box::leak(Box::new(value)), hash }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl<T> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
    }
}

/// Hashes words. In a debug build it takes a tenth of the time of the hasher of the standard library. Each step is a
/// bijection of the former hash, so that two states collide as rarely as random numbers do.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct Words(u64);

impl Hasher for Words {
    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(in crate::reconcile) fn hash(value: impl Hash) -> u64 {
    let mut hasher = Words::default();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The results of a function by the hashes of its arguments: the real code runs once for each of them.
#[derive(Debug)]
pub(in crate::reconcile) struct Memo<T>(RefCell<HashMap<u64, T, BuildHasherDefault<Words>>>);

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T: Copy> Memo<T> {
    pub(in crate::reconcile) fn get(&self, arguments: impl Hash, compute: impl FnOnce() -> T) -> T {
        *self.0.borrow_mut().entry(hash(arguments)).or_insert_with(compute)
    }
}

/// What a step does to a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effect {
    /// The row after it, if it is written.
    pub(super) next: Option<Shared<Row>>,
    /// Whether a check of the user is requested.
    pub(super) is_recheck: bool,
    /// Whether the difference of the user could be ordered.
    pub(super) is_decided: bool,
    /// Whether there was a difference.
    pub(super) differs: bool,
}

/// Results of the real code.
#[derive(Debug, Default)]
pub(super) struct Memos {
    pub(super) effects: Memo<Effect>,
    pub(super) records: Memo<Shared<ScanWatermarks>>,
    pub(super) stale: Memo<bool>,
    pub(super) problems: Memo<Option<&'static str>>,
}

/// What happens in a step, and the number of the event or the user.
pub(super) type Label = (&'static str, usize);

/// Explores every reachable state and returns their number. Panics with the steps to a violation.
pub(super) fn explore(history: &History) -> usize {
    let memos = Memos::default();
    let start = World::new(history);
    let mut known: HashSet<u64, BuildHasherDefault<Words>> = HashSet::default();
    known.insert(hash(start));
    let mut steps: Vec<(u32, Label)> = vec![(0, ("start", 0))];
    let (mut frontier, mut successors, mut transitions) = (vec![(0, start)], Vec::new(), 0);
    while let Some((at, world)) = frontier.pop() {
        Steps { history, memos: &memos, from: &world, to: &mut successors }.all();
        transitions += successors.len();
        for (label, next) in successors.drain(..) {
            if !known.insert(hash(next)) {
                continue;
            }
            steps.push((at, label));
            if let Some((user, problem)) = violation(history, &memos, &world, &next) {
                panic!("user {user} {problem}: {:#?}{}", *next.rows[user], path(&steps));
            }
            frontier.push((u32::try_from(steps.len() - 1).expect("fewer states"), next));
        }
    }
    eprintln!("{} states, {transitions} steps: {history:?}", known.len());
    known.len()
}

fn path(steps: &[(u32, Label)]) -> String {
    let (mut at, mut labels) = (steps.len() - 1, Vec::new());
    while at > 0 {
        let (before, label) = steps[at];
        labels.push(label);
        at = before as usize;
    }
    labels.iter().rev().fold(String::new(), |mut text, (step, of)| {
        _ = write!(text, "\n  {step} {of}");
        text
    })
}
