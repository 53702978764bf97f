//! A field of a partial update: absent, null, or a value.
//!
//! `Option` does not distinguish an absent key ("do not change") from an explicit `null` ("clear").

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The change of one field in a partial update.
///
/// Annotate struct fields with `#[serde(default, skip_serializing_if = "Patch::is_absent")]`: without `default` an absent
/// key is an error, and without `skip_serializing_if` an absent field is serialized as `null`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Patch<T> {
    /// The key is absent: do not change the field.
    #[default]
    Absent,
    /// The key is present and `null`: clear the field.
    Null,
    /// The key is present with a value.
    Value(T),
}

impl<T> Patch<T> {
    /// Returns true if the key is absent.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Returns true if the key is present and `null`.
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Returns the value; `None` if absent or null.
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// Returns the value; `None` if absent or null.
    pub fn into_value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// Borrows the value.
    pub const fn as_ref(&self) -> Patch<&T> {
        match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Value(value) => Patch::Value(value),
        }
    }

    /// Applies a function to the value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Patch<U> {
        match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Value(value) => Patch::Value(change(value)),
        }
    }

    /// As [`Self::map`], for a change that can fail.
    pub(crate) fn try_map<U, E>(self, change: impl FnOnce(T) -> Result<U, E>) -> Result<Patch<U>, E> {
        match self {
            Self::Absent => Ok(Patch::Absent),
            Self::Null => Ok(Patch::Null),
            Self::Value(value) => change(value).map(Patch::Value),
        }
    }
}

/// Converts to a present key: `None` becomes `null`.
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
