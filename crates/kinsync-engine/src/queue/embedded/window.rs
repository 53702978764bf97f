//! Recent event ids, to detect duplicates.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use aws_lc_rs::digest;
use rusqlite::{Connection, OptionalExtension as _, Row};

/// The first half of the SHA-256 of an event id. Two ids with the same one cannot be made, so a
/// sender cannot hide an event behind another.
pub(super) type Fingerprint = [u8; 16];

pub(super) fn fingerprint(event_id: &str) -> Fingerprint {
    let digest = digest::digest(&digest::SHA256, event_id.as_bytes());
    *digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

/// Reads the fingerprint of the event id in the first column.
pub(super) fn fingerprint_in(row: &Row<'_>) -> rusqlite::Result<Fingerprint> {
    Ok(fingerprint(&String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?)))
}

/// The hash of a fingerprint: its first bytes, because it is a hash already. It has no random key: only a sender with the secret of
/// the webhook could search for event ids that collide.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        // The last write is that of the fingerprint.
        self.0 = bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The last `capacity` fingerprints.
#[derive(Debug)]
pub(super) struct Window {
    capacity: usize,
    known: HashSet<Fingerprint, BuildHasherDefault<FirstBytes>>,
    order: VecDeque<Fingerprint>,
}

impl Window {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, known: HashSet::default(), order: VecDeque::new() }
    }

    pub(super) fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.known.contains(fingerprint)
    }

    /// Adds the newest one, and removes the oldest at the capacity. Returns whether it was added.
    pub(super) fn insert(&mut self, fingerprint: Fingerprint) -> bool {
        if self.capacity == 0 || !self.known.insert(fingerprint) {
            return false;
        }
        self.order.push_back(fingerprint);
        if self.order.len() > self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn remove(&mut self, fingerprint: &Fingerprint) {
        if self.known.remove(fingerprint)
            // Entries leave a spool about in their order, so it is among the first.
            && let Some(at) = self.order.iter().position(|one| one == fingerprint)
        {
            self.order.remove(at);
        }
    }

    /// Removes those of acked entries. Also if the transaction fails: their repetitions are for the other queue.
    pub(super) fn remove_acked(&mut self, sqlite: &Connection, acked: &[i64]) -> rusqlite::Result<()> {
        let mut select = sqlite.prepare_cached("SELECT event_id FROM entries WHERE id = ?1")?;
        for id in acked {
            if let Some(fingerprint) = select.query_row([id], fingerprint_in).optional()? {
                self.remove(&fingerprint);
            }
        }
        Ok(())
    }

    /// Removes the newest ones again that are in `fingerprints`: their transaction failed.
    pub(super) fn remove_newest(&mut self, fingerprints: &[Fingerprint]) {
        for fingerprint in fingerprints.iter().rev() {
            if self.order.back() == Some(fingerprint) {
                self.order.pop_back();
                self.known.remove(fingerprint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use super::*;

    #[test]
    fn fingerprints_have_different_hashes() {
        let hash = |id| BuildHasherDefault::<FirstBytes>::default().hash_one(fingerprint(id));
        assert_ne!(hash("a"), hash("b"));
    }

    #[test]
    fn the_window_drops_the_oldest_and_what_was_not_kept() {
        let mut window = Window::new(2);
        let [a, b, c] = ["a", "b", "c"].map(fingerprint);
        window.insert(a);
        window.insert(b);
        window.insert(c);
        assert!(!window.contains(&a) && window.contains(&b) && window.contains(&c));
        window.remove_newest(&[c]);
        assert!(window.contains(&b) && !window.contains(&c));
    }
}
