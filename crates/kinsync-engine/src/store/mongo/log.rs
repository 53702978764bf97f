//! The event log: append-only, one document per event id.

use bson::{
    Document, RawArrayBuf, RawDocument, RawDocumentBuf, doc,
    raw::{RawBsonRef, cstr},
};
use kinsync_core::Micros;

use super::{
    Inner,
    call::{self, Cause},
    read::{Find, own_id},
    view::date,
};
use crate::store::{Error, EventFilter, LOG_EVENTS, LoggedEvent, Page};

/// Maximum events per command.
const CHUNK: usize = 1000;

/// Maximum bytes per command. The server accepts 16 MiB of BSON.
const CHUNK_BYTES: usize = 12 << 20;

impl Inner {
    pub(super) async fn log(&self, events: &[LoggedEvent]) -> Result<usize, Error> {
        let mut new = 0;
        let mut chunk = RawArrayBuf::new();
        let mut count = 0;
        for event in events {
            let document = encode(event);
            let full = chunk.as_bytes().len() + document.as_bytes().len() > CHUNK_BYTES || count == CHUNK;
            if full && count > 0 {
                new += self.append(&std::mem::take(&mut chunk)).await?;
                count = 0;
            }
            chunk.push(document);
            count += 1;
        }
        if count > 0 {
            new += self.append(&chunk).await?;
        }
        Ok(new)
    }

    async fn append(&self, documents: &RawArrayBuf) -> Result<usize, Error> {
        let command = self.write_command(cstr!("insert"), &self.events, cstr!("documents"), documents);
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(LOG_EVENTS, self.op_timeout, command).await?;
        let (inserted, errors) = call::written(LOG_EVENTS, &reply)?;
        match errors.into_iter().find(|error| error.code != 11000) {
            None => Ok(inserted),
            Some(error) if error.is_about_the_server() => {
                Err(call::unavailable(LOG_EVENTS, Cause::Write(error.code)))
            }
            Some(error) => Err(Error::Refused {
                doing: LOG_EVENTS,
                hint: format!(
                    "MongoDB returned code {}; check for a validator on `{}`",
                    error.code,
                    self.events.name()
                ),
                source: None,
            }),
        }
    }

    pub(super) async fn event(&self, event_id: &str) -> Result<Option<LoggedEvent>, Error> {
        let find = Find::new(doc! { "_id": event_id });
        Ok(self.find("read an event", &self.events, find, decode).await?.pop())
    }

    pub(super) async fn list_events(&self, filter: &EventFilter) -> Result<Page<LoggedEvent>, Error> {
        let mut query = Document::new();
        if let Some(user) = &filter.user {
            query.insert("user", user);
        }
        if let Some(event_type) = &filter.event_type {
            query.insert("type", event_type);
        }
        if let Some(after) = &filter.after {
            let Some(at) = self.received_at(after).await? else {
                return Ok(Page::new(Vec::new(), filter.limit, |event: &LoggedEvent| event.event_id.clone()));
            };
            query.insert("kinsync.receivedAt", doc! { "$lte": at });
            let before = doc! { "kinsync.receivedAt": { "$lt": at } };
            query.insert("$or", vec![before, doc! { "_id": { "$lt": after } }]);
        }
        let newest_first = doc! { "kinsync.receivedAt": -1, "_id": -1 };
        let find = Find::new(query).sort(newest_first).limit(filter.limit.saturating_add(1));
        let read = |doc: &RawDocument| Some(decode(doc).ok_or_else(|| own_id(doc)));
        let events = self.find("list events", &self.events, find, read).await?;
        Ok(Page::new(events, filter.limit, |event| event.event_id.clone()))
    }

    /// Returns the time of receipt of an event, also if the rest of it cannot be decoded.
    async fn received_at(&self, event_id: &str) -> Result<Option<i64>, Error> {
        let find = Find::new(doc! { "_id": event_id }).projection(doc! { "kinsync.receivedAt": 1 });
        let read = |doc: &RawDocument| doc.get_document("kinsync").ok()?.get_i64("receivedAt").ok();
        Ok(self.find("read an event", &self.events, find, read).await?.pop())
    }
}

/// Encodes an event: dates for readers and for a TTL index, exact instants in `kinsync`.
fn encode(event: &LoggedEvent) -> RawDocumentBuf {
    let mut exact = RawDocumentBuf::new();
    exact.append(cstr!("receivedAt"), event.received_at.0);
    let mut doc = RawDocumentBuf::new();
    doc.append(cstr!("_id"), event.event_id.as_str());
    doc.append(cstr!("type"), event.event_type.as_str());
    doc.append(cstr!("user"), event.user.as_deref().map_or(RawBsonRef::Null, RawBsonRef::String));
    match event.at {
        Some(at) => {
            doc.append(cstr!("at"), date(at));
            exact.append(cstr!("at"), at.0);
        }
        None => doc.append(cstr!("at"), RawBsonRef::Null),
    }
    doc.append(cstr!("receivedAt"), date(event.received_at));
    doc.append(cstr!("scheme"), event.scheme.as_str());
    doc.append(cstr!("payload"), event.payload.as_str());
    doc.append(cstr!("kinsync"), exact);
    doc
}

/// Decodes an event. Returns `None` for a document that kinsync did not write.
fn decode(doc: &RawDocument) -> Option<LoggedEvent> {
    let text = |key: &str| doc.get_str(key).ok().map(ToOwned::to_owned);
    let exact = doc.get_document("kinsync").ok()?;
    Some(LoggedEvent {
        event_id: text("_id")?,
        event_type: text("type")?,
        user: text("user"),
        at: exact.get_i64("at").ok().map(Micros),
        received_at: Micros(exact.get_i64("receivedAt").ok()?),
        scheme: text("scheme")?,
        payload: text("payload")?,
    })
}
