//! Documents with the Kinde id of a user that kinsync can never write.

use bson::{RawDocument, raw::RawBsonRef, spec::ElementType};

use super::{Copy, Metadata, integer, items};
use crate::store::{
    DocumentKey,
    mongo::{
        encode::FORMAT,
        keys::{Keys, METADATA},
        mappings::Known,
        read::own_id,
    },
};

/// The Kinde ids by which queries find the document: each element of a list is one.
pub(in crate::store::mongo) fn kinde_ids<'a>(
    doc: &'a RawDocument,
    keys: &Keys,
) -> impl Iterator<Item = &'a str> {
    let value = keys.values(doc).of(DocumentKey::KindeId);
    let list = value.and_then(RawBsonRef::as_array).into_iter().flat_map(items);
    value.into_iter().chain(list).filter_map(RawBsonRef::as_str)
}

/// Returns the reason why a document that has the Kinde id of a user can never be that user's, for an operator.
pub(in crate::store::mongo) fn fault(doc: &RawDocument, known: &Known) -> Option<String> {
    let keys = &*known.current;
    let id = keys.values(doc).of(DocumentKey::KindeId).map(|value| value.element_type());
    let metadata = doc.get(METADATA).ok().flatten();
    let (key, there) = match (id, metadata) {
        (Some(ElementType::Array), _) => (keys.kinde_id().to_owned(), "a list".to_owned()),
        (_, None | Some(RawBsonRef::Null | RawBsonRef::Undefined)) => return None,
        (_, Some(RawBsonRef::Document(metadata))) => {
            match metadata.get("format").ok().flatten().and_then(integer) {
                Some(format) if format == i64::from(FORMAT) => {
                    let read = Metadata::of(metadata);
                    if read.directory == Copy::Unreadable {
                        let found = "unreadable: if a newer kinsync wrote it, run that version; else remove the key, and the next \
                                     event or scan of the user writes it again";
                        return Some(named(&format!("{METADATA}.directory"), doc, found));
                    }
                    if known.of(read.mapping).is_none() {
                        let found = "written under other names of keys, which this process has not read: start it again";
                        return Some(named(METADATA, doc, found));
                    }
                    let revision = metadata.get("revision").ok().flatten().map(|value| value.element_type());
                    revision.filter(|there| *there == ElementType::Array)?;
                    (format!("{METADATA}.revision"), "a list".to_owned())
                }
                Some(format) => {
                    let found = format!(
                        "in the format {format}, which this version of kinsync does not know: install the version that \
                                     wrote it"
                    );
                    return Some(named(METADATA, doc, &found));
                }
                None => (METADATA.to_owned(), "not kinsync's".to_owned()),
            }
        }
        (_, Some(RawBsonRef::Array(_))) => (METADATA.to_owned(), "a list".to_owned()),
        _ => (METADATA.to_owned(), "no sub-document".to_owned()),
    };
    Some(named(&key, doc, &format!("{there}; kinsync did not write it: correct or remove it")))
}

fn named(key: &str, doc: &RawDocument, what: &str) -> String {
    format!("`{key}` of the document with `_id` {} is {what}", own_id(doc))
}
