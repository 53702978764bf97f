//! A field of a partial update: left out, cleared, or set.
//!
//! `Option` cannot tell a key that is absent ("leave it alone") from an explicit `null` ("clear it").

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What an update says of one field.
///
/// In a struct, put `#[serde(default, skip_serializing_if = "Patch::is_absent")]` on the field: without `default`
/// an absent key is an error, and without the other an absent field is written as `null`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Patch<T> {
    /// The key is not there: nothing is known, leave the field alone.
    #[default]
    Absent,
    /// The key is there and `null`: clear the field.
    Null,
    /// The key is there with a value.
    Value(T),
}

impl<T> Patch<T> {
    /// True when the key is not there.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// True when the key is there and `null`.
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The value, if there is one. Absent and `null` look alike here.
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// The value, if there is one. Absent and `null` look alike here.
    pub fn into_value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// Borrows what is inside.
    pub const fn as_ref(&self) -> Patch<&T> {
        match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Value(value) => Patch::Value(value),
        }
    }

    /// Changes the value and keeps absent and `null` as they are.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Patch<U> {
        match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Value(value) => Patch::Value(change(value)),
        }
    }

    /// `None` when absent, `Some(None)` when `null`, `Some(Some(value))` otherwise.
    pub fn into_nested(self) -> Option<Option<T>> {
        match self {
            Self::Absent => None,
            Self::Null => Some(None),
            Self::Value(value) => Some(Some(value)),
        }
    }
}

/// A key that is there: `None` is `null`.
impl<T> From<Option<T>> for Patch<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Self::Value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::from)
    }
}

impl<T: Serialize> Serialize for Patch<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Row {
        #[serde(default, skip_serializing_if = "Patch::is_absent")]
        name: Patch<String>,
    }

    #[test]
    fn absent_null_and_value_survive_a_round_trip() {
        for (json, patch) in [
            ("{}", Patch::Absent),
            (r#"{"name":null}"#, Patch::Null),
            (r#"{"name":""}"#, Patch::Value(String::new())),
            (r#"{"name":"x"}"#, Patch::Value("x".to_owned())),
        ] {
            let row: Row = serde_json::from_str(json).unwrap();
            assert_eq!(row, Row { name: patch });
            assert_eq!(serde_json::to_string(&row).unwrap(), json);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives_a_round_trip(text in ".*") {
            let row = Row { name: Patch::Value(text) };
            let json = serde_json::to_vec(&row).unwrap();
            proptest::prop_assert_eq!(serde_json::from_slice::<Row>(&json).unwrap(), row);
        }
    }
}
