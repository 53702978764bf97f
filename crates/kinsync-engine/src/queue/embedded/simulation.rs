//! The queue on a disk that loses power, fills up and fails: what was acknowledged is there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use kinsync_core::Micros;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::timeout;

use super::{
    Config, EmbeddedQueue,
    disk::{Disk, DiskFile},
};
use crate::{
    clock::Clock,
    queue::{Enqueued, Entry, Error, Queue},
};

/// A file: what is read from it, and what a power cut leaves of it.
#[derive(Clone, Debug, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Failed to sync: a later sync calls itself a success and leaves zeros here.
    forgotten: Vec<Range<usize>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fails {
    Never,
    /// This operation alone.
    Once(usize),
    /// This one and all after it.
    From(usize),
}

#[derive(Clone, Debug)]
struct Contents {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    fails: Fails,
    operations: usize,
    failed: usize,
}

impl Contents {
    /// Counts an operation that changes the disk, and fails it if it is its turn.
    fn operate(&mut self, kind: io::ErrorKind) -> io::Result<()> {
        self.operations += 1;
        let fails = match self.fails {
            Fails::Never => false,
            Fails::Once(at) => self.operations == at,
            Fails::From(at) => self.operations >= at,
        };
        self.failed += usize::from(fails);
        if fails { Err(kind.into()) } else { Ok(()) }
    }
}

/// A disk in memory.
#[derive(Clone, Debug)]
struct Simulated(Arc<Mutex<Contents>>);

#[derive(Debug)]
struct SimulatedFile {
    disk: Simulated,
    inode: usize,
}

impl Simulated {
    fn new(fails: Fails) -> Self {
        let (inodes, names) = (Vec::new(), BTreeMap::new());
        let durable_names = BTreeMap::new();
        Self(Arc::new(Mutex::new(Contents { inodes, names, durable_names, fails, operations: 0, failed: 0 })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Contents) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Another disk as a process leaves it that was killed after it wrote and before it synced: all
    /// is there to be read, and a power cut would take it.
    fn written_but_never_synced(&self) -> Self {
        let mut left = self.with(|contents| contents.clone());
        left.durable_names.clear();
        left.inodes.iter_mut().for_each(|inode| inode.durable.clear());
        Self(Arc::new(Mutex::new(left)))
    }

    /// Another disk with what a power cut at this moment leaves: all that was synced, and any
    /// beginning of what was not.
    fn after_power_cut(&self, random: &mut StdRng) -> Self {
        self.with(|contents| {
            let mut left = contents.clone();
            left.names.clone_from(&left.durable_names);
            left.fails = Fails::Never;
            for inode in &mut left.inodes {
                let (durable, content) = (&inode.durable, &inode.content);
                let mut kept = durable.clone();
                if content.len() > durable.len() && inode.forgotten.is_empty() {
                    kept.extend(&content[durable.len()..random.random_range(durable.len()..=content.len())]);
                }
                *inode = Inode { content: kept.clone(), durable: kept, forgotten: Vec::new() };
            }
            Self(Arc::new(Mutex::new(left)))
        })
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Simulated {
    fn make_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let is_in = |path: &&PathBuf| path.parent() == Some(dir);
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(self.with(|contents| contents.names.keys().filter(is_in).map(name).collect()))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.with(|contents| {
            contents.operate(io::ErrorKind::StorageFull)?;
            contents.inodes.push(Inode::default());
            let inode = contents.inodes.len() - 1;
            contents.names.insert(path.into(), inode);
            Ok(Box::new(SimulatedFile { disk: self.clone(), inode }) as Box<dyn DiskFile>)
        })
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.with(|contents| contents.names.get(path).copied()).ok_or_else(missing)?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn exists(&self, path: &Path) -> bool {
        self.with(|contents| contents.names.contains_key(path))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|contents| {
            contents.operate(io::ErrorKind::Other)?;
            contents.names.remove(path).map(drop).ok_or_else(missing)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|contents| {
            contents.operate(io::ErrorKind::Other)?;
            let inode = contents.names.remove(from).ok_or_else(missing)?;
            contents.names.insert(to.into(), inode);
            Ok(())
        })
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.with(|contents| {
            contents.operate(io::ErrorKind::Other)?;
            contents.durable_names = contents.names.clone();
            Ok(())
        })
    }
}

impl DiskFile for SimulatedFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.with(|contents| contents.inodes[self.inode].content.len() as u64))
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let offset = usize::try_from(offset).unwrap();
        self.disk.with(|contents| {
            let content = &contents.inodes[self.inode].content;
            let rest = content.get(offset..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        })
    }

    /// Half of it is written when it fails.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.disk.with(|contents| {
            let outcome = contents.operate(io::ErrorKind::StorageFull);
            let written = if outcome.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
            let content = &mut contents.inodes[self.inode].content;
            content.resize(content.len().max(offset + written.len()), 0);
            content[offset..offset + written.len()].copy_from_slice(written);
            outcome
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.with(|contents| {
            let outcome = contents.operate(io::ErrorKind::Other);
            let inode = &mut contents.inodes[self.inode];
            if outcome.is_err() {
                inode.forgotten.push(inode.durable.len().min(inode.content.len())..inode.content.len());
                return outcome;
            }
            inode.durable.clone_from(&inode.content);
            for range in &inode.forgotten {
                let len = inode.durable.len();
                inode.durable[range.start.min(len)..range.end.min(len)].fill(0);
            }
            Ok(())
        })
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.disk.with(|contents| {
            contents.operate(io::ErrorKind::Other)?;
            contents.inodes[self.inode].content.truncate(usize::try_from(len).unwrap());
            Ok(())
        })
    }
}

fn open(disk: &Simulated) -> Result<EmbeddedQueue, Error> {
    let config = Config { segment_bytes: 1_500, ..Config::default() };
    EmbeddedQueue::open_on(Arc::new(disk.clone()), "/q".into(), config, Clock::from_fn(|| Micros(0)), None)
}

fn entry(event_id: &str) -> Entry {
    Entry {
        event_id: event_id.into(),
        scheme: "hmac".into(),
        received_at: Micros(1),
        signed_at: None,
        payload: Bytes::from(format!("payload of {event_id}")),
    }
}

/// What the queue has said of every event id.
#[derive(Clone, Debug, Default)]
struct Promises {
    /// Acknowledged, and not done for all that we know.
    owed: BTreeSet<String>,
    /// Refused, done, or of unknown fate: may come, must not be owed.
    maybe: BTreeSet<String>,
    /// Set aside.
    dead: BTreeSet<String>,
}

/// A scripted life: deliveries in bursts, claims, acks, dead letters and their return. Errors are
/// taken as they come.
async fn live(queue: &EmbeddedQueue, promises: &mut Promises) {
    let mut claimed = HashMap::new();
    for burst in 0..8 {
        let ids: Vec<String> = (0..5).map(|number| format!("{burst}-{number}")).collect();
        let outcomes = join_all(ids.iter().map(|id| queue.enqueue(entry(id)))).await;
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            let set = if outcome.is_ok() { &mut promises.owed } else { &mut promises.maybe };
            set.insert(id);
        }
        if burst % 2 == 1 && queue.stats().depth > claimed.len() as u64 {
            let claim = timeout(Duration::from_secs(10), queue.claim(7)).await.expect("there are entries");
            for one in claim.into_iter().flatten() {
                claimed.insert(one.receipt, one.entry.event_id);
            }
        }
        if burst % 4 == 3 {
            finish(queue, promises, &mut claimed).await;
        }
    }
}

