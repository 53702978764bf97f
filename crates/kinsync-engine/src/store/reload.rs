//! Reads of users that the caller has loaded before.

/// A digest of all that a store contains of one user. Valid in this process only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digest(pub(super) u64);

/// A user as a reload finds it.
#[derive(Debug)]
pub enum Reloaded<T> {
    /// Not stored.
    Absent,
    /// Stored with the digest that the caller gave.
    Unchanged,
    /// Any other user, with the digest for the next reload; `None` if the store has none.
    Loaded(T, Option<Digest>),
}
