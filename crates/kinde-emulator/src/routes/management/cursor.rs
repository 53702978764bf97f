//! What a `next_token` says: where the next page begins.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::Pagination;
use crate::routes::answer::Refusal;

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) pagination: Pagination,
    /// A place, or how many users come before.
    pub(super) at: u64,
    /// Makes the token another one when it leads to a page that was there before.
    pub(super) lap: u64,
}

impl Cursor {
    pub(super) fn first(pagination: Pagination) -> Self {
        Self { pagination, at: 0, lap: 0 }
    }

    pub(super) fn parse(token: &str) -> Result<Self, Refusal> {
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
        parse().ok_or_else(|| Refusal::bad_request("NEXT_TOKEN_INVALID", "next_token is invalid"))
    }

    pub(super) fn token(self) -> String {
        let Self { pagination, at, lap } = self;
        let kind = if pagination == Pagination::Cursor { "user" } else { "skip" };
        URL_SAFE_NO_PAD.encode(format!("{kind}:{at}:{lap}"))
    }

    /// The same page under a new token.
    pub(super) fn again(self) -> Self {
        Self { lap: self.lap.wrapping_add(1), ..self }
    }

    /// Behind one more user, who is at this place.
    pub(super) fn after(self, place: u64) -> Self {
        let at = if self.pagination == Pagination::Cursor { place } else { self.at };
        Self { at: at.saturating_add(1), ..self }
    }

    /// So many users later, or earlier.
    pub(super) fn moved(self, by: i64) -> Self {
        Self { at: self.at.saturating_add_signed(by), ..self }
    }
}
