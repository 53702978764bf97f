//! Finds out at the start what an earlier process left.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    damage,
    dead::DeadLog,
    disk::{Disk, DiskFile},
    disk_error,
    frame::{Found, Scanner},
    ranges::Ranges,
    record::{self, HEADER, HEADER_LEN, Header, Record},
    segment_path,
    state::{Segment, State},
    window::{self, Fingerprint, Window},
};
use crate::queue::Error;

#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) window: Window,
    pub(super) dead: DeadLog,
    pub(super) next_segment: u64,
    pub(super) next_sequence: u64,
}

/// What the segments say, taken together.
#[derive(Debug)]
struct Findings {
    /// Each with the sequence numbers that are in it.
    segments: BTreeMap<u64, (Segment, Ranges)>,
    done: Ranges,
    window: Window,
    next_sequence: u64,
}

/// Reads the whole queue once, with a chunk of it in memory at a time.
pub(super) fn recover(disk: &Arc<dyn Disk>, dir: &Path, window: Window) -> Result<Recovered, Error> {
    let ids = segment_ids(&**disk, dir)?;
    let named = disk.sync_dir(dir).is_ok();
    let mut findings =
        Findings { segments: BTreeMap::new(), done: Ranges::default(), window, next_sequence: 1 };
    for id in &ids {
        let seen = findings.read_segment(&**disk, dir, *id, ids.last() == Some(id))?;
        if named {
            for fingerprint in seen {
                findings.window.insert(fingerprint);
            }
        }
    }
    let mut dead = DeadLog::open(Arc::clone(disk), dir)?;
    let mut state = State::default();
    state.dead_letters = dead.count();
    settle(&mut state, &mut findings, &mut dead);
    state.dead_bytes = dead.bytes();
    let last_dead = dead.ids().last().unwrap_or(0);
    Ok(Recovered {
        state,
        window: findings.window,
        next_segment: ids.last().map_or(1, |id| id + 1),
        next_sequence: findings.next_sequence.max(last_dead + 1),
        dead,
    })
}

fn segment_ids(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, Error> {
    let names = disk.list(dir).map_err(|source| disk_error(dir, source))?;
    let numbers = names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok());
    let mut ids: Vec<u64> = numbers.collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Decides what is still to do.
fn settle(state: &mut State, findings: &mut Findings, dead: &mut DeadLog) {
    let mut entries = Ranges::default();
    findings.segments.values().for_each(|(_, sequences)| entries.extend(sequences.iter()));
    let done = findings.done.intersection(&entries);
    // An entry that has a dead letter is done, though nothing else may say so any more.
    let set_aside = dead.ids().intersection(&entries);
    let removed = dead.removed().intersection(&entries);
    if removed.intersection(&done) == removed {
        dead.compact(true);
    }
    state.done = done.clone();
    for (start, end) in set_aside.iter() {
        (start..=end).filter(|id| !done.contains(*id)).for_each(|id| state.unsaved.insert(id));
    }
    state.done.extend(set_aside.iter());
    for (id, (mut segment, sequences)) in std::mem::take(&mut findings.segments) {
        segment.live = sequences.count() - sequences.intersection(&state.done).count();
        segment.unread = segment.live;
        state.segments.insert(id, segment);
        state.seal(id);
    }
}

impl Findings {
    /// Answers the event ids by which duplicates may be known from now on. A killed process may have
    /// written what it never synced, and told nobody that it is durable. A duplicate of it is told so
    /// at once, so it is synced here; where that fails, a duplicate is taken for new.
    fn read_segment(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        id: u64,
        is_last: bool,
    ) -> Result<Vec<Fingerprint>, Error> {
        let path = segment_path(dir, id);
        let failed = |source| disk_error(&path, source);
        let mut file = disk.open(&path).map_err(failed)?;
        let size = file.size().map_err(failed)?;
        let mut head = [0; HEADER_LEN];
        let read = file.read(0, &mut head).map_err(failed)?;
        let start = match record::read_header(&head[..read]) {
            Header::Newer => return Err(Error::Newer { path: path.display().to_string() }),
            Header::Good { first } => {
                self.next_sequence = self.next_sequence.max(first);
                HEADER
            }
            Header::Short | Header::Damaged => 0,
        };
        let (mut end, mut sequences, mut torn, mut seen) = (start, Ranges::default(), None, Vec::new());
        let mut scanner = Scanner::new(start..size);
        while let Some(found) = scanner.next(&mut *file).map_err(failed)? {
            match found {
                Found::Frame(_, body) => self.replay(record::decode(body), &mut sequences, &mut seen),
                Found::Damaged(range) => {
                    damage::set_aside(disk, &path, &mut *file, &range);
                }
                Found::Torn(range) => {
                    torn = Some(range);
                    break;
                }
            }
            end = scanner.at();
        }
        if let Some(range) = torn {
            drop_end(disk, &path, &mut *file, &range, is_last);
        }
        let first = sequences.iter().next().map_or(1, |(first, _)| first);
        let last = sequences.last().unwrap_or(0);
        let segment = Segment { start, end, first, last, live: 0, unread: 0, sealed: false };
        self.segments.insert(id, (segment, sequences));
        if let Err(error) = file.sync() {
            tracing::debug!(%error, path = %path.display(), "an earlier part of the queue cannot be synced");
            seen.clear();
        }
        Ok(seen)
    }

    fn replay(&mut self, record: Option<Record>, sequences: &mut Ranges, seen: &mut Vec<Fingerprint>) {
        match record {
            Some(Record::Entry(sequence, entry)) => {
                sequences.insert(sequence);
                seen.push(window::fingerprint(&entry.event_id));
                self.next_sequence = self.next_sequence.max(sequence + 1);
            }
            Some(Record::Done(ranges)) => {
                self.done.extend(ranges);
                self.next_sequence = self.next_sequence.max(self.done.last().map_or(1, |last| last + 1));
            }
            _ => {}
        }
    }
}

/// The end of the last segment is what a crash cut off: nobody was told that it is durable. It is
/// cut away, so that the same in an earlier segment is known to be damage.
fn drop_end(
    disk: &dyn Disk,
    path: &Path,
    file: &mut dyn DiskFile,
    range: &std::ops::Range<u64>,
    is_last: bool,
) {
    if !is_last {
        damage::set_aside(disk, path, file, range);
        return;
    }
    tracing::debug!(path = %path.display(), from = range.start, to = range.end, "dropped an append that was cut off");
    if let Err(error) = file.truncate(range.start).and_then(|()| file.sync()) {
        tracing::debug!(%error, "the cut-off append stays in the file");
    }
}
