//! Rows by id, listed in the order of their creation.

use std::collections::{BTreeMap, HashMap};

/// Rows with ids and with fixed positions in the order of creation.
pub(crate) struct Table<T> {
    rows: BTreeMap<u64, T>,
    by_id: HashMap<String, u64>,
    next: u64,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), by_id: HashMap::new(), next: 0 }
    }
}

impl<T> Table<T> {
    /// Adds a row. The id must not be used.
    pub(crate) fn add(&mut self, id: &str, row: T) {
        self.by_id.insert(id.to_owned(), self.next);
        self.rows.insert(self.next, row);
        self.next += 1;
    }

    pub(crate) fn get(&self, id: &str) -> Option<&T> {
        self.rows.get(self.by_id.get(id)?)
    }

    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.rows.get_mut(self.by_id.get(id)?)
    }

    pub(crate) fn remove(&mut self, id: &str) -> Option<T> {
        self.rows.remove(&self.by_id.remove(id)?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.values()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.rows.values_mut()
    }

    /// The rows with their positions.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (u64, &T)> {
        self.rows.iter().map(|(position, row)| (*position, row))
    }
}
