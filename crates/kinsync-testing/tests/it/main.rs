//! The repository's documents agree with its files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod documents;
mod imports;
