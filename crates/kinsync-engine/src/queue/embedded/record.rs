//! What stands in the frames: the format of the files, version 1. Numbers are little-endian.

use bytes::{Buf, BufMut, Bytes};
use kinsync_core::Micros;

use super::{
    frame::{self, MAX_BODY},
    ranges::Ranges,
};
use crate::queue::Entry;

/// Bytes of the header of a file.
pub(super) const HEADER: u64 = HEADER_LEN as u64;
/// The same, as a length in memory.
pub(super) const HEADER_LEN: usize = 28;
/// The version that this code writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;
const FILE_MAGIC: [u8; 8] = *b"kinsyncq";
/// The largest event id, scheme and payload together: leaves room for a reason.
pub(super) const MAX_ENTRY: usize = MAX_BODY - (64 << 10);
const MAX_REASON: usize = 4 << 10;
const RANGES_IN_A_RECORD: usize = 1 << 15;

/// What a file says of itself in its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Header {
    /// Sequence numbers in it are not smaller than this one.
    Good {
        first: u64,
    },
    /// Its checksum is right and its version is not ours.
    Newer,
    /// Cut off before its end.
    Short,
    Damaged,
}

/// The header: `magic (8) · version (4) · first sequence number (8) · 0 (4) · CRC-32 (4)`. This
/// layout stays whatever the version.
pub(super) fn header(first: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.put_slice(&FILE_MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u64_le(first);
    bytes.put_u32_le(0);
    bytes.put_u32_le(crc32fast::hash(&bytes));
    bytes
}

pub(super) fn read_header(bytes: &[u8]) -> Header {
    if bytes.len() < HEADER_LEN {
        return Header::Short;
    }
    let (mut fields, mut crc) = bytes[..HEADER_LEN].split_at(HEADER_LEN - 4);
    if !fields.starts_with(&FILE_MAGIC) || crc.get_u32_le() != crc32fast::hash(fields) {
        return Header::Damaged;
    }
    fields.advance(FILE_MAGIC.len());
    if fields.get_u32_le() > VERSION { Header::Newer } else { Header::Good { first: fields.get_u64_le() } }
}

/// An entry set aside, in full.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Dead {
    /// The sequence number that the entry had.
    pub(super) id: u64,
    pub(super) since: Micros,
    pub(super) reason: String,
    pub(super) entry: Entry,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record {
    Entry(u64, Entry),
    /// These sequence numbers are done.
    Done(Vec<(u64, u64)>),
    Dead(Dead),
    /// The dead letter is gone.
    Removed(u64),
}

pub(super) fn push_entry(buffer: &mut Vec<u8>, sequence: u64, entry: &Entry) {
    frame::push(buffer, |body| {
        body.put_u8(1);
        body.put_u64_le(sequence);
        put_entry(body, entry);
    });
}

pub(super) fn push_done(buffer: &mut Vec<u8>, done: &Ranges) {
    let ranges: Vec<_> = done.iter().collect();
    for some in ranges.chunks(RANGES_IN_A_RECORD) {
        frame::push(buffer, |body| {
            body.put_u8(2);
            for (start, end) in some {
                body.put_u64_le(*start);
                body.put_u64_le(*end);
            }
        });
    }
}

/// Long reasons are cut.
pub(super) fn push_dead(buffer: &mut Vec<u8>, dead: &Dead) {
    let reason = &dead.reason[..dead.reason.floor_char_boundary(MAX_REASON)];
    frame::push(buffer, |body| {
        body.put_u8(3);
        body.put_u64_le(dead.id);
        body.put_i64_le(dead.since.0);
        put_text(body, reason);
        put_entry(body, &dead.entry);
    });
}

pub(super) fn push_removed(buffer: &mut Vec<u8>, id: u64) {
    frame::push(buffer, |body| {
        body.put_u8(4);
        body.put_u64_le(id);
    });
}

/// `None` where the body says nothing that this version understands.
pub(super) fn decode(mut body: Bytes) -> Option<Record> {
    let record = match body.try_get_u8().ok()? {
        1 => Record::Entry(body.try_get_u64_le().ok()?, take_entry(body)?),
        2 => {
            let mut ranges = Vec::with_capacity(body.len() / 16);
            while body.has_remaining() {
                ranges.push((body.try_get_u64_le().ok()?, body.try_get_u64_le().ok()?));
            }
            Record::Done(ranges)
        }
        3 => Record::Dead(Dead {
            id: body.try_get_u64_le().ok()?,
            since: Micros(body.try_get_i64_le().ok()?),
            reason: take_text(&mut body)?,
            entry: take_entry(body)?,
        }),
        4 => Record::Removed(body.try_get_u64_le().ok()?),
        _ => return None,
    };
    Some(record)
}

fn put_entry(body: &mut Vec<u8>, entry: &Entry) {
    body.put_i64_le(entry.received_at.0);
    body.put_u8(entry.signed_at.is_some().into());
    body.put_i64_le(entry.signed_at.map_or(0, |at| at.0));
    put_text(body, &entry.event_id);
    put_text(body, &entry.scheme);
    body.put_slice(&entry.payload);
}

fn take_entry(mut body: Bytes) -> Option<Entry> {
    let received_at = Micros(body.try_get_i64_le().ok()?);
    let is_signed = body.try_get_u8().ok()? == 1;
    let signed_at = Some(Micros(body.try_get_i64_le().ok()?)).filter(|_| is_signed);
    let event_id = take_text(&mut body)?;
    let scheme = take_text(&mut body)?;
    Some(Entry { event_id, scheme, received_at, signed_at, payload: body })
}

fn put_text(body: &mut Vec<u8>, text: &str) {
    body.put_u32_le(u32::try_from(text.len()).expect("callers keep entries under MAX_ENTRY"));
    body.put_slice(text.as_bytes());
}

fn take_text(body: &mut Bytes) -> Option<String> {
    let len = body.try_get_u32_le().ok()? as usize;
    if len > body.len() {
        return None;
    }
    String::from_utf8(body.split_to(len).into()).ok()
}
