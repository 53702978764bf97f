//! Which entries of the log a list contains.

use kinsync_core::Micros;

use super::LogSource;

/// Filter of a list of entries of the log, newest receipt first.
///
/// An index answers the time of receipt together with one of `user`, `kind` and `source`. More of these are compared entry by
/// entry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventFilter {
    /// Only the entry with this id.
    pub id: Option<String>,
    /// Only entries of this user.
    pub user: Option<String>,
    /// Only entries about no user.
    pub without_user: bool,
    /// Only entries of this type.
    pub kind: Option<String>,
    /// Only entries from this source.
    pub source: Option<LogSource>,
    /// Only entries that were received at this time or later.
    pub since: Option<Micros>,
    /// Only entries that were received before this time.
    pub until: Option<Micros>,
    /// Continue after this position: [`super::Page::next`], an [`EventPosition`]. A text that is none has no entries after it.
    pub after: Option<String>,
    /// Maximum number of items.
    pub limit: usize,
}

/// Position of an entry in the list of all entries. It stays valid when the entry is removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventPosition {
    /// Time of receipt.
    pub received_at: i64,
    /// Id of the entry.
    pub id: String,
}

impl EventPosition {
    /// Parses a position, such as `1732700000000000:event_019a`.
    pub fn parse(text: &str) -> Option<Self> {
        let (at, id) = text.split_once(':')?;
        Some(Self { received_at: at.parse().ok()?, id: id.to_owned() })
    }

    /// Returns the position of an entry as text.
    pub(crate) fn of(received_at: i64, id: &str) -> String {
        format!("{received_at}:{id}")
    }
}
