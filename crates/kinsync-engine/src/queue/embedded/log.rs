//! The writer's end of the log: segments that are appended to, one at a time.
//!
//! A process never appends to a segment of an earlier one, nor to one whose sync has failed. Each
//! segment begins with all that is done, so that an earlier one can be deleted without a look at
//! what it said of others.

use std::{path::Path, sync::Arc};

use super::{
    Shared, disk_error,
    ranges::Ranges,
    record::{self, HEADER},
    state::Segment,
    tail::{Fault, Tail},
};
use crate::queue::Error;

#[derive(Debug)]
pub(super) struct Log {
    shared: Arc<Shared>,
    active: Option<(u64, Tail)>,
    /// Never used twice, also when making the file failed.
    next_id: u64,
    segment_bytes: u64,
}

impl Log {
    pub(super) fn new(shared: Arc<Shared>, next_id: u64, segment_bytes: u64) -> Self {
        Self { shared, active: None, next_id, segment_bytes }
    }

    /// Appends without waiting for the disk. `first` is the smallest sequence number in `bytes`
    /// or after it.
    pub(super) fn append(&mut self, bytes: &[u8], first: u64) -> Result<(), Error> {
        self.make_room(bytes.len() as u64, first)?;
        let (id, tail) = self.active.as_mut().expect("just made");
        let path = self.shared.segment_path(*id);
        tail.append(bytes).map_err(|fault| self.give_up(&path, fault))
    }

    /// Makes all that was appended durable. Answers which segment that is in and up to where.
    pub(super) fn sync(&mut self) -> Result<Option<(u64, u64)>, Error> {
        let Some((id, tail)) = self.active.as_mut() else { return Ok(None) };
        let (id, path) = (*id, self.shared.segment_path(*id));
        match tail.sync() {
            Ok(()) => Ok(Some((id, tail.len()))),
            Err(fault) => Err(self.give_up(&path, fault)),
        }
    }

    /// Starts a new segment where there is none or the present one is full.
    pub(super) fn make_room(&mut self, more: u64, first: u64) -> Result<(), Error> {
        let is_full = |tail: &Tail| tail.len() > HEADER && tail.len() + more > self.segment_bytes;
        if self.active.as_ref().is_some_and(|(_, tail)| is_full(tail)) {
            // What is done but not synced is in the next segment too; this spares an alarm about a
            // cut-off end after a power cut.
            let _ = self.sync();
            self.seal();
        }
        if self.active.is_none() { self.start_segment(first) } else { Ok(()) }
    }

    /// Appends no more to the present segment.
    pub(super) fn seal(&mut self) {
        if let Some((id, _)) = self.active.take() {
            self.shared.state().seal(id);
        }
    }

    /// The present segment.
    pub(super) fn active(&self) -> Option<u64> {
        self.active.as_ref().map(|(id, _)| *id)
    }

    fn start_segment(&mut self, first: u64) -> Result<(), Error> {
        let id = self.next_id;
        self.next_id += 1;
        let path = self.shared.segment_path(id);
        let done = self.take_done();
        let mut head = record::header(first);
        record::push_done(&mut head, &done);
        let disk = &*self.shared.disk;
        let made = Tail::create(disk, &path, &head).and_then(|tail| {
            disk.sync_dir(&self.shared.dir)?;
            Ok(tail)
        });
        match made {
            Ok(tail) => {
                let segment = Segment {
                    start: HEADER,
                    end: tail.len(),
                    first,
                    last: first - 1,
                    live: 0,
                    unread: 0,
                    sealed: false,
                };
                self.shared.state().segments.insert(id, segment);
                self.active = Some((id, tail));
                Ok(())
            }
            Err(source) => {
                let _ = disk.remove(&path);
                self.shared.state().unsaved = done;
                Err(disk_error(&path, source))
            }
        }
    }

    fn take_done(&self) -> Ranges {
        let mut state = self.shared.state();
        state.unsaved = Ranges::default();
        state.done.clone()
    }

    fn give_up(&mut self, path: &Path, fault: Fault) -> Error {
        if let Fault::Broken(_) = fault {
            self.seal();
        }
        disk_error(path, fault.into_source())
    }
}
