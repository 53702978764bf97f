//! The event log: append-only, one document per entry.

use std::time::Duration;

use bson::{
    Bson, Document, RawArrayBuf, RawDocument, RawDocumentBuf, doc,
    raw::{RawBsonRef, cstr},
};
use kinsync_core::{Micros, Rank, Version};

use super::{
    Inner,
    call::{self, Cause},
    read::{BATCH, Find, own_id},
    view::date,
};
use crate::{
    log_entry::SCHEMA,
    queue::SIGHTING_SCHEME,
    store::{
        Error, EventFilter, EventPosition, LOG_EVENTS, LogEntry, LogSource, Page, PageItem, UserEntries,
    },
};

/// Time limit of a read of the entries of many users.
const LONGEST: Duration = Duration::from_mins(1);

/// Bytes after which a read of the entries of many users ends.
const PAGE_BYTES: usize = 8 << 20;

/// Maximum events per command.
const CHUNK: usize = 1000;

/// Maximum bytes per command. The server accepts 16 MiB of BSON.
const CHUNK_BYTES: usize = 12 << 20;

impl Inner {
    pub(super) async fn log(&self, events: &[LogEntry]) -> Result<Vec<usize>, Error> {
        let mut known = Vec::new();
        let mut chunk = RawArrayBuf::new();
        let mut first = 0;
        for (n, event) in events.iter().enumerate() {
            let document = encode(event);
            let full = chunk.as_bytes().len() + document.as_bytes().len() > CHUNK_BYTES || n - first == CHUNK;
            if full && n > first {
                self.append(&std::mem::take(&mut chunk), first, &mut known).await?;
                first = n;
            }
            chunk.push(document);
        }
        if events.len() > first {
            self.append(&chunk, first, &mut known).await?;
        }
        Ok(known)
    }

