//! The properties of a user: a function from keys to registers.
//!
//! A read observes named keys: each has a value, or none. A key that no read has observed is unknown. The join is that of the
//! registers, key by key, so it is associative, commutative and idempotent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    packed::{self, Versions},
    version::Version,
};

/// The properties of a user, by key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Packed", into = "Packed")]
pub struct Properties(BTreeMap<String, Known>);

/// The newest value of a property. `None`: the user has none.
// The derived order compares the version first, then the value. The join depends on that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Known {
    version: Version,
    value: Option<String>,
}

impl Properties {
    /// Returns what a read of these keys shows. `None`: the user has no value.
    pub fn read(values: impl IntoIterator<Item = (String, Option<String>)>, version: &Version) -> Self {
        let known = |(key, value)| (key, Known { version: version.clone(), value });
        Self(values.into_iter().map(known).collect())
    }

    /// Returns the join of two values.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (key, known) in other.0 {
            let newest = self.0.entry(key).or_insert_with(|| known.clone());
            if known > *newest {
                *newest = known;
            }
        }
        self
    }

    /// Returns the values by key, without keys that have none.
    pub fn values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(key, known)| Some((key.as_str(), known.value.as_deref()?)))
    }

    /// Returns the value of a property, `Some(None)` if the user has none; `None` while no read has observed it.
    pub fn value(&self, key: &str) -> Option<Option<&str>> {
        self.0.get(key).map(|known| known.value.as_deref())
    }

    /// Returns each key that was observed, with its value, if it has one, and the version of it.
    pub fn parts(&self) -> impl Iterator<Item = (&str, Option<&str>, &Version)> {
        self.0.iter().map(|(key, Known { version, value })| (key.as_str(), value.as_deref(), version))
    }

    /// Returns the version of the read that determines a property.
    pub fn decided_by(&self, key: &str) -> Option<&Version> {
        self.0.get(key).map(|known| &known.version)
    }

    /// Returns the versions of all values and absences that count.
    pub fn versions(&self) -> impl Iterator<Item = &Version> {
        self.0.values().map(|known| &known.version)
    }

    /// Returns whether no read has observed a property.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The stored form: each version once, because one read sets most registers. Keys are values, because a store may refuse a key.
#[derive(Serialize, Deserialize)]
struct Packed {
    versions: Vec<Version>,
    entries: Vec<PackedEntry>,
}

#[derive(Serialize, Deserialize)]
struct PackedEntry {
    key: String,
    at: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

impl From<Properties> for Packed {
    fn from(properties: Properties) -> Self {
        let mut versions = Versions::default();
        let mut entry =
            |(key, Known { version, value })| PackedEntry { key, at: versions.position(version), value };
        let entries = properties.0.into_iter().map(&mut entry).collect();
        Self { versions: versions.into_list(), entries }
    }
}

impl TryFrom<Packed> for Properties {
    type Error = &'static str;

    fn try_from(Packed { versions, entries }: Packed) -> Result<Self, Self::Error> {
        let known =
            |PackedEntry { key, at, value }| Ok((key, Known { version: packed::at(&versions, at)?, value }));
        entries.into_iter().map(known).collect::<Result<_, Self::Error>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Micros;

    fn read(at: i64, values: &[(&str, Option<&str>)]) -> Properties {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.map(ToOwned::to_owned)));
        Properties::read(values, &Version::snapshot(Micros(at), ""))
    }

    #[test]
    fn a_read_without_a_value_removes_an_older_one_and_says_nothing_about_other_keys() {
        let first = read(1, &[("plan", Some("pro")), ("tier", Some("gold"))]);
        let second = read(2, &[("plan", None)]);
        for joined in [first.clone().join(second.clone()), second.clone().join(first.clone())] {
            assert_eq!(joined.values().collect::<Vec<_>>(), [("tier", "gold")]);
            assert_eq!((joined.value("plan"), joined.value("city")), (Some(None), None));
            let stored = serde_json::to_value(&joined).expect("texts and numbers");
            assert_eq!(serde_json::from_value::<Properties>(stored).expect("readable"), joined);
        }
        assert_eq!(
            second.clone().join(read(1, &[("plan", Some("pro"))])),
            second,
            "an older value does not return"
        );
    }
}
