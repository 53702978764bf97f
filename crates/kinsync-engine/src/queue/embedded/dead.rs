//! The dead letters: one file, rewritten when much of it is gone.
//!
//! Belongs to the writer thread alone. Whatever is in the index is durable.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    damage,
    disk::{Disk, DiskFile},
    disk_error,
    frame::{self, Found, Place, Scanner},
    ranges::Ranges,
    record::{self, Dead, HEADER, HEADER_LEN, Header, Record},
    tail::{Fault, Tail},
};
use crate::queue::Error;

/// Less garbage than this is not worth a rewrite while running.
const GARBAGE: u64 = 1 << 20;

/// How many dead letters the file holds now. Only reads: the queue may be open, in another process too.
pub(super) fn count_in(path: &Path) -> Result<usize, Error> {
    let failed = |source| disk_error(path, source);
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => opened.map_err(failed)?,
    };
    let size = file.size().map_err(failed)?;
    let mut head = [0; HEADER_LEN];
    let read = DiskFile::read(&mut file, 0, &mut head).map_err(failed)?;
    let start = match record::read_header(&head[..read]) {
        Header::Newer => return Err(Error::Newer { path: path.display().to_string() }),
        Header::Good { .. } => HEADER,
        Header::Short | Header::Damaged => 0,
    };
    let mut scanner = Scanner::new(start..size);
    let mut ids = BTreeSet::new();
    while let Some(found) = scanner.next(&mut file).map_err(failed)? {
        let Found::Frame(_, body) = found else { continue };
        match record::decode(body) {
            Some(Record::Dead(dead)) => _ = ids.insert(dead.id),
            Some(Record::Removed(id)) => _ = ids.remove(&id),
            _ => {}
        }
    }
    Ok(ids.len())
}

#[derive(Debug)]
pub(super) struct DeadLog {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// `None` before the first append and after a fault: the next append rewrites the file.
    tail: Option<Tail>,
    index: BTreeMap<u64, Place>,
    live_bytes: u64,
    /// Removed ones that the file still speaks of.
    removed: Ranges,
    /// Damaged bytes could not be copied: do not rewrite them away.
    keep_damage: bool,
}

impl DeadLog {
    pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, Error> {
        let path = dir.join("dead.log");
        let mut log = Self {
            disk,
            path,
            tail: None,
            index: BTreeMap::new(),
            live_bytes: 0,
            removed: Ranges::default(),
            keep_damage: false,
        };
        if log.disk.exists(&log.path) {
            log.read()?;
        }
        Ok(log)
    }

    fn read(&mut self) -> Result<(), Error> {
        let failed = |source| disk_error(&self.path, source);
        let mut file = self.disk.open(&self.path).map_err(failed)?;
        let size = file.size().map_err(failed)?;
        let mut head = [0; HEADER_LEN];
        let read = file.read(0, &mut head).map_err(failed)?;
        let start = match record::read_header(&head[..read]) {
            Header::Newer => return Err(Error::Newer { path: self.path.display().to_string() }),
            Header::Good { .. } => HEADER,
            Header::Short | Header::Damaged => 0,
        };
        let mut scanner = Scanner::new(start..size);
        let mut good = start;
        while let Some(found) = scanner.next(&mut *file).map_err(|source| disk_error(&self.path, source))? {
            match found {
                Found::Frame(place, body) => {
                    self.replay(place, record::decode(body));
                    good = scanner.at();
                }
                Found::Damaged(range) => {
                    self.keep_damage |= !damage::set_aside(&*self.disk, &self.path, &mut *file, &range);
                    good = scanner.at();
                }
                Found::Torn(range) => tracing::debug!(from = range.start, "dropped the torn end of dead.log"),
            }
        }
        self.tail = (good >= HEADER).then(|| Tail::resume(file, good).ok()).flatten();
        Ok(())
    }

    fn replay(&mut self, place: Place, record: Option<Record>) {
        match record {
            Some(Record::Dead(dead)) => self.put(dead.id, place),
            Some(Record::Removed(id)) => self.take_out(id),
            _ => {}
        }
    }

    fn put(&mut self, id: u64, place: Place) {
        self.live_bytes += place.len;
        if let Some(before) = self.index.insert(id, place) {
            self.live_bytes -= before.len;
        }
    }

