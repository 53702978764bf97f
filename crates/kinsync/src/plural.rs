//! Numbers with their noun in messages.

use std::fmt::Display;

/// The singular for 1, else the plural.
pub(crate) fn plural<N: Copy + PartialEq + From<u8>>(
    number: N,
    one: &'static str,
    many: &'static str,
) -> &'static str {
    if number == N::from(1) { one } else { many }
}

/// `1 user`, `2 users`.
pub(crate) fn counted<N: Copy + Display + PartialEq + From<u8>>(
    number: N,
    one: &'static str,
    many: &'static str,
) -> String {
    format!("{number} {}", plural(number, one, many))
}
