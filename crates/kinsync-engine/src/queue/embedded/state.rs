//! Claims, leases and counts, in memory. No payload of an entry that is not about to be claimed, and
//! nothing at all of one that was never read.
//!
//! Guarded by one lock that is held for moments; no file is used here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kinsync_core::Micros;
use tokio::time::Instant;

use crate::queue::{Claimed, Entry, EntryId, Stats};

/// What a file holds, of the entries that were not read yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) last_id: i64,
    pub(super) oldest_received_at: Option<Micros>,
    pub(super) dead_letters: DeadLetters,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DeadLetters {
    pub(super) count: u64,
    pub(super) bytes: u64,
}

/// An entry that was read and is neither acked nor dead-lettered.
#[derive(Clone, Copy, Debug)]
struct Held {
    received_at: Micros,
    bytes: u64,
    attempts: u32,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Read, or being read, for the next claim.
    Ready,
    /// Claimed until the lease ends.
    Claimed(Instant),
    /// Can be claimed again from this time on.
    Waiting(Instant),
}

/// An entry as read from the file.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: i64,
    pub(super) bytes: u64,
    /// `None` if its checksum is wrong.
    pub(super) entry: Option<Entry>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) closed: bool,
    /// Whether no entry can be stored now.
    pub(super) is_failing: bool,
    /// Entries that were never read: those after `cursor` up to `last_id`.
    unread: u64,
    cursor: i64,
    last_id: i64,
    bytes: u64,
    dead_letters: DeadLetters,
    held: BTreeMap<i64, Held>,
    /// Ends of leases and of waits, of the held entries.
    due: BTreeSet<(Instant, i64)>,
    ready: VecDeque<(i64, Entry)>,
    /// Acked entries that are still in the file.
    acked: Vec<i64>,
    /// About when the oldest unread entry was received; never later than that.
    unread_since: Option<Micros>,
}

impl State {
    pub(super) fn new(totals: Totals) -> Self {
        let mut state = Self::default();
        state.reset(totals);
        state
    }

    /// Takes over the counts of the entries after the cursor. Held entries stay held: a consumer may be processing them.
    pub(super) fn reset(&mut self, totals: Totals) {
        self.unread = totals.entries;
        self.last_id = totals.last_id;
        self.bytes = totals.bytes + self.held.values().map(|held| held.bytes).sum::<u64>();
        self.dead_letters = totals.dead_letters;
        self.unread_since = totals.oldest_received_at;
    }

