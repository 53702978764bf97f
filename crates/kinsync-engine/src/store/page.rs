//! Pages of lists.

use std::ops::Deref;

/// A page of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page<T> {
    /// The items of the page, at most as many as the limit of the filter.
    pub items: Vec<T>,
    /// The `after` of the next page; `None` on the last one. Never inferred from the number of items: a page of which some
    /// documents cannot be decoded, or do not match the whole filter, is shorter.
    pub next: Option<String>,
    /// Names of documents on the page that kinsync wrote and cannot decode any more.
    pub undecodable: Vec<String>,
}

/// An item as it was read. `Err`: the name of a document that cannot be decoded.
pub(crate) struct PageItem<T> {
    /// The position of the item: what the next page starts after.
    pub(crate) position: String,
    pub(crate) item: Result<T, String>,
}

impl<T> Page<T> {
    /// The page of what was read for it: one more than `limit`, if there is more.
    pub(crate) fn new(read: Vec<PageItem<T>>, limit: usize) -> Self {
        let has_more = read.len() > limit;
        let mut page = Self { items: Vec::new(), next: None, undecodable: Vec::new() };
        for PageItem { position, item } in read.into_iter().take(limit) {
            page.next = Some(position).filter(|_| has_more);
            match item {
                Ok(item) => page.items.push(item),
                Err(undecodable) => page.undecodable.push(undecodable),
            }
        }
        page
    }

    /// Returns the page with each item changed by this function.
    pub(crate) fn map<U>(self, change: impl FnMut(T) -> U) -> Page<U> {
        let Self { items, next, undecodable } = self;
        Page { items: items.into_iter().map(change).collect(), next, undecodable }
    }
}

impl<T> Deref for Page<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> IntoIterator for Page<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}
