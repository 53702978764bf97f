//! Reads entries from the log for whoever claims: in order, a chunk at a time.
//!
//! Files are read on tokio's blocking threads: most reads are served from the page cache in
//! microseconds, but a backlog larger than memory waits for the disk, and deliveries must still be
//! answered meanwhile. What was read goes to [`State`](super::state::State) first and is claimed
//! from there without waiting, so that a claim that is dropped takes nothing with it.

use std::{io, path::Path};

use tokio::time::Instant;

use super::{
    Shared, damage,
    disk::DiskFile,
    disk_error,
    frame::{self, Found, Scanner},
    record::{self, Record},
    state::{Held, Item},
};
use crate::queue::{Entry, Error};

/// Bytes of payload read for one claim, about.
const FILL_BYTES: u64 = 8 << 20;

/// Where the next unread entry stands.
#[derive(Debug, Default)]
pub(super) struct Reader {
    segment: u64,
    open: Option<(Box<dyn DiskFile>, Scanner)>,
}

/// Makes up to `max` entries ready to claim: those whose retry has come, then the next unread.
/// Fails only where nothing could be made ready.
pub(super) fn fill(shared: &Shared, max: usize) -> Result<(), Error> {
    let mut reader = shared.reader();
    if shared.state().has_ready() {
        return Ok(());
    }
    let again = read_again(shared, max);
    let next =
        if again.as_ref().is_ok_and(|count| *count >= max) { Ok(()) } else { reader.advance(shared, max) };
    if !shared.state().has_ready() {
        return again.and(next);
    }
    // Whoever asked for this may have gone.
    shared.wake.notify_waiters();
    Ok(())
}

/// Reads the entries again whose time has come.
fn read_again(shared: &Shared, max: usize) -> Result<usize, Error> {
    let now = Instant::now();
    let due = shared.state().take_due(now, max);
    let mut outcome = Ok(due.len());
    let mut file: Option<(u64, Box<dyn DiskFile>)> = None;
    for (sequence, held) in due {
        match read_held(shared, &mut file, held) {
            Ok(Some(entry)) => shared.state().offer_again(sequence, entry),
            Ok(None) => shared.state().lost(sequence),
            Err(source) => {
                shared.state().postpone(sequence, now);
                outcome = Err(disk_error(&shared.segment_path(held.segment), source));
            }
        }
    }
    outcome
}

/// One entry from its place; `None` (and an alarm) where it is damaged. `file` is kept open for
/// the next call.
pub(super) fn read_held(
    shared: &Shared,
    file: &mut Option<(u64, Box<dyn DiskFile>)>,
    held: Held,
) -> io::Result<Option<Entry>> {
    let path = shared.segment_path(held.segment);
    if file.as_ref().is_none_or(|(id, _)| *id != held.segment) {
        *file = Some((held.segment, shared.disk.open(&path)?));
    }
    let (_, file) = file.as_mut().expect("just opened");
    if let Some(Record::Entry(_, entry)) = frame::read_at(&mut **file, held.place)?.and_then(record::decode) {
        return Ok(Some(entry));
    }
    let range = held.place.offset..held.place.offset + held.place.len;
    damage::set_aside(&*shared.disk, &path, &mut **file, &range);
    Ok(None)
}

impl Reader {
    /// Offers about `max` unread entries.
    fn advance(&mut self, shared: &Shared, max: usize) -> Result<(), Error> {
        let (mut count, mut bytes) = (0, 0);
        while count < max && bytes < FILL_BYTES {
            let Some((id, end)) = self.locate(shared)? else { return Ok(()) };
            let path = shared.segment_path(id);
            let (file, scanner) = self.open.as_mut().expect("located");
            scanner.extend_to(end);
            let mut items = Vec::new();
            let read = read_items(shared, &path, &mut **file, scanner, max - count, &mut items);
            count += items.len();
            bytes += items.iter().map(|item| item.place.len).sum::<u64>();
            shared.state().offer(id, items);
            read.map_err(|source| disk_error(&path, source))?;
        }
        Ok(())
    }

    /// The segment to read from and its visible end; `None` when all is read.
    fn locate(&mut self, shared: &Shared) -> Result<Option<(u64, u64)>, Error> {
        loop {
            let mut state = shared.state();
            let Some((&id, segment)) = state.segments.range(self.segment..).next() else { return Ok(None) };
            let (start, end, sealed) = (segment.start, segment.end, segment.sealed);
            if id != self.segment || self.open.is_none() {
                drop(state);
                let path = shared.segment_path(id);
                let file = shared.disk.open(&path).map_err(|source| disk_error(&path, source))?;
                self.segment = id;
                self.open = Some((file, Scanner::new(start..end)));
                continue;
            }
            if self.open.as_ref().is_some_and(|(_, scanner)| scanner.at() < end) {
                return Ok(Some((id, end)));
            }
            state.passed(id);
            if !sealed {
                return Ok(None);
            }
            self.segment = id + 1;
            self.open = None;
        }
    }
}

fn read_items(
    shared: &Shared,
    path: &Path,
    file: &mut dyn DiskFile,
    scanner: &mut Scanner,
    max: usize,
    items: &mut Vec<Item>,
) -> io::Result<()> {
    let from = scanner.at();
    while items.len() < max && scanner.at() - from < FILL_BYTES {
        match scanner.next(file)? {
            Some(Found::Frame(place, body)) => {
                if let Some(Record::Entry(sequence, entry)) = record::decode(body) {
                    items.push(Item { sequence, place, entry });
                }
            }
            Some(Found::Damaged(range) | Found::Torn(range)) => {
                damage::set_aside(&*shared.disk, path, file, &range);
            }
            None => break,
        }
    }
    Ok(())
}
