//! Lists of old entries of the log, to remove them.

use kinsync_core::Micros;

/// Filter of a list of entries of the log, oldest receipt first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OldEntries {
    /// Which types.
    pub kinds: Kinds,
    /// Only entries that were received before this time.
    pub before: Micros,
    /// Continue after the entry with this time of receipt and this id.
    pub after: Option<(Micros, String)>,
}

/// Types of entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kinds {
    /// This one.
    One(String),
    /// All but these.
    Except(Vec<String>),
}

/// An entry of the log without its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OldEntry {
    /// Id of the entry.
    pub id: String,
    /// Id of the user, if the entry is about one.
    pub user: Option<String>,
    /// Time of receipt.
    pub received_at: Micros,
}
