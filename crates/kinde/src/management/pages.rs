//! Lists of the API, page by page.

use std::collections::HashSet;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use reqwest::StatusCode;
use url::Url;

use super::call::{Call, Effect};
use super::{Client, Error, NEVER};
use crate::endpoint::Endpoint;
use crate::event;
use crate::event::reader::Reader;
use crate::response::{RequestTiming, Response};

/// Kinde's code for a page size above the limit of an endpoint.
const PAGE_SIZE_REFUSED: &str = "PAGE_SIZE_LIMIT_EXCEEDED";
/// Smaller page sizes: the lower limit in Kinde's documentation, and Kinde's default.
const SMALLER_PAGES: [u32; 2] = [100, 10];

/// One page of a list, in Kinde's order.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The entries. A page before the last one may be empty, except in a list that continues after an entry.
    pub items: Vec<T>,
    /// The start of the next page: a token, or the id of the last entry. `None` on the last page.
    pub next_token: Option<String>,
    /// The time of the request.
    pub timing: RequestTiming,
}

/// A list of the API: its address, its parameters and the reader of its entries.
pub(super) struct List<T> {
    /// The label in metrics.
    pub(super) endpoint: Endpoint,
    /// The scope that Kinde documents for the endpoint.
    pub(super) scope: &'static str,
    pub(super) url: Url,
    /// Parameters of every request besides those of the page.
    pub(super) query: Vec<(&'static str, String)>,
    /// The member of the response with the entries.
    pub(super) member: &'static str,
    pub(super) paging: Paging<T>,
    pub(super) read: fn(Reader<'_>) -> Result<T, event::Error>,
}

/// How a list continues.
pub(super) enum Paging<T> {
    /// With `page_size` and with the `next_token` of the response.
    Token,
    /// With the `next_token` of the response. The endpoint documents no page size.
    Unsized,
    /// With `page_size` and with `starting_after`, the id of the last entry. A page without entries ends the list.
    After(fn(&T) -> &str),
}

/// A list, read page by page.
///
/// The list is not a snapshot: when an entry is added or removed while it is read, the pages shift, so another entry may be
/// listed twice or not at all. An entry that is in no page may still exist.
pub struct Pages<T> {
    client: Client,
    list: List<T>,
    next: Next,
    page_size: u32,
    read: u32,
    /// The time of the first page that was read.
    first: Option<RequestTiming>,
    /// Hashes of the tokens that were read: a repeated one means an endless list.
    seen: HashSet<[u8; 32]>,
}

enum Next {
    First,
    From(String),
    Done,
}

impl<T> Pages<T> {
    pub(super) fn new(client: Client, list: List<T>) -> Self {
        let page_size = client.0.config.page_size;
        Self { client, list, next: Next::First, page_size, read: 0, first: None, seen: HashSet::new() }
    }

    /// Starts with the page of a [`Page::next_token`] instead of the first one.
    #[must_use]
    pub(super) fn from(mut self, next_token: String) -> Self {
        if !next_token.is_empty() {
            self.seen.insert(hash(&next_token));
            self.next = Next::From(next_token);
        }
        self
    }

    /// Reads the next page; `None` after the last one.
    ///
    /// Cancel safe. After an error the same page is requested again, so no page is skipped.
    pub async fn next(&mut self) -> Result<Option<Page<T>>, Error> {
        if matches!(self.next, Next::Done) {
            return Ok(None);
        }
        let limit = self.client.0.config.max_pages;
        if self.read >= limit {
            return Err(Error::TooManyPages { limit });
        }
        let page = self.fetch().await?;
        match &page.next_token {
            Some(token) if !self.seen.insert(hash(token)) => return Err(Error::RepeatedToken),
            Some(token) => self.next = Next::From(token.clone()),
            None => self.next = Next::Done,
        }
        self.read += 1;
        self.first.get_or_insert(page.timing);
        Ok(Some(page))
    }

    /// Reads all remaining pages into memory. The time of the response is that of the first page of the list.
    pub async fn all(mut self) -> Result<Response<Vec<T>>, Error> {
        let mut items = Vec::new();
        while let Some(page) = self.next().await? {
            items.extend(page.items);
        }
        let timing = self.first.expect("a list has a page before it ends");
        Ok(Response { value: items, timing })
    }

    /// Requests smaller pages if Kinde rejects the size: the documented limits differ between endpoints.
    async fn fetch(&mut self) -> Result<Page<T>, Error> {
        loop {
            let error = match self.fetch_sized().await {
                Err(error) if is_too_large(&error) => error,
                outcome => return outcome,
            };
            let smaller = SMALLER_PAGES.into_iter().find(|size| *size < self.page_size);
            self.page_size = smaller.ok_or(error)?;
            tracing::warn!(
                page_size = self.page_size,
                "Kinde rejects the page size: requesting smaller pages"
            );
        }
    }

    async fn fetch_sized(&self) -> Result<Page<T>, Error> {
        let List { url, member, paging, read, .. } = &self.list;
        let query = self.query();
        let call = Call {
            endpoint: self.list.endpoint,
            scope: self.list.scope,
            effect: Effect::Idempotent,
            build: |http: &reqwest::Client| http.get(url.clone()).query(&query),
            is_absent: NEVER,
            read: |mut response: Reader<'_>| {
                let items = response.required_objects(member)?.into_iter().map(read);
                let items = items.collect::<Result<Vec<_>, _>>()?;
                Ok((items, response.text("next_token")?.into_value()))
            },
        };
        let Response { value: (items, next_token), timing } = self.client.existing(call).await?;
        let next_token = match paging {
            Paging::Token | Paging::Unsized => next_token.filter(|token| !token.is_empty()),
            Paging::After(id) => items.last().map(|item| id(item).to_owned()),
        };
        Ok(Page { items, next_token, timing })
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        if !matches!(self.list.paging, Paging::Unsized) {
            query.push(("page_size", self.page_size.to_string()));
        }
        if let Next::From(token) = &self.next {
            let name =
                if matches!(self.list.paging, Paging::After(_)) { "starting_after" } else { "next_token" };
            query.push((name, token.clone()));
        }
        query.extend(self.list.query.iter().cloned());
        query
    }
}

impl<T> fmt::Debug for Pages<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pages")
            .field("endpoint", &self.list.endpoint)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::UnexpectedStatus { status: StatusCode::BAD_REQUEST, code, .. } if code == PAGE_SIZE_REFUSED)
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}
