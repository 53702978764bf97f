//! Lists of users: one query for each range of an index.

use bson::{Bson, Document, RawDocument, doc, raw::RawBsonRef};

use super::{
    Inner, decode, indexes,
    keys::Keys,
    read::{Find, own_id},
};
use crate::store::{
    Error, Page, PageItem, Row, UserFilter,
    user_filter::{End, Index, Key, Position, Range},
};

/// Sorts after every text in a collation of ICU.
const LAST: char = '\u{ffff}';

/// Returns the path of the values of an index; `None` for an index of ids alone. kinsync's own part of a document, which no setting
/// renames, contains them all.
pub(super) const fn path(index: Index) -> Option<&'static str> {
    match index {
        Index::Id | Index::Live | Index::Suspended | Index::InConflict | Index::Refused => None,
        Index::Email => Some("kinsync.values.email"),
        Index::FirstName => Some("kinsync.values.firstName"),
        Index::LastName => Some("kinsync.values.lastName"),
        Index::Phone => Some("kinsync.values.phone"),
        Index::ProvidedId => Some("kinsync.values.providedId"),
        Index::DeletedAt => Some("kinsync.deletedAt"),
        Index::UpdatedAt => Some("kinsync.updatedAt"),
    }
}

/// Returns whether the index compares texts without their case.
const fn is_collated(index: Index) -> bool {
    matches!(index, Index::Email | Index::FirstName | Index::LastName)
}

impl Inner {
    pub(super) async fn list_users(&self, filter: &UserFilter) -> Result<Page<Row>, Error> {
        let (mut read, wanted) = (Vec::new(), filter.limit.saturating_add(1));
        for range in filter.ranges() {
            if read.len() < wanted {
                read.extend(self.range(&range, wanted - read.len()).await?);
            }
        }
        Ok(filter.page(read))
    }

    async fn range(&self, range: &Range, limit: usize) -> Result<Vec<PageItem<(Index, Row)>>, Error> {
        let known = self.mappings.known();
        let (query, sort) = query(range, self.keys.kinde_id());
        let mut find = Find::new(query).sort(sort).limit(limit).projection(known.projection());
        if is_collated(range.index()) {
            find = find.collation(indexes::any_form());
        }
        let (range, keys) = (range.clone(), self.keys.clone());
        let read = move |doc: &RawDocument| {
            let row = decode::row(doc, &known).map(|row| (range.index(), row));
            let item = row.ok_or_else(|| known.current.name_of(doc));
            Some(PageItem { position: position(doc, &range, &keys), item })
        };
        self.find("list users", &self.users, find, read).await
    }
}

fn position(doc: &RawDocument, range: &Range, keys: &Keys) -> String {
    let id = keys.kinde_id_of(doc).map_or_else(|| own_id(doc), ToOwned::to_owned);
    Position::of(range, path(range.index()).and_then(|path| value(doc, path)), &id)
}

/// Returns the value at a path. A JavaScript driver may have written a number as a double.
fn value(doc: &RawDocument, path: &str) -> Option<Key> {
    let (parents, last) = path.rsplit_once('.')?;
    let parent = parents.split('.').try_fold(doc, |doc, name| doc.get_document(name).ok())?;
    match parent.get(last).ok()?? {
        RawBsonRef::String(text) => Some(Key::Text(text.to_owned())),
        RawBsonRef::Int64(number) => Some(Key::Number(number)),
        RawBsonRef::Int32(number) => Some(Key::Number(number.into())),
        #[expect(clippy::cast_possible_truncation, reason = "an integer was stored")]
        RawBsonRef::Double(number) => Some(Key::Number(number as i64)),
        _ => None,
    }
}

/// Returns the filter and the order of a range. Each filter implies that of its index, and its order is that of the index.
fn query(range: &Range, id: &str) -> (Document, Document) {
    let path = path(range.index());
    let mut query = doc! { "kinsync.revision": { "$exists": true } };
    match (range, path) {
        (Range::Of(_, value, after), Some(path)) => {
            query.extend(doc! { path: bson(value), id: { "$gt": after } });
            (query, doc! { id: 1 })
        }
        (Range::From(_, value, end) | Range::After(_, value, end), Some(path)) => {
            let operator = if matches!(range, Range::From(..)) { "$gte" } else { "$gt" };
            let mut bounds = doc! { operator: bson(value) };
            if let End::Prefix(prefix) = end {
                bounds.insert("$lt", format!("{prefix}{LAST}"));
            }
            query.insert(path, bounds);
            (query, doc! { path: 1, id: 1 })
        }
        (Range::Ids(_, after) | Range::Of(_, _, after), _) => {
            query.extend(mark(range.index()));
            query.insert(id, doc! { "$gt": after });
            // All have the same value. The order by it keeps the planner from the index of all ids, where deleted users are too.
            let value =
                (range.index() == Index::Live).then_some(("kinsync.deletedAt".to_owned(), Bson::Int32(1)));
            (query, value.into_iter().chain(doc! { id: 1 }).collect())
        }
        (Range::From(..) | Range::After(..), None) => unreachable!("an index of ids has no values"),
    }
}

/// Returns what all users in an index of ids have.
fn mark(index: Index) -> Document {
    match index {
        Index::Live => doc! { "kinsync.deletedAt": Bson::Null },
        Index::Suspended => doc! { "kinsync.values.isSuspended": true },
        Index::InConflict => doc! { "kinsync.heldBy": { "$exists": true } },
        Index::Refused => doc! { "kinsync.refused": { "$exists": true } },
        _ => Document::new(),
    }
}

fn bson(key: &Key) -> Bson {
    match key {
        Key::Number(number) => Bson::Int64(*number),
        Key::Text(text) => Bson::String(text.clone()),
    }
}
