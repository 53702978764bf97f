//! JSON objects without duplicate members.
//!
//! Two parsers that read one document may keep different ones of two equal members: what was checked is then not what
//! is used. Here a duplicate is an error that names the member.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Longest identifier that is taken, in bytes.
const MAX_ID_BYTES: usize = 256;
/// Starts the message of a duplicate: `serde` has no room for an error type of our own.
const DUPLICATE: &str = "duplicate member";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the member {0:?} is there more than once")]
    Duplicate(String),
    #[error("not a JSON object")]
    Syntax(#[source] serde_json::Error),
}

/// Parses an object whose own members are unique; deeper ones are not looked at.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    read::<Value>(bytes)
}

/// Parses an object whose members are unique at every depth.
pub(crate) fn deeply_unique_object(bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    read::<Unique>(bytes)
}

/// True for an identifier that can be stored and logged: 1 to 256 bytes without control characters.
pub(crate) fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_ID_BYTES && !text.chars().any(char::is_control)
}

fn read<V: for<'de> Deserialize<'de> + Into<Value>>(bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    serde_json::from_slice::<Object<V>>(bytes).map(|object| object.map).map_err(|error| {
        let message = error.to_string();
        match message.strip_prefix(DUPLICATE) {
            Some(rest) => Error::Duplicate(name_in(rest)),
            None => Error::Syntax(error),
        }
    })
}

/// The name between the back-ticks, cut to a length that is fit for a log.
fn name_in(message: &str) -> String {
    let name = message.trim_start_matches(" `");
    name[..name.rfind('`').unwrap_or(name.len())].chars().take(64).collect()
}

struct Object<V> {
    map: Map<String, Value>,
    values: PhantomData<V>,
}

impl<'de, V: Deserialize<'de> + Into<Value>> Deserialize<'de> for Object<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de> + Into<Value>> Visitor<'de> for ObjectVisitor<V> {
    type Value = Object<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        members::<V, A>(access).map(|map| Object { map, values: PhantomData })
    }
}

fn members<'de, V, A>(mut access: A) -> Result<Map<String, Value>, A::Error>
where
    V: Deserialize<'de> + Into<Value>,
    A: MapAccess<'de>,
{
    let mut map = Map::new();
    while let Some(name) = access.next_key::<String>()? {
        if map.contains_key(&name) {
            return Err(de::Error::custom(format_args!("{DUPLICATE} `{name}`")));
        }
        let value = access.next_value::<V>()?;
        map.insert(name, value.into());
    }
    Ok(map)
}

/// A value whose objects have unique members at every depth. Depth itself is bounded by `serde_json` (128).
struct Unique(Value);

impl From<Unique> for Value {
    fn from(unique: Unique) -> Self {
        unique.0
    }
}

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element::<Unique>()? {
            values.push(value.0);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Value, A::Error> {
        members::<Unique, A>(access).map(Value::Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_is_named_where_it_is_looked_for() {
        let top = br#"{"a":1,"b":2,"\u0061":3}"#;
        let deep = br#"{"a":[{"b":{"c":1,"c":2}}]}"#;
        assert!(matches!(object(top), Err(Error::Duplicate(name)) if name == "a"));
        assert!(matches!(deeply_unique_object(top), Err(Error::Duplicate(name)) if name == "a"));
        assert!(object(deep).is_ok());
        assert!(matches!(deeply_unique_object(deep), Err(Error::Duplicate(name)) if name == "c"));
    }

    #[test]
    fn only_whole_objects_are_taken() {
        for text in ["", "[]", "1", "null", "{} x", "{", "\u{feff}{}", "{\"a\":NaN}"] {
            assert!(matches!(object(text.as_bytes()), Err(Error::Syntax(_))), "{text}");
            assert!(matches!(deeply_unique_object(text.as_bytes()), Err(Error::Syntax(_))), "{text}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(100_000)).into_bytes();
        assert!(object(&deep).is_err() && deeply_unique_object(&deep).is_err());
    }

    #[test]
    fn values_read_deeply_are_the_values_that_were_written() {
        let text = br#"{"a":[null,true,-1,18446744073709551615,1.5,"x\u0000",{"b":{}}]}"#;
        assert_eq!(deeply_unique_object(text).unwrap(), object(text).unwrap());
    }
}
