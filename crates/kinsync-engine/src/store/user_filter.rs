//! Which users a list contains, and the ranges of indexes that answer it. Pure: both stores read the same ranges.
//!
//! A list is read in the order of an index, by value and then by id. A position in it contains both, so that a page continues
//! correctly while users are added, removed and changed: a user with an unchanged value is listed once. A page reads at most one
//! key of an index more than its limit, whatever the store contains.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use kinsync_core::{Field, Micros, email::folded};
use serde::{Deserialize, Serialize};

use super::{Page, PageItem, Row};

/// Filter of a list of users.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserFilter {
    /// Which users. Decides the order of the list.
    pub selection: Selection,
    /// Whether the list contains deleted users.
    pub with_deleted: bool,
    /// Continue after this position: [`super::Page::next`]. A text that is none has no users after it.
    pub after: Option<String>,
    /// Maximum number of items. A page of a selection by prefix or by time can have fewer users and yet not be the last one.
    pub limit: usize,
}

/// Which users a list contains, in which order. An index answers each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Selection {
    /// All users, in the order of their ids.
    #[default]
    All,
    /// Users with this email address, shown or in a conflict, in the order of their ids. The case of ASCII letters and
    /// surrounding white space are ignored.
    Email(String),
    /// Users with an address that begins with this text, in the order of the addresses. Case and white space as above.
    EmailPrefix(String),
    /// Users with a first name that begins with this text, in the order of these names, and then other users with such a last
    /// name. The case of ASCII letters is ignored.
    NamePrefix(String),
    /// Users with this phone number, in the order of their ids.
    Phone(String),
    /// Users with this id of the application at Kinde (`provided_id`), in the order of their ids.
    ProvidedId(String),
    /// Deleted users, in the order of their deletion.
    Deleted,
    /// Suspended users, in the order of their ids.
    Suspended,
    /// Users with an address that another document shows, in the order of their ids.
    InConflict,
    /// Users with keys that a rule of the database keeps out of their documents, in the order of their ids.
    WithRefusedKeys,
    /// Users that kinsync changed at this time or later, in the order of their changes.
    ChangedSince(Micros),
}

impl Selection {
    /// Returns one selection of each kind, with this text, for tests of all. A new kind does not compile until it has a place here.
    #[doc(hidden)]
    pub fn of_each_kind(text: &str) -> Vec<Self> {
        let text = || text.to_owned();
        let next = |before: &Self| {
            Some(match before {
                Self::All => Self::Email(text()),
                Self::Email(_) => Self::EmailPrefix(text()),
                Self::EmailPrefix(_) => Self::NamePrefix(text()),
                Self::NamePrefix(_) => Self::Phone(text()),
                Self::Phone(_) => Self::ProvidedId(text()),
                Self::ProvidedId(_) => Self::Deleted,
                Self::Deleted => Self::Suspended,
                Self::Suspended => Self::InConflict,
                Self::InConflict => Self::WithRefusedKeys,
                Self::WithRefusedKeys => Self::ChangedSince(Micros(0)),
                Self::ChangedSince(_) => return None,
            })
        };
        std::iter::successors(Some(Self::All), next).collect()
    }
}

/// An index with the ids of users, alone or after a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Index {
    Id,
    Live,
    Email,
    FirstName,
    LastName,
    Phone,
    ProvidedId,
    DeletedAt,
    Suspended,
    InConflict,
    Refused,
    UpdatedAt,
}

/// A value in an index.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Key {
    Number(i64),
    Text(String),
}

/// A range of an index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Range {
    /// The ids after this one in an index without values.
    Ids(Index, String),
    /// The ids after this one with this value.
    Of(Index, Key, String),
    /// The values from this one.
    From(Index, Key, End),
    /// The values after this one.
    After(Index, Key, End),
}

/// The end of a range of values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The end of the index.
    Open,
    /// The last text with this prefix.
    Prefix(String),
}

impl Range {
    pub(crate) fn index(&self) -> Index {
        match self {
            Self::Ids(index, _) | Self::Of(index, ..) | Self::From(index, ..) | Self::After(index, ..) => {
                *index
            }
        }
    }
}

/// A position in an index with values.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Position(Index, Key, String);

impl Position {
    /// Returns the position of a user as text. In a list by ids it is the id.
    pub(crate) fn of(range: &Range, value: Option<Key>, id: &str) -> String {
        match (range, value) {
            (Range::From(index, ..) | Range::After(index, ..), Some(value)) => {
                Self(*index, value, id.to_owned()).text()
            }
            (Range::Of(index, value, _), _) if index.is_ordered_by_value() => {
                Self(*index, value.clone(), id.to_owned()).text()
            }
            _ => id.to_owned(),
        }
    }

    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("texts and numbers are JSON"))
    }

    fn parse(text: &str) -> Option<Self> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    }
}

impl Index {
    /// Returns whether a list in the order of this index is also one in the order of values.
    fn is_ordered_by_value(self) -> bool {
        matches!(self, Self::Email | Self::FirstName | Self::LastName | Self::DeletedAt | Self::UpdatedAt)
    }
}

impl UserFilter {
    /// Returns whether `after` is a position of this list.
    pub fn has_valid_position(&self) -> bool {
        self.after.as_deref().is_none_or(|after| {
            self.by_value().is_none_or(|lists| {
                Position::parse(after).is_some_and(|at| lists.iter().any(|(index, ..)| *index == at.0))
            })
        })
    }

