//! Lists users page by page.

use std::collections::HashSet;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use reqwest::StatusCode;

use super::call::{Call, Effect};
use super::{Client, Error, NEVER, USERS, User};
use crate::response::{RequestTiming, Response};

/// Kinde's code for a page size above the limit of an endpoint.
const PAGE_SIZE_REFUSED: &str = "PAGE_SIZE_LIMIT_EXCEEDED";
/// Smaller page sizes: the lower limit in Kinde's documentation, and Kinde's default.
const SMALLER_PAGES: [u32; 2] = [100, 10];

/// One page of the list, in Kinde's order.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct UsersPage {
    /// The users. A page before the last one may be empty.
    pub users: Vec<User>,
    /// The start of the next page, to resume with [`Client::users_from`]. `None` on the last page.
    pub next_token: Option<String>,
    /// The time of the request.
    pub timing: RequestTiming,
}

/// The list of all users, created by [`Client::users`].
///
/// The list is not a snapshot: when a user is added or removed while it is read, the pages shift, so another user may be
/// listed twice or not at all. A user that is in no page may still exist.
pub struct Pages {
    client: Client,
    next: Next,
    page_size: u32,
    read: u32,
    /// Hashes of the tokens that were read: a repeated one means an endless list.
    seen: HashSet<[u8; 32]>,
}

enum Next {
    First,
    From(String),
    Done,
}

impl Pages {
    pub(super) fn new(client: Client, from: Option<String>) -> Self {
        let page_size = client.0.config.page_size;
        let from = from.filter(|token| !token.is_empty());
        let seen = from.iter().map(|token| hash(token)).collect();
        Self { client, next: from.map_or(Next::First, Next::From), page_size, read: 0, seen }
    }

    /// Reads the next page; `None` after the last one.
    ///
    /// Cancel safe. After an error the same page is requested again, so no page is skipped.
    pub async fn next(&mut self) -> Result<Option<UsersPage>, Error> {
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
        Ok(Some(page))
    }

    /// Requests smaller pages if Kinde rejects the size: the documented limits differ between endpoints.
    async fn fetch(&mut self) -> Result<UsersPage, Error> {
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

    async fn fetch_sized(&self) -> Result<UsersPage, Error> {
        let client = &self.client.0;
        let mut query = vec![("page_size", self.page_size.to_string())];
        if let Next::From(token) = &self.next {
            query.push(("next_token", token.clone()));
        }
        if let Some(expand) = client.config.expand.query() {
            query.push(("expand", expand.to_owned()));
        }
        let url = self.client.url(&["users"]);
        let call = Call {
            endpoint: "users",
            scope: USERS,
            effect: Effect::Idempotent,
            build: |http: &reqwest::Client| http.get(url.clone()).query(&query),
            is_absent: NEVER,
            read: |mut response| {
                let users = response.required_objects("users")?.into_iter().map(User::read);
                Ok((users.collect::<Result<Vec<_>, _>>()?, response.text("next_token")?.into_value()))
            },
        };
        let Response { value: (users, next_token), timing } = self.client.existing(call).await?;
        Ok(UsersPage { users, next_token: next_token.filter(|token| !token.is_empty()), timing })
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pages").field("read", &self.read).finish_non_exhaustive()
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
