//! What is in the queue: counts, what is claimed, what is done. No payload of an entry that nobody
//! asked for, and nothing at all for one that waits its first turn.
//!
//! Guarded by one lock, held for moments; no file is touched here.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use kinsync_core::Micros;
use tokio::time::Instant;

use super::{frame::Place, ranges::Ranges};
use crate::queue::{Claimed, Entry, Receipt, Stats};

/// One file of the log.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Where its first frame may stand.
    pub(super) start: u64,
    /// Up to where it is good and durable. Always the end of a frame.
    pub(super) end: u64,
    /// Sequence numbers of its entries lie between these.
    pub(super) first: u64,
    pub(super) last: u64,
    /// Entries that are not done.
    pub(super) live: u64,
    /// Those of them that the reader has not passed.
    pub(super) unread: u64,
    /// Nothing is appended any more.
    pub(super) sealed: bool,
}

/// An entry the reader has passed and that is not done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) segment: u64,
    pub(super) place: Place,
    received_at: Micros,
    attempts: u32,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Read and offered to whoever claims next.
    Ready,
    Claimed,
    /// Comes again later.
    Waiting,
}

/// An entry as read from the log.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) sequence: u64,
    pub(super) place: Place,
    pub(super) entry: Entry,
}

/// What the writer made durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Appended {
    pub(super) segment: u64,
    pub(super) end: u64,
    pub(super) entries: u64,
    pub(super) last: u64,
    pub(super) received_at: Micros,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) segments: BTreeMap<u64, Segment>,
    /// Done, of the entries whose segment is still there.
    pub(super) done: Ranges,
    /// Done, and the log does not say so yet.
    pub(super) unsaved: Ranges,
    /// Segments in which everything is done: their files can go.
    pub(super) spent: Vec<u64>,
    pub(super) closed: bool,
    pub(super) dead_letters: u64,
    pub(super) dead_bytes: u64,
    held: BTreeMap<u64, Held>,
    waiting: BinaryHeap<Reverse<(Instant, u64)>>,
    ready: VecDeque<(u64, Entry)>,
    /// About when the oldest unread entry was received.
    unread_since: Option<Micros>,
}