    fn take_out(&mut self, id: u64) {
        self.removed.insert(id);
        if let Some(place) = self.index.remove(&id) {
            self.live_bytes -= place.len;
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.index.len() as u64
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.tail.as_ref().map_or(self.live_bytes, Tail::len)
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.index.contains_key(&id)
    }

    /// All ids that the file speaks of, present and removed.
    pub(super) fn ids(&self) -> Ranges {
        let mut ids = self.removed.clone();
        self.index.keys().for_each(|id| ids.insert(*id));
        ids
    }

    /// The ids of those that are gone and still in the file.
    pub(super) fn removed(&self) -> &Ranges {
        &self.removed
    }

    /// Sets entries aside, durably. Ids that are there already are left as they are.
    pub(super) fn add(&mut self, letters: &[Dead]) -> Result<(), Error> {
        let new = letters.iter().filter(|dead| !self.index.contains_key(&dead.id));
        let mut buffer = Vec::new();
        let mut places = Vec::new();
        for dead in new {
            let start = buffer.len() as u64;
            record::push_dead(&mut buffer, dead);
            places.push((dead.id, start, buffer.len() as u64 - start));
        }
        let at = self.append(&buffer)?;
        for (id, start, len) in places {
            self.put(id, Place { offset: at + start, len });
        }
        Ok(())
    }

    /// Removes a dead letter, durably.
    pub(super) fn remove(&mut self, id: u64) -> Result<(), Error> {
        if !self.contains(id) {
            return Err(Error::NoSuchDeadLetter { id });
        }
        let mut buffer = Vec::new();
        record::push_removed(&mut buffer, id);
        self.append(&buffer)?;
        self.take_out(id);
        Ok(())
    }

    /// One dead letter in full.
    pub(super) fn load(&self, id: u64) -> Result<Dead, Error> {
        let place = self.index.get(&id).ok_or(Error::NoSuchDeadLetter { id })?;
        self.load_at(*place).map_err(|source| disk_error(&self.path, source))
    }

    /// Up to `limit` in the order of their ids, from the one after `after`.
    pub(super) fn list(&self, after: Option<u64>, limit: usize) -> Result<Vec<Dead>, Error> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.index.range((from, Bound::Unbounded)).take(limit);
        some.map(|(_, place)| self.load_at(*place))
            .collect::<Result<_, _>>()
            .map_err(|source| disk_error(&self.path, source))
    }

    fn load_at(&self, place: Place) -> io::Result<Dead> {
        let mut file = self.disk.open(&self.path)?;
        match frame::read_at(&mut *file, place)?.and_then(record::decode) {
            Some(Record::Dead(dead)) => Ok(dead),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a dead letter is damaged")),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        if self.tail.is_none() {
            self.rewrite().map_err(|source| disk_error(&self.path, source))?;
        }
        let tail = self.tail.as_mut().expect("just made");
        let at = tail.len();
        if bytes.is_empty() {
            return Ok(at);
        }
        match tail.append(bytes).and_then(|()| tail.sync()) {
            Ok(()) => Ok(at),
            Err(fault) => {
                if let Fault::Broken(_) = fault {
                    self.tail = None;
                }
                Err(disk_error(&self.path, fault.into_source()))
            }
        }
    }

    /// Frees the room of those that are gone, if that is much. Failing to do so is no failure.
    pub(super) fn compact(&mut self, at_start: bool) {
        let garbage = self.bytes().saturating_sub(HEADER + self.live_bytes);
        let is_much = garbage > if at_start { 0 } else { GARBAGE.max(self.live_bytes) };
        if self.keep_damage || self.tail.is_none() || !is_much {
            return;
        }
        if let Err(error) = self.rewrite() {
            tracing::warn!(%error, "dead letters could not be compacted, they take more room than they need");
        }
    }

    /// Writes those that are there to a new file and puts it in the place of the old one. Only
    /// reads back what was synced, so it is right after a fault as well.
    fn rewrite(&mut self) -> io::Result<()> {
        let new_path = self.path.with_extension("log.new");
        let mut new = Tail::create(&*self.disk, &new_path, &record::header(0))?;
        let mut index = BTreeMap::new();
        for (id, place) in &self.index {
            let Ok(dead) = self.load_at(*place) else {
                tracing::error!(id, "a dead letter cannot be read any more and was left out");
                continue;
            };
            let mut bytes = Vec::new();
            record::push_dead(&mut bytes, &dead);
            index.insert(*id, Place { offset: new.len(), len: bytes.len() as u64 });
            new.append(&bytes).map_err(Fault::into_source)?;
        }
        new.sync().map_err(Fault::into_source)?;
        self.disk.rename(&new_path, &self.path)?;
        // From here on the name leads to the new file, though a power cut may bring the old one
        // back: nothing is appended before that is ruled out.
        self.tail = None;
        self.live_bytes = index.values().map(|place| place.len).sum();
        self.index = index;
        self.disk.sync_dir(self.path.parent().unwrap_or(Path::new("")))?;
        self.removed = Ranges::default();
        self.tail = Some(new);
        Ok(())
    }
}