async fn finish(
    queue: &EmbeddedQueue,
    promises: &mut Promises,
    claimed: &mut HashMap<crate::queue::Receipt, String>,
) {
    let mut sorted: Vec<_> = claimed.drain().collect();
    sorted.sort();
    for (number, (receipt, id)) in sorted.into_iter().enumerate() {
        if number % 3 > 0 {
            let _ = queue.ack(&[receipt]).await;
            promises.owed.remove(&id);
            promises.maybe.insert(id);
        } else if queue.dead_letter(receipt, "why").await.is_ok() {
            promises.owed.remove(&id);
            promises.dead.insert(id);
        } else {
            queue.retry(&[receipt], Duration::ZERO).await.unwrap();
        }
    }
    for letter in queue.dead_letters(None, 2).await.unwrap_or_default() {
        let id = letter.event_id;
        if queue.retry_dead_letter(letter.id).await.is_ok() {
            promises.dead.remove(&id);
            promises.owed.insert(id);
        }
    }
}

/// Every id that comes out, with the dead letters under their own.
async fn contents(queue: &EmbeddedQueue) -> (BTreeSet<String>, Vec<String>) {
    let mut live = BTreeSet::new();
    let mut count = 0;
    while count < queue.stats().depth {
        let claimed = timeout(Duration::from_secs(10), queue.claim(1000)).await.expect("the depth is right");
        for claimed in claimed.unwrap() {
            let id = claimed.entry.event_id.clone();
            assert_eq!(claimed.entry, entry(&id));
            live.insert(id);
            count += 1;
        }
    }
    let dead = queue.dead_letters(None, 1000).await.unwrap();
    (live, dead.into_iter().map(|letter| letter.event_id).collect())
}

