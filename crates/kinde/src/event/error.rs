//! Why an event cannot be decoded.

use crate::timestamp;

/// The reason why a payload cannot be decoded. The message contains names of fields and types, never values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The payload is not a JSON object.
    #[error("the payload is not a JSON object")]
    NotAnObject(#[source] serde_json::Error),
    /// An object has two members with the same name, so its meaning is ambiguous.
    #[error("duplicate member {member:?}")]
    DuplicateMember {
        /// The name of the member.
        member: String,
    },
    /// A required field is absent or null.
    #[error("`{field}` is missing")]
    MissingField {
        /// The path of the field.
        field: String,
    },
    /// A field has the wrong type.
    #[error("`{field}` is {found}, not {expected}")]
    WrongType {
        /// The path of the field.
        field: String,
        /// The expected type.
        expected: &'static str,
        /// The actual type.
        found: &'static str,
    },
    /// An identifier is not valid.
    #[error("`{field}` is not an identifier: 1 to 256 bytes without control characters")]
    InvalidIdentifier {
        /// The path of the field.
        field: String,
    },
    /// A time cannot be parsed.
    #[error("`{field}` is not a time")]
    InvalidTime {
        /// The path of the field.
        field: String,
        /// The parse error.
        #[source]
        source: timestamp::Error,
    },
}
