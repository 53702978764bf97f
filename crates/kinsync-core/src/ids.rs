//! User ids. An id is opaque: kinsync validates its length and characters and never interprets it.

use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Maximum length of an id in bytes. Kinde's ids have 35 bytes (`kp_` and 32 hexadecimal digits).
pub const MAX_ID_LEN: usize = 256;

/// Kinde's id of a user, equal to the `sub` claim of the user's tokens. Opaque; compared byte by byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserId(Arc<str>);

/// Reasons why a text is not a valid id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is empty.
    #[error("the id is empty")]
    Empty,
    /// The text is longer than [`MAX_ID_LEN`] bytes.
    #[error("the id is longer than {MAX_ID_LEN} bytes")]
    TooLong,
    /// The text contains a control character, such as NUL.
    #[error("the id contains a control character")]
    Control,
}

impl UserId {
    /// Parses an id.
    ///
    /// # Errors
    /// Fails unless the text has 1 to [`MAX_ID_LEN`] bytes and no control characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "" => Err(Error::Empty),
            _ if text.len() > MAX_ID_LEN => Err(Error::TooLong),
            _ if text.chars().any(char::is_control) => Err(Error::Control),
            _ => Ok(Self(text.into())),
        }
    }

    /// Returns the id as Kinde writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Maps with ids as keys are read by text.
impl Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserId({})", self.0)
    }
}

impl TryFrom<String> for UserId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<UserId> for String {
    fn from(id: UserId) -> Self {
        id.0.as_ref().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_opaque_and_bounded() {
        let check = |text: &str, expect: Result<(), Error>| {
            assert_eq!(UserId::parse(text).map(|_| ()), expect, "{text:?}");
        };
        check("kp_0190932d7592c68bda50d62b2ffa8cbb", Ok(()));
        check("kp:old-colon-form", Ok(()));
        check("$$ROOT", Ok(()));
        check("", Err(Error::Empty));
        check("a\0b", Err(Error::Control));
        check("line\nbreak", Err(Error::Control));
        check(&"x".repeat(MAX_ID_LEN), Ok(()));
        check(&"x".repeat(MAX_ID_LEN + 1), Err(Error::TooLong));
    }
}
