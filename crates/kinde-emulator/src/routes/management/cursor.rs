//! Pages of lists: the size, and the content of a `next_token`, which is the start of the next page.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::Pagination;
use crate::emulator::Emulator;
use crate::faults::FaultKind;
use crate::routes::response::ErrorResponse;

const DEFAULT_SIZE: usize = 10;

/// The parameters of a page.
pub(super) struct PageRequest {
    pub(super) from: Cursor,
    pub(super) size: usize,
    pub(super) faults: Vec<FaultKind>,
}

impl PageRequest {
    /// Reads the parameters of a request to a list, and selects the faults of the page.
    pub(super) fn new(
        emulator: &Emulator,
        route: &str,
        size: Option<&str>,
        token: Option<&str>,
    ) -> Result<Self, ErrorResponse> {
        let unknowns = &emulator.config().unknowns;
        let size = page_size(size, unknowns.page_size_cap)?;
        let from = token.filter(|token| !token.is_empty());
        let from = from.map_or(Ok(Cursor::first(unknowns.pagination)), Cursor::parse)?;
        Ok(Self { from, size, faults: emulator.faults_table().on_page(route) })
    }

    /// Returns the entries of the page and the start of the next page, with the faults applied. `found` are the entries
    /// from the cursor on, with their positions.
    pub(super) fn turn<T>(&self, mut found: impl Iterator<Item = (u64, T)>) -> (Vec<T>, Option<Cursor>) {
        if self.faults.contains(&FaultKind::EmptyList) {
            return (Vec::new(), None);
        }
        if self.faults.contains(&FaultKind::EmptyPage) {
            return (Vec::new(), Some(self.from.again()));
        }
        let (mut last, mut items) = (self.from, Vec::new());
        for (position, item) in found.by_ref().take(self.size) {
            items.push(item);
            last = last.after(position);
        }
        let mut next = found.next().map(|_| last);
        for fault in &self.faults {
            next = match fault {
                FaultKind::EndlessTokens if next.is_none() => Some(Cursor { at: 0, ..self.from.again() }),
                FaultKind::RepeatedNextToken => next.map(|_| self.from),
                FaultKind::PaginationDrift { by } => next.map(|next| next.moved(*by)),
                _ => next,
            };
        }
        (items, next)
    }

    /// Returns the entries from the cursor on.
    pub(super) fn skip<T>(&self, all: impl Iterator<Item = (u64, T)>) -> impl Iterator<Item = (u64, T)> {
        let (start, skipped) = match self.from.pagination {
            Pagination::Cursor => (self.from.at, 0),
            Pagination::Offset => (0, usize::try_from(self.from.at).unwrap_or(usize::MAX)),
        };
        all.filter(move |(position, _)| *position >= start).skip(skipped)
    }
}

fn page_size(text: Option<&str>, cap: usize) -> Result<usize, ErrorResponse> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(DEFAULT_SIZE) };
    match text.parse() {
        Ok(size) if size > cap => Err(ErrorResponse::bad_request(
            "PAGE_SIZE_LIMIT_EXCEEDED",
            format!("page_size cannot be greater than {cap}"),
        )),
        Ok(size) if size > 0 => Ok(size),
        _ => Err(ErrorResponse::bad_request(
            "PAGE_SIZE_INVALID",
            "page_size must be a whole number above zero",
        )),
    }
}

/// The start of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) pagination: Pagination,
    /// A position, or the number of users before the page.
    pub(super) at: u64,
    /// Changes the token when it repeats a page.
    pub(super) lap: u64,
}

impl Cursor {
    pub(super) fn first(pagination: Pagination) -> Self {
        Self { pagination, at: 0, lap: 0 }
    }

    pub(super) fn parse(token: &str) -> Result<Self, ErrorResponse> {
        let parse = || {
            let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
            let mut parts = text.split(':');
            let pagination = match parts.next()? {
                "user" => Pagination::Cursor,
                "skip" => Pagination::Offset,
                _ => return None,
            };
            let (at, lap) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            parts.next().is_none().then_some(Self { pagination, at, lap })
        };
        parse().ok_or_else(|| ErrorResponse::bad_request("NEXT_TOKEN_INVALID", "next_token is invalid"))
    }

    pub(super) fn token(self) -> String {
        let Self { pagination, at, lap } = self;
        let kind = if pagination == Pagination::Cursor { "user" } else { "skip" };
        URL_SAFE_NO_PAD.encode(format!("{kind}:{at}:{lap}"))
    }

    /// The same page with a new token.
    pub(super) fn again(self) -> Self {
        Self { lap: self.lap.wrapping_add(1), ..self }
    }

    /// The cursor after one more user, at this position.
    pub(super) fn after(self, position: u64) -> Self {
        let at = if self.pagination == Pagination::Cursor { position } else { self.at };
        Self { at: at.saturating_add(1), ..self }
    }

    /// The cursor this many users later, or earlier if negative.
    pub(super) fn moved(self, by: i64) -> Self {
        Self { at: self.at.saturating_add_signed(by), ..self }
    }
}