async fn check(disk: &Simulated, promises: &Promises, case: &str) {
    let queue = open(disk).unwrap_or_else(|error| panic!("{case}: {error}"));
    let (live, dead) = contents(&queue).await;
    for id in &promises.owed {
        assert!(live.contains(id), "{case}: `{id}` was acknowledged and is lost");
    }
    for id in &promises.dead {
        assert!(dead.contains(id) || live.contains(id), "{case}: dead letter `{id}` is lost");
    }
    let distinct: BTreeSet<_> = dead.iter().collect();
    assert_eq!(distinct.len(), dead.len(), "{case}: a dead letter doubled");
    assert_eq!(queue.enqueue(entry("afterwards")).await.unwrap(), Enqueued::New, "{case}");
}

/// Fails the nth operation for n = 1, 2, 3… until nothing fails any more; checks what is there
/// without a restart, after one, and after a power cut.
async fn fail_each(fails: fn(usize) -> Fails, recovers_by_itself: bool) {
    let mut random = StdRng::seed_from_u64(7);
    for nth in 1.. {
        let case = format!("{:?}", fails(nth));
        let disk = Simulated::new(fails(nth));
        let mut promises = Promises::default();
        let queue = open(&disk).unwrap();
        live(&queue, &mut promises).await;
        let failed = disk.with(|contents| contents.failed);
        check(&disk.after_power_cut(&mut random), &promises, &format!("{case}, power cut")).await;
        disk.with(|contents| contents.fails = Fails::Never);
        if recovers_by_itself {
            let again = queue.enqueue(entry("again")).await;
            assert_eq!(again.unwrap(), Enqueued::New, "{case}: goes on without a restart");
            promises.owed.insert("again".into());
        }
        check(&disk.after_power_cut(&mut random), &promises, &format!("{case}, later power cut")).await;
        drop(queue);
        check(&disk.after_power_cut(&mut random), &promises, &format!("{case}, restart")).await;
        if failed == 0 {
            assert!(nth > 50, "the script is long enough to be worth it: {nth}");
            return;
        }
    }
}

#[tokio::test]
async fn any_single_failure_of_the_disk_loses_nothing_acknowledged() {
    fail_each(Fails::Once, true).await;
}

#[tokio::test]
async fn a_disk_that_fails_for_good_and_is_repaired_loses_nothing_acknowledged() {
    fail_each(Fails::From, true).await;
}

#[tokio::test]
async fn power_cuts_at_any_operation_lose_nothing_acknowledged() {
    // Every operation from the nth on fails, as if the machine stood still: then the power goes.
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = Simulated::new(Fails::From(random.random_range(1..120)));
        let mut promises = Promises::default();
        let queue = open(&disk).unwrap();
        live(&queue, &mut promises).await;
        let mut left = disk.after_power_cut(&mut random);
        for restart in 0..3 {
            check_only(&left, &promises, &format!("seed {seed}, restart {restart}")).await;
            left = left.after_power_cut(&mut random);
        }
    }
}

/// As [`check`], leaving nothing behind.
async fn check_only(disk: &Simulated, promises: &Promises, case: &str) {
    let copy = Simulated(Arc::new(Mutex::new(disk.with(|contents| contents.clone()))));
    check(&copy, promises, case).await;
    drop(open(disk).unwrap());
}

#[tokio::test]
async fn what_a_full_disk_refused_is_not_there_and_comes_in_when_sent_again() {
    let disk = Simulated::new(Fails::Never);
    let queue = open(&disk).unwrap();
    queue.enqueue(entry("before")).await.unwrap();
    disk.with(|contents| contents.fails = Fails::From(0));
    for _ in 0..3 {
        let refused = queue.enqueue(entry("refused")).await;
        assert!(matches!(refused, Err(Error::Disk { .. })), "{refused:?}");
    }
    assert_eq!(queue.stats().depth, 1);
    assert_eq!(queue.claim(9).await.unwrap()[0].entry, entry("before"), "claims go on");
    disk.with(|contents| contents.fails = Fails::Never);
    assert_eq!(queue.enqueue(entry("refused")).await.unwrap(), Enqueued::New);
    assert_eq!(queue.claim(9).await.unwrap()[0].entry, entry("refused"));
}

#[tokio::test]
async fn a_duplicate_of_what_a_killed_process_never_synced_is_durable_too() {
    for seed in 0..20 {
        let before = Simulated::new(Fails::Never);
        open(&before).unwrap().enqueue(entry("a")).await.unwrap();
        let disk = before.written_but_never_synced();
        let queue = open(&disk).unwrap();
        assert_eq!(queue.enqueue(entry("a")).await.unwrap(), Enqueued::Duplicate);
        let after = disk.after_power_cut(&mut StdRng::seed_from_u64(seed));
        let (live, _) = contents(&open(&after).unwrap()).await;
        assert!(live.contains("a"), "seed {seed}: it was answered as durable");
    }
}
