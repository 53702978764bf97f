//! Finds damage in the write-ahead log of `SQLite`. `SQLite` ends its recovery at the first frame with a
//! wrong checksum, which is right for an append that was cut off, and silent about damage in the
//! middle: then commits that were synced are missing.
//!
//! The format is described in <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::{fs, io, path::Path};

use kinsync_core::Micros;

use super::{file::NAME, repair};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Raises an alarm if synced commits are missing, and keeps a copy of the log in `damaged/`.
pub(super) fn examine(dir: &Path, now: Micros) {
    let path = repair::beside(&dir.join(NAME), "-wal");
    // A log that cannot be read shows when the file is opened.
    let Ok(log) = fs::read(&path) else { return };
    if !is_damaged(&log) {
        return;
    }
    metrics::counter!("kinsync_queue_damaged_records_total").increment(1);
    let kept = repair::aside(dir, now).and_then(|aside| copy(&path, &aside));
    tracing::error!(
        file = %path.display(), kept = kept.is_ok(),
        "the queue's write-ahead log ends early although commits follow: the disk damaged it, or the power failed; \
         check the disk; the next scan repairs what was lost"
    );
}

fn copy(path: &Path, aside: &Path) -> io::Result<()> {
    fs::copy(path, aside.join(format!("{NAME}-wal"))).map(drop)
}

/// Whether commits follow a frame that is not right.
///
/// A commit of entries is synced before the next one is written. So a power cut can spoil the last of
/// them and the acks before it; where more than one commit follows a spoiled frame, the disk did it,
/// or the power failed after several batches of acks, which is no loss.
fn is_damaged(log: &[u8]) -> bool {
    let Some((header, frames)) = log.split_at_checked(HEADER) else { return false };
    if header.iter().all(|byte| *byte == 0) {
        return false;
    }
    let little_endian = match word(header, 0) {
        0x377f_0682 => true,
        0x377f_0683 => false,
        _ => return !frames.is_empty(),
    };
    let mut sum = checksum(little_endian, (0, 0), &header[..24]);
    if sum != (word(header, 24), word(header, 28)) {
        return !frames.is_empty();
    }
    let size = FRAME_HEADER + word(header, 8) as usize;
    let salts = &header[16..24];
    let mut frames = frames.chunks_exact(size);
    for frame in frames.by_ref() {
        let next = checksum(little_endian, sum, &frame[..8]);
        let next = checksum(little_endian, next, &frame[FRAME_HEADER..]);
        let is_right = &frame[8..16] == salts && next == (word(frame, 16), word(frame, 20));
        if !is_right {
            break;
        }
        sum = next;
    }
    // Frames of an earlier round of the log have other salts.
    let mut later = frames.filter(|frame| &frame[8..16] == salts);
    later.by_ref().any(|frame| word(frame, 4) > 0) && later.next().is_some()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn checksum(little_endian: bool, (mut s0, mut s1): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let (words, _) = bytes.as_chunks::<8>();
    for [a, b, c, d, e, f, g, h] in words {
        let (first, second) = ([*a, *b, *c, *d], [*e, *f, *g, *h]);
        let read = |word| if little_endian { u32::from_le_bytes(word) } else { u32::from_be_bytes(word) };
        s0 = s0.wrapping_add(read(first)).wrapping_add(s1);
        s1 = s1.wrapping_add(read(second)).wrapping_add(s0);
    }
    (s0, s1)
}