impl State {
    pub(super) fn depth(&self) -> u64 {
        self.segments.values().map(|segment| segment.live).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.end).sum::<u64>() + self.dead_bytes
    }

    pub(super) fn stats(&self) -> Stats {
        let ready = self.ready.front().map(|(_, entry)| entry.received_at);
        let held = self.held.first_key_value().map(|(_, held)| held.received_at);
        Stats {
            depth: self.depth(),
            oldest_received_at: [ready, held, self.unread_since].into_iter().flatten().min(),
            bytes: self.bytes(),
            dead_letters: self.dead_letters,
        }
    }

    /// The batch is durable: whoever claims may see it.
    pub(super) fn publish(&mut self, appended: Appended) {
        let segment = self.segments.get_mut(&appended.segment).expect("the writer's own segment");
        segment.end = appended.end;
        segment.last = segment.last.max(appended.last);
        segment.live += appended.entries;
        segment.unread += appended.entries;
        self.unread_since.get_or_insert(appended.received_at);
    }

    /// Nothing is appended to the segment any more.
    pub(super) fn seal(&mut self, id: u64) {
        if let Some(segment) = self.segments.get_mut(&id) {
            segment.sealed = true;
        }
        self.retire_if_spent(id);
    }

    /// Takes what was read of a segment over, but for what is done.
    pub(super) fn offer(&mut self, id: u64, items: Vec<Item>) {
        let Some(last) = items.last().map(|item| item.entry.received_at) else { return };
        let Some(segment) = self.segments.get_mut(&id) else { return };
        for Item { sequence, place, entry } in items {
            if self.done.contains(sequence) || self.held.contains_key(&sequence) {
                continue;
            }
            segment.unread = segment.unread.saturating_sub(1);
            let received_at = entry.received_at;
            self.held
                .insert(sequence, Held { segment: id, place, received_at, attempts: 0, phase: Phase::Ready });
            self.ready.push_back((sequence, entry));
        }
        let is_unread = self.segments.values().any(|segment| segment.unread > 0);
        self.unread_since = is_unread.then_some(last);
    }

    /// The reader came to the end of what is visible of the segment: entries that it did not come
    /// upon are lost to damage.
    pub(super) fn passed(&mut self, id: u64) {
        let Some(segment) = self.segments.get_mut(&id) else { return };
        segment.live -= segment.unread;
        segment.unread = 0;
        self.retire_if_spent(id);
        if self.segments.values().all(|segment| segment.unread == 0) {
            self.unread_since = None;
        }
    }

    /// Entries whose time has come, to be read again. Whoever takes them must end with
    /// [`State::offer_again`], [`State::postpone`] or [`State::lost`].
    pub(super) fn take_due(&mut self, now: Instant, max: usize) -> Vec<(u64, Held)> {
        let mut due = Vec::new();
        while due.len() < max && self.next_due().is_some_and(|at| at <= now) {
            let Some(Reverse((_, sequence))) = self.waiting.pop() else { break };
            due.extend(self.held.get(&sequence).map(|held| (sequence, *held)));
        }
        due
    }

    /// A due entry was read again.
    pub(super) fn offer_again(&mut self, sequence: u64, entry: Entry) {
        if let Some(held) = self.held.get_mut(&sequence) {
            held.phase = Phase::Ready;
            self.ready.push_back((sequence, entry));
        }
    }

    /// A due entry could not be read now.
    pub(super) fn postpone(&mut self, sequence: u64, until: Instant) {
        self.waiting.push(Reverse((until, sequence)));
    }

    /// An entry has become unreadable.
    pub(super) fn lost(&mut self, sequence: u64) {
        self.end(sequence);
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether reading would find something now.
    pub(super) fn has_more(&self, now: Instant) -> bool {
        self.segments.values().any(|segment| segment.unread > 0)
            || self.next_due().is_some_and(|at| at <= now)
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Claims up to `max` entries of those that were read.
    pub(super) fn claim(&mut self, max: usize) -> Vec<Claimed> {
        let count = max.min(self.ready.len());
        let held = &mut self.held;
        let claimed = self.ready.drain(..count).filter_map(|(sequence, entry)| {
            let held = held.get_mut(&sequence)?;
            held.phase = Phase::Claimed;
            let attempts = held.attempts;
            held.attempts += 1;
            Some(Claimed { receipt: Receipt(sequence), attempts, entry })
        });
        claimed.collect()
    }

    /// The claimed entry is done. Nothing happens where it is not claimed.
    pub(super) fn finish(&mut self, receipt: Receipt) {
        if self.claimed(receipt).is_some() {
            self.end(receipt.0);
        }
    }

    /// The claimed entry comes again at `at`. Nothing happens where it is not claimed.
    pub(super) fn retry(&mut self, receipt: Receipt, at: Instant) {
        let Some(held) = self.held.get_mut(&receipt.0) else { return };
        if held.phase == Phase::Claimed {
            held.phase = Phase::Waiting;
            self.waiting.push(Reverse((at, receipt.0)));
        }
    }

    /// Where the entry stands, if it is claimed.
    pub(super) fn claimed(&self, receipt: Receipt) -> Option<Held> {
        self.held.get(&receipt.0).filter(|held| held.phase == Phase::Claimed).copied()
    }

    fn end(&mut self, sequence: u64) {
        let Some(held) = self.held.remove(&sequence) else { return };
        self.done.insert(sequence);
        self.unsaved.insert(sequence);
        if let Some(segment) = self.segments.get_mut(&held.segment) {
            segment.live -= 1;
        }
        self.retire_if_spent(held.segment);
    }

    fn retire_if_spent(&mut self, id: u64) {
        let Some(segment) = self.segments.get(&id).filter(|segment| segment.sealed && segment.live == 0)
        else {
            return;
        };
        for done in [&mut self.done, &mut self.unsaved] {
            if segment.first <= segment.last {
                done.remove_range(segment.first, segment.last);
            }
        }
        self.segments.remove(&id);
        self.spent.push(id);
    }
}