    /// Returns the ranges of indexes to read, in the order of the list.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        let Some(lists) = self.by_value() else { return vec![self.by_id()] };
        let Some(after) = &self.after else {
            return lists.into_iter().map(|(index, from, end)| Range::From(index, from, end)).collect();
        };
        let position = Position::parse(after).and_then(|position| {
            let place = lists.iter().position(|(index, ..)| *index == position.0)?;
            Some((place, position))
        });
        let Some((place, Position(index, value, id))) = position else { return Vec::new() };
        let end = lists[place].2.clone();
        let rest = lists.into_iter().skip(place + 1).map(|(index, from, end)| Range::From(index, from, end));
        [Range::Of(index, value.clone(), id), Range::After(index, value, end)]
            .into_iter()
            .chain(rest)
            .collect()
    }

    /// Returns the indexes that are read in the order of values, each with its first value and its end; `None` for a list in the
    /// order of ids.
    fn by_value(&self) -> Option<Vec<(Index, Key, End)>> {
        let texts = |index, prefix: &str| {
            (index, Key::Text(prefix.trim().to_owned()), End::Prefix(prefix.trim().to_owned()))
        };
        match &self.selection {
            Selection::EmailPrefix(prefix) => Some(vec![texts(Index::Email, prefix)]),
            Selection::NamePrefix(prefix) => {
                Some([Index::FirstName, Index::LastName].map(|index| texts(index, prefix)).into())
            }
            Selection::Deleted => Some(vec![(Index::DeletedAt, Key::Number(i64::MIN), End::Open)]),
            Selection::ChangedSince(at) => Some(vec![(Index::UpdatedAt, Key::Number(at.0), End::Open)]),
            Selection::All
            | Selection::Email(_)
            | Selection::Phone(_)
            | Selection::ProvidedId(_)
            | Selection::Suspended
            | Selection::InConflict
            | Selection::WithRefusedKeys => None,
        }
    }

    fn by_id(&self) -> Range {
        let after = self.after.clone().unwrap_or_default();
        let of = |index, text: &str, after| Range::Of(index, Key::Text(text.to_owned()), after);
        match &self.selection {
            Selection::Email(email) => of(Index::Email, email.trim(), after),
            Selection::Phone(phone) => of(Index::Phone, phone, after),
            Selection::ProvidedId(id) => of(Index::ProvidedId, id, after),
            Selection::Suspended => Range::Ids(Index::Suspended, after),
            Selection::InConflict => Range::Ids(Index::InConflict, after),
            Selection::WithRefusedKeys => Range::Ids(Index::Refused, after),
            _ if self.with_deleted => Range::Ids(Index::Id, after),
            _ => Range::Ids(Index::Live, after),
        }
    }

    /// The page of what was read for it, each row with the index that it was read from.
    pub(crate) fn page(&self, read: Vec<PageItem<(Index, Row)>>) -> Page<Row> {
        let Page { items, next, undecodable } = Page::new(read, self.limit);
        let items = items.into_iter().filter(|(index, row)| self.lists(row, *index)).map(|(_, row)| row);
        Page { items: items.collect(), next, undecodable }
    }

    /// Returns whether a user that was read from this index belongs into the list. An index may compare texts less strictly.
    fn lists(&self, row: &Row, index: Index) -> bool {
        let is_deleted = !row.state.is_live();
        let begins = |field, prefix: &str| {
            let text = row.state.text(field).map(str::to_ascii_lowercase);
            text.is_some_and(|text| text.starts_with(&prefix.trim().to_ascii_lowercase()))
        };
        let claimed = row.state.claimed_email().map(folded);
        let is_selected = match &self.selection {
            Selection::Email(email) => claimed.is_some_and(|claimed| claimed == folded(email)),
            Selection::EmailPrefix(prefix) => {
                claimed.is_some_and(|claimed| claimed.starts_with(&folded(prefix)))
            }
            Selection::NamePrefix(prefix) if index == Index::LastName => {
                begins(Field::LastName, prefix) && !begins(Field::FirstName, prefix)
            }
            Selection::NamePrefix(prefix) => begins(Field::FirstName, prefix),
            Selection::Deleted => return is_deleted,
            _ => true,
        };
        is_selected && (self.with_deleted || !is_deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_that_of_its_list_only() {
        let range = Range::From(Index::FirstName, Key::Text("ada".into()), End::Open);
        let after = Position::of(&range, Some(Key::Text("Ada ~é".into())), "kp_1");
        let filter =
            |selection| UserFilter { selection, after: Some(after.clone()), ..UserFilter::default() };
        let names = filter(Selection::NamePrefix("ada".into()));
        assert!(names.has_valid_position());
        let [same, later, last_names] = &names.ranges()[..] else { panic!("{:?}", names.ranges()) };
        assert_eq!(*same, Range::Of(Index::FirstName, Key::Text("Ada ~é".into()), "kp_1".into()));
        assert_eq!((later.index(), last_names.index()), (Index::FirstName, Index::LastName));
        let changes = filter(Selection::ChangedSince(Micros(0)));
        assert!(!changes.has_valid_position());
        assert_eq!(changes.ranges(), []);
    }
}
