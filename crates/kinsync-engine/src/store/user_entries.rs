//! Entries of the log by user, in pages of bounded size.

use serde::Serialize;

use super::LogEntry;

/// Entries of the log in the order of their users.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserEntries {
    /// The entries, ordered by user.
    pub entries: Vec<LogEntry>,
    /// Damaged entries: their content was changed after kinsync wrote them.
    pub damaged: Vec<DamagedEntry>,
    /// A user with more entries than fit on a page. The page contains no entry of this user, and no other user;
    /// [`Store::events`](super::Store::events) lists the entries in smaller pages.
    pub large: Option<String>,
    /// The user after which the next page starts; `None` if no entry is left.
    pub next: Option<String>,
}

/// An entry of the log that is not as kinsync wrote it, or that this version cannot read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct DamagedEntry {
    /// Id of the entry.
    pub id: String,
    /// The user under which it is stored.
    pub user: Option<String>,
}

impl UserEntries {
    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.damaged.len()
    }

    /// Adds an entry of a user. `Err`: the id of a damaged one.
    pub(super) fn push(&mut self, user: &str, entry: Result<LogEntry, String>) {
        match entry {
            Ok(entry) => self.entries.push(entry),
            Err(id) => self.damaged.push(DamagedEntry { id, user: Some(user.to_owned()) }),
        }
    }

    /// Returns the page without the last user: not all entries of that user may have been read.
    pub(super) fn without_last_user(mut self) -> Self {
        let Some(last) = self.last_user() else { return self };
        self.entries.retain(|entry| entry.user.as_ref() != Some(&last));
        self.damaged.retain(|entry| entry.user.as_ref() != Some(&last));
        self.next = self.last_user();
        if self.next.is_none() {
            self.large = Some(last.clone());
            self.next = Some(last);
        }
        self
    }

    fn last_user(&self) -> Option<String> {
        let last = self.entries.last().and_then(|entry| entry.user.clone());
        last.max(self.damaged.last().and_then(|entry| entry.user.clone()))
    }
}