    pub(super) fn depth(&self) -> u64 {
        self.unread + self.held.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn stats(&self) -> Stats {
        let held = self.held.first_key_value().map(|(_, held)| held.received_at);
        Stats {
            depth: self.depth(),
            oldest_received_at: [held, self.unread_since].into_iter().flatten().min(),
            bytes: self.bytes,
            dead_letters: self.dead_letters.count,
            dead_letter_bytes: self.dead_letters.bytes,
            is_failing: self.is_failing,
            ..Stats::default()
        }
    }

    /// Makes committed entries visible to claims.
    pub(super) fn publish(&mut self, entries: u64, bytes: u64, last_id: i64, received_at: Option<Micros>) {
        self.unread += entries;
        self.bytes += bytes;
        self.last_id = self.last_id.max(last_id);
        self.unread_since = self.unread_since.or(received_at);
    }

    pub(super) fn set_dead_letters(&mut self, dead_letters: DeadLetters) {
        self.dead_letters = dead_letters;
    }

    /// The range of ids that may hold unread entries, without its start.
    pub(super) fn unread_range(&self) -> (i64, i64) {
        (self.cursor, self.last_id)
    }

    /// Takes over entries that were read in order, up to and including `end`.
    pub(super) fn offer(&mut self, items: Vec<Item>, end: i64) {
        for Item { id, bytes, entry } in items {
            self.unread = self.unread.saturating_sub(1);
            let Some(entry) = entry else {
                self.bytes = self.bytes.saturating_sub(bytes);
                continue;
            };
            let received_at = entry.received_at;
            self.unread_since = Some(received_at);
            self.held.insert(id, Held { received_at, bytes, attempts: 0, phase: Phase::Ready });
            self.ready.push_back((id, entry));
        }
        self.cursor = self.cursor.max(end);
        if self.cursor >= self.last_id {
            // Entries that were not found were lost to damage.
            self.unread = 0;
        }
        if self.unread == 0 {
            self.unread_since = None;
        }
    }

    /// Entries with a lease or a wait that has ended, to be read again. The caller must end with
    /// [`State::offer_again`], [`State::postpone`] or [`State::remove`] for each.
    pub(super) fn take_due(&mut self, now: Instant, max: usize) -> Vec<i64> {
        let mut due = Vec::new();
        while due.len() < max && self.next_due().is_some_and(|at| at <= now) {
            let Some((_, id)) = self.due.pop_first() else { break };
            if let Some(held) = self.held.get_mut(&id) {
                held.phase = Phase::Ready;
                due.push(id);
            }
        }
        due
    }

    /// A due entry was read again.
    pub(super) fn offer_again(&mut self, id: i64, entry: Entry) {
        if self.held.contains_key(&id) {
            self.ready.push_back((id, entry));
        }
    }

    /// A due entry could not be read now.
    pub(super) fn postpone(&mut self, id: i64, until: Instant) {
        self.set_phase(id, Phase::Waiting(until));
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether a read would find something now.
    pub(super) fn has_more(&self, now: Instant) -> bool {
        self.unread > 0 || self.next_due().is_some_and(|at| at <= now)
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Claims up to `max` entries of those that were read, until `lease_end`.
    pub(super) fn claim(&mut self, max: usize, lease_end: Instant) -> Vec<Claimed> {
        let mut claimed = Vec::with_capacity(max.min(self.ready.len()));
        while claimed.len() < max
            && let Some((id, entry)) = self.ready.pop_front()
        {
            // An entry that was acked after its lease ended is not held any more.
            let Some(held) = self.held.get_mut(&id) else { continue };
            let attempts = held.attempts;
            held.attempts += 1;
            self.set_phase(id, Phase::Claimed(lease_end));
            claimed.push(Claimed { id: entry_id(id), attempts, entry });
        }
        claimed
    }

    pub(super) fn is_held(&self, id: i64) -> bool {
        self.held.contains_key(&id)
    }

    /// Removes a held entry; the writer deletes it from the file later.
    pub(super) fn ack(&mut self, id: i64) {
        if self.remove(id) {
            self.acked.push(id);
        }
    }

    /// Removes a held entry that is not in the file any more. False if it was not held.
    pub(super) fn remove(&mut self, id: i64) -> bool {
        let Some(held) = self.held.remove(&id) else { return false };
        self.remove_due(id, held.phase);
        self.bytes = self.bytes.saturating_sub(held.bytes);
        true
    }

    /// Removes an entry that is not in the file any more, whether or not it was read.
    pub(super) fn erase(&mut self, id: i64, bytes: u64) {
        if !self.remove(id) && id > self.cursor {
            self.unread = self.unread.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        self.ready.retain(|(ready, _)| *ready != id);
    }

    /// The claimed entry can be claimed again from `at` on. Nothing happens if it is not claimed.
    pub(super) fn retry(&mut self, id: i64, at: Instant) {
        if self.held.get(&id).is_some_and(|held| matches!(held.phase, Phase::Claimed(_))) {
            self.set_phase(id, Phase::Waiting(at));
        }
    }

    /// Acked entries to delete from the file, in ascending order.
    pub(super) fn take_acked(&mut self) -> Vec<i64> {
        let mut acked = std::mem::take(&mut self.acked);
        acked.sort_unstable();
        acked
    }

    /// They could not be deleted now.
    pub(super) fn restore_acked(&mut self, acked: Vec<i64>) {
        self.acked.extend(acked);
    }

    fn set_phase(&mut self, id: i64, phase: Phase) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let before = std::mem::replace(&mut held.phase, phase);
        self.remove_due(id, before);
        if let Phase::Claimed(at) | Phase::Waiting(at) = phase {
            self.due.insert((at, id));
        }
    }

    fn remove_due(&mut self, id: i64, phase: Phase) {
        if let Phase::Claimed(at) | Phase::Waiting(at) = phase {
            self.due.remove(&(at, id));
        }
    }
}

pub(super) fn entry_id(id: i64) -> EntryId {
    EntryId::new(id.to_string())
}

/// The number in an id; `None` for an id that this queue never gave out.
pub(super) fn number(id: &EntryId) -> Option<i64> {
    id.as_str().parse().ok()
}
