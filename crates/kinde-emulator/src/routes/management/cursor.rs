//! The content of a `next_token`: the start of the next page.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::Pagination;
use crate::routes::response::ErrorResponse;

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
