//! How records stand in a file so that a damaged one does not take its neighbours with it.
//!
//! A frame is `magic (4) · length of the body (4) · CRC-32 of length and body (4) · body`, numbers
//! little-endian. Where a frame is not right the scanner looks for the next one that is. The magic
//! holds bytes that UTF-8 never has, so that no JSON text can pose as a frame.

use std::{io, ops::Range};

use bytes::Bytes;

use super::disk::DiskFile;

/// Bytes before the body.
pub(super) const HEAD: usize = 12;
/// No body is larger.
pub(super) const MAX_BODY: usize = 16 << 20;
const MAGIC: [u8; 4] = [0xff, b'k', b'q', 0xfe];
/// How much is read at once.
const CHUNK: u64 = 1 << 20;

/// Where a frame stands in its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What the scanner came upon.
#[derive(Debug)]
pub(super) enum Found {
    /// A frame whose checksum is right.
    Frame(Place, Bytes),
    /// Bytes that are no frame although right ones follow, or that are complete and wrong.
    Damaged(Range<u64>),
    /// The end of an append that was cut off.
    Torn(Range<u64>),
}

/// Appends a frame with the body that `write_body` appends.
pub(super) fn push(buffer: &mut Vec<u8>, write_body: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend(MAGIC);
    buffer.extend([0; HEAD - MAGIC.len()]);
    write_body(buffer);
    let body = buffer.len() - start - HEAD;
    let len = u32::try_from(body).expect("callers keep bodies under MAX_BODY").to_le_bytes();
    let crc = checksum(len, &buffer[start + HEAD..]).to_le_bytes();
    buffer[start + 4..start + 8].copy_from_slice(&len);
    buffer[start + 8..start + HEAD].copy_from_slice(&crc);
}

fn checksum(len: [u8; 4], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(body);
    hasher.finalize()
}

/// Walks over the frames of a file from `at` to `end`, reading a chunk at a time.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    at: u64,
    end: u64,
    chunk: Bytes,
    chunk_at: u64,
}

enum Probe {
    Frame(Bytes),
    /// Would go on beyond the end.
    Short,
    Wrong,
}

impl Scanner {
    pub(super) fn new(range: Range<u64>) -> Self {
        Self { at: range.start, end: range.end, ..Self::default() }
    }

    /// How far it came.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// There is more to read now.
    pub(super) fn extend_to(&mut self, end: u64) {
        self.end = end;
    }

    /// The next thing, `None` at the end.
    pub(super) fn next(&mut self, file: &mut dyn DiskFile) -> io::Result<Option<Found>> {
        let from = self.at;
        if from >= self.end {
            return Ok(None);
        }
        match self.probe(file, from)? {
            Probe::Frame(frame) => {
                self.at += frame.len() as u64;
                let place = Place { offset: from, len: frame.len() as u64 };
                Ok(Some(Found::Frame(place, frame.slice(HEAD..))))
            }
            Probe::Short => self.skip(file, from, true).map(Some),
            Probe::Wrong => self.skip(file, from, false).map(Some),
        }
    }

    fn probe(&mut self, file: &mut dyn DiskFile, from: u64) -> io::Result<Probe> {
        let head = self.bytes(file, from, HEAD)?;
        if head.len() < HEAD {
            return Ok(Probe::Short);
        }
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let len = u32::from_le_bytes(word(4)) as usize;
        if word(0) != MAGIC || len == 0 || len > MAX_BODY {
            return Ok(Probe::Wrong);
        }
        let frame = self.bytes(file, from, HEAD + len)?;
        if frame.len() < HEAD + len {
            return Ok(Probe::Short);
        }
        let right = u32::from_le_bytes(word(8)) == checksum(word(4), &frame[HEAD..]);
        Ok(if right { Probe::Frame(frame) } else { Probe::Wrong })
    }

    /// Finds the next right frame behind what is wrong at `from`.
    fn skip(&mut self, file: &mut dyn DiskFile, from: u64, short: bool) -> io::Result<Found> {
        let mut at = from + 1;
        while let Some(candidate) = self.find_magic(file, at)? {
            if let Probe::Frame(_) = self.probe(file, candidate)? {
                self.at = candidate;
                return Ok(Found::Damaged(from..candidate));
            }
            at = candidate + 1;
        }
        let rest = from..self.end;
        self.at = self.end;
        Ok(if short || self.is_zero(file, rest.clone())? { Found::Torn(rest) } else { Found::Damaged(rest) })
    }

    fn find_magic(&mut self, file: &mut dyn DiskFile, mut at: u64) -> io::Result<Option<u64>> {
        loop {
            let window = self.window(file, at, MAGIC.len())?;
            if window.len() < MAGIC.len() {
                return Ok(None);
            }
            if let Some(found) = window.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) {
                return Ok(Some(at + found as u64));
            }
            at += (window.len() - MAGIC.len() + 1) as u64;
        }
    }

    fn is_zero(&mut self, file: &mut dyn DiskFile, range: Range<u64>) -> io::Result<bool> {
        let mut at = range.start;
        loop {
            let window = self.window(file, at, 1)?;
            if window.is_empty() {
                return Ok(true);
            }
            if window.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += window.len() as u64;
        }
    }

    /// `len` bytes from `from`, or as many as there are.
    fn bytes(&mut self, file: &mut dyn DiskFile, from: u64, len: usize) -> io::Result<Bytes> {
        let window = self.window(file, from, len)?;
        Ok(window.slice(..len.min(window.len())))
    }

    /// All that is at hand from `from`, at least `least` bytes unless the file ends before.
    fn window(&mut self, file: &mut dyn DiskFile, from: u64, least: usize) -> io::Result<Bytes> {
        let left = self.end.saturating_sub(from);
        let wanted = left.min(least as u64);
        let held = self.chunk_at..self.chunk_at + self.chunk.len() as u64;
        if !(held.start <= from && from + wanted <= held.end) {
            self.chunk = read(file, from, left.min(CHUNK.max(wanted)))?;
            self.chunk_at = from;
        }
        Ok(self.chunk.slice(usize::try_from(from - self.chunk_at).expect("a chunk fits in memory")..))
    }
}

/// One frame at a known place: its body, or `None` where it is not right any more.
pub(super) fn read_at(file: &mut dyn DiskFile, place: Place) -> io::Result<Option<Bytes>> {
    match Scanner::new(place.offset..place.offset + place.len).next(file)? {
        Some(Found::Frame(found, body)) if found == place => Ok(Some(body)),
        _ => Ok(None),
    }
}

fn read(file: &mut dyn DiskFile, from: u64, len: u64) -> io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    let count = file.read(from, &mut buffer)?;
    buffer.truncate(count);
    Ok(buffer.into())
}
