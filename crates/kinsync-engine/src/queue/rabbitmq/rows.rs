//! Entries as messages.

use bytes::Bytes;
use kinsync_core::Micros;
use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::queue::{Entry, Payload};

/// Type of the messages. Another one is a format that this version cannot read.
const KIND: &str = "kinsync.entry.1";
/// Delivery mode of a message that is stored on disk.
const PERSISTENT: u8 = 2;

/// Returns the properties of the message of an entry. The id identifies this message, not the event.
pub(super) fn properties(entry: &Entry, id: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    // Not as properties: these have at most 255 bytes, and an id of an event is of any length.
    headers.insert("event_id".into(), AMQPValue::LongString(entry.event_id.as_str().into()));
    headers.insert("scheme".into(), AMQPValue::LongString(entry.payload.scheme().into()));
    headers.insert("received_at".into(), AMQPValue::LongLongInt(entry.received_at.0));
    if let Some(Micros(at)) = entry.payload.signed_at() {
        headers.insert("signed_at".into(), AMQPValue::LongLongInt(at));
    }
    BasicProperties::default()
        .with_type(KIND.into())
        .with_message_id(id.into())
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers)
}

/// What this version can read of a message.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Entry(Entry),
    /// A newer version wrote it, with these properties.
    Newer(Box<BasicProperties>),
    /// It is damaged, or another program wrote it.
    Damaged,
}

/// What a message holds.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Identifies the message.
    pub(super) id: String,
    /// Deliveries that did not end in an ack, as the server counts them.
    pub(super) attempts: u32,
    /// Bytes of the message.
    pub(super) body: Bytes,
    pub(super) content: Content,
}

impl Message {
    /// Returns the entry; `None` if this version cannot read it.
    pub(super) fn entry(&self) -> Option<&Entry> {
        match &self.content {
            Content::Entry(entry) => Some(entry),
            Content::Newer(_) | Content::Damaged => None,
        }
    }
}

/// Reads a message.
pub(super) fn message(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let body = Bytes::from(body);
    let attempts = number(properties, "x-delivery-count").and_then(|count| u32::try_from(count).ok());
    Message {
        id: properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default(),
        attempts: attempts.unwrap_or_default(),
        content: content(properties, &body),
        body,
    }
}

/// Reads the message of a delivery.
pub(super) fn of_delivery(delivery: &mut Delivery) -> Message {
    message(&delivery.properties, std::mem::take(&mut delivery.data))
}

/// When the message with this id was made, by the clock of its process. `None` if another program made it.
pub(super) fn made_at(id: &str) -> Option<Micros> {
    let (time, _) = id.split_once('-').filter(|(time, _)| time.len() == 16)?;
    Some(Micros(i64::from_str_radix(time, 16).ok()?))
}

fn content(properties: &BasicProperties, body: &Bytes) -> Content {
    match properties.kind().as_ref().map(ShortString::as_str) {
        Some(KIND) => known(properties, body).unwrap_or(Content::Damaged),
        Some(_) => Content::Newer(Box::new(properties.clone())),
        None => Content::Damaged,
    }
}

/// Reads a message of this format. A newer version may have added a scheme.
fn known(properties: &BasicProperties, body: &Bytes) -> Option<Content> {
    let signed_at = number(properties, "signed_at").map(Micros);
    let (event_id, received_at) = (text(properties, "event_id")?, Micros(number(properties, "received_at")?));
    Some(match Payload::from_parts(&text(properties, "scheme")?, signed_at, body.clone()) {
        Some(payload) => Content::Entry(Entry { event_id, received_at, payload }),
        None => Content::Newer(Box::new(properties.clone())),
    })
}

fn text(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        _ => None,
    }
}

fn number(properties: &BasicProperties, name: &str) -> Option<i64> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::LongInt(number) => Some((*number).into()),
        AMQPValue::LongUInt(number) => Some((*number).into()),
        AMQPValue::ShortInt(number) => Some((*number).into()),
        AMQPValue::ShortUInt(number) => Some((*number).into()),
        AMQPValue::ShortShortInt(number) => Some((*number).into()),
        AMQPValue::ShortShortUInt(number) => Some((*number).into()),
        _ => None,
    }
}