    /// Appends a part that begins at the position `first`, and adds the positions of the entries with a known id.
    async fn append(
        &self,
        documents: &RawArrayBuf,
        first: usize,
        known: &mut Vec<usize>,
    ) -> Result<(), Error> {
        let command = self.write_command(cstr!("insert"), &self.events, cstr!("documents"), documents);
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(LOG_EVENTS, self.op_timeout, command).await?;
        let (_, errors) = call::written(LOG_EVENTS, &reply)?;
        known.extend(errors.iter().filter(|error| error.code == 11000).map(|error| first + error.index));
        match errors.into_iter().find(|error| error.code != 11000) {
            None => Ok(()),
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

    pub(super) async fn event(&self, event_id: &str) -> Result<Option<LogEntry>, Error> {
        let find = Find::new(doc! { "_id": event_id });
        Ok(self.find("read an event", &self.events, find, decode).await?.pop())
    }

    pub(super) async fn list_events(&self, filter: &EventFilter) -> Result<Page<LogEntry>, Error> {
        let query = criteria(filter);
        let mut read: Vec<PageItem<LogEntry>> = Vec::new();
        for times in times(filter) {
            let mut query = query.clone();
            query.extend(times);
            let wanted = filter.limit.saturating_add(1) - read.len();
            let newest_first = doc! { "kinsync.receivedAt": -1, "_id": -1 };
            let find = Find::new(query).sort(newest_first).limit(wanted);
            read.extend(self.find("list events", &self.events, find, |doc| Some(listed(doc))).await?);
        }
        Ok(Page::new(read, filter.limit))
    }

    pub(super) async fn count_events(&self, filter: &EventFilter) -> Result<u64, Error> {
        let mut count = 0;
        for times in times(filter) {
            let (events, mut query) = (self.events.clone(), criteria(filter));
            query.extend(times);
            let counted = async move { events.count_documents(query).max_time(LONGEST).await };
            count += self.calls.run("count events", LONGEST, counted).await?;
        }
        Ok(count)
    }

    pub(super) async fn user_entries(
        &self,
        after: &str,
        until: Option<&str>,
        limit: usize,
    ) -> Result<UserEntries, Error> {
        let mut users = doc! { "$gt": after };
        if let Some(until) = until {
            users.insert("$lte", until);
        }
        let events = self.events.clone();
        let read = async move {
            // The order of the index.
            let order = doc! { "user": 1, "kinsync.receivedAt": -1, "_id": -1 };
            let find = events.find(doc! { "user": users }).sort(order).max_time(LONGEST);
            let mut cursor = find.batch_size(BATCH).await?;
            let (mut page, mut bytes) = (UserEntries::default(), 0);
            while cursor.advance().await? {
                let doc = cursor.current();
                if page.len() >= limit || bytes >= PAGE_BYTES {
                    return Ok(page.without_last_user());
                }
                bytes += doc.as_bytes().len();
                let user = doc.get_str("user").unwrap_or_default();
                page.push(user, decode(doc).ok_or_else(|| own_id(doc)));
            }
            Ok(page)
        };
        self.calls.run("read the entries of users", LONGEST, read).await
    }

    pub(super) async fn count_user_entries(&self, user: &str) -> Result<u64, Error> {
        let (events, query) = (self.events.clone(), doc! { "user": user });
        let count = async move { events.count_documents(query).max_time(LONGEST).await };
        self.calls.run("count the entries of a user", LONGEST, count).await
    }
}

/// Returns the conditions of a filter besides the time of receipt.
fn criteria(filter: &EventFilter) -> Document {
    let mut query = Document::new();
    if let Some(id) = &filter.id {
        query.insert("_id", id);
    }
    if let Some(user) = &filter.user {
        query.insert("user", user);
    }
    if filter.without_user {
        query.insert("user", Bson::Null);
    }
    if let Some(kind) = &filter.kind {
        query.insert("type", kind);
    }
    match filter.source {
        // An entry of an earlier version has no source.
        Some(LogSource::Webhook) => {
            query.insert("source", doc! { "$in": [LogSource::Webhook.as_str(), Bson::Null] });
            query.insert("scheme", doc! { "$ne": SIGHTING_SCHEME });
        }
        Some(source) => _ = query.insert("source", source.as_str()),
        None => {}
    }
    query
}

/// Returns the ranges of the time of receipt to read, newest first. A range is exact: a page reads no key of the page before.
fn times(filter: &EventFilter) -> Vec<Document> {
    // Before `until`.
    let newest = filter.until.map_or(i64::MAX, |until| until.0.saturating_sub(1));
    let oldest = filter.since.map_or(i64::MIN, |since| since.0);
    let between = |newest: i64| {
        if (oldest, newest) == (i64::MIN, i64::MAX) {
            return Document::new();
        }
        doc! { "kinsync.receivedAt": { "$gte": oldest, "$lte": newest } }
    };
    let Some(after) = &filter.after else { return vec![between(newest)] };
    match EventPosition::parse(after) {
        Some(EventPosition { received_at, id }) if (oldest..=newest).contains(&received_at) => {
            let same = doc! { "kinsync.receivedAt": received_at, "_id": { "$lt": id } };
            vec![same, between(received_at.saturating_sub(1))]
        }
        Some(EventPosition { received_at, .. }) if received_at > newest => vec![between(newest)],
        _ => Vec::new(),
    }
}

fn listed(doc: &RawDocument) -> PageItem<LogEntry> {
    let received_at = doc.get_document("kinsync").and_then(|exact| exact.get_i64("receivedAt"));
    let id = own_id(doc);
    PageItem {
        position: EventPosition::of(received_at.unwrap_or(i64::MIN), &id),
        item: decode(doc).ok_or(id),
    }
}

/// Encodes an entry: dates for readers and for a TTL index, exact values in `kinsync`.
pub(super) fn encode(entry: &LogEntry) -> RawDocumentBuf {
    let mut exact = RawDocumentBuf::new();
    exact.append(cstr!("receivedAt"), entry.received_at.0);
    let mut doc = RawDocumentBuf::new();
    doc.append(cstr!("_id"), entry.id.as_str());
    doc.append(cstr!("type"), entry.kind.as_str());
    doc.append(cstr!("user"), entry.user.as_deref().map_or(RawBsonRef::Null, RawBsonRef::String));
    doc.append(cstr!("source"), entry.source.as_str());
    match entry.at {
        Some(at) => {
            doc.append(cstr!("at"), date(at));
            exact.append(cstr!("at"), at.0);
        }
        None => doc.append(cstr!("at"), RawBsonRef::Null),
    }
    if let Some(Version { at, rank, tie }) = &entry.version {
        let mut version = RawDocumentBuf::new();
        version.append(cstr!("at"), at.0);
        version.append(cstr!("rank"), rank.as_str());
        version.append(cstr!("tie"), &**tie);
        exact.append(cstr!("version"), version);
    }
    exact.append(cstr!("schema"), SCHEMA);
    exact.append(cstr!("checksum"), entry.checksum().as_str());
    doc.append(cstr!("receivedAt"), date(entry.received_at));
    doc.append(cstr!("scheme"), entry.scheme.as_str());
    doc.append(cstr!("payload"), entry.payload.as_str());
    doc.append(cstr!("kinsync"), exact);
    doc
}

/// Decodes an entry. Returns `None` for a document that is not as kinsync wrote it.
fn decode(doc: &RawDocument) -> Option<LogEntry> {
    let text = |key: &str| doc.get_str(key).ok().map(ToOwned::to_owned);
    let exact = doc.get_document("kinsync").ok()?;
    let scheme = text("scheme")?;
    let source = match doc.get("source").ok()? {
        Some(source) => LogSource::from_name(source.as_str()?)?,
        None if scheme == SIGHTING_SCHEME => LogSource::Login,
        None => LogSource::Webhook,
    };
    let version = match exact.get_document("version") {
        Ok(version) => Some(Version {
            at: Micros(version.get_i64("at").ok()?),
            rank: Rank::from_name(version.get_str("rank").ok()?)?,
            tie: version.get_str("tie").ok()?.into(),
        }),
        Err(_) => None,
    };
    let entry = LogEntry {
        id: text("_id")?,
        kind: text("type")?,
        user: text("user"),
        source,
        version,
        at: exact.get_i64("at").ok().map(Micros),
        received_at: Micros(exact.get_i64("receivedAt").ok()?),
        scheme,
        payload: text("payload")?,
    };
    let schema = exact.get("schema").ok()?.map(|schema| schema.as_i32().map_or(-1, i64::from));
    let checksum = exact.get("checksum").ok()?.map(|sum| sum.as_str().unwrap_or_default());
    entry.is_intact(schema, checksum).then_some(entry)
}
