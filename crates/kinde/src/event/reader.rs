//! Takes typed fields out of a JSON object, with errors that name the path.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Error;
use crate::json::is_id;
use crate::patch::Patch;
use crate::timestamp;

/// An object from which known members are taken; what is left is the `extra` of its struct.
pub(crate) struct Reader {
    path: String,
    map: Map<String, Value>,
}

impl Reader {
    pub(crate) fn new(path: String, map: Map<String, Value>) -> Self {
        Self { path, map }
    }

    /// Takes the object `name` that the event is about, from `data` or, in the flat shape, from the top.
    pub(crate) fn subject(&mut self, name: &'static str) -> Result<Self, Error> {
        let (path, value) = match self.map.get_mut("data") {
            None | Some(Value::Null) => (name.to_owned(), self.map.remove(name)),
            Some(Value::Object(data)) => (format!("data.{name}"), data.remove(name)),
            Some(other) => return Err(wrong_type("data".to_owned(), "an object", other)),
        };
        if self.map.get("data").and_then(Value::as_object).is_some_and(Map::is_empty) {
            self.map.remove("data");
        }
        match value {
            Some(Value::Object(map)) => Ok(Self::new(path, map)),
            None | Some(Value::Null) => Err(Error::Missing { field: path }),
            Some(other) => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Puts what is left of a subject back where it was.
    pub(crate) fn put_back(&mut self, name: &'static str, subject: Self) {
        if subject.map.is_empty() {
            return;
        }
        let rest = Value::Object(subject.map);
        if subject.path == name {
            self.map.insert(name.to_owned(), rest);
        } else if let Value::Object(data) = self.map.entry("data").or_insert_with(|| Map::new().into()) {
            data.insert(name.to_owned(), rest);
        }
    }

    /// Takes `data` as it is; where there is none, everything that is left.
    pub(crate) fn raw_data(&mut self) -> Value {
        self.map.remove("data").unwrap_or_else(|| Value::Object(std::mem::take(&mut self.map)))
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Patch<String>, Error> {
        self.take(key, "a string", |value| match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        })
    }

    /// Text of which an empty string says that there is none, as Kinde writes email and phone.
    pub(crate) fn address(&mut self, key: &str) -> Result<Patch<String>, Error> {
        Ok(match self.text(key)? {
            Patch::Value(text) if text.is_empty() => Patch::Null,
            other => other,
        })
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<Patch<bool>, Error> {
        self.take(key, "true or false", |value| value.as_bool().ok_or(value))
    }

    pub(crate) fn list(&mut self, key: &str) -> Result<Patch<Vec<Value>>, Error> {
        self.take(key, "a list", |value| match value {
            Value::Array(values) => Ok(values),
            other => Err(other),
        })
    }

    /// An object that must be there.
    pub(crate) fn required_object(&mut self, key: &str) -> Result<Self, Error> {
        let path = self.field(key);
        match self.map.remove(key) {
            Some(Value::Object(map)) => Ok(Self::new(path, map)),
            None | Some(Value::Null) => Err(Error::Missing { field: path }),
            Some(other) => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// A list of objects, each with a reader whose errors name its place.
    pub(crate) fn objects(&mut self, key: &str) -> Result<Patch<Vec<Self>>, Error> {
        let path = self.field(key);
        let entries = match self.list(key)? {
            Patch::Value(entries) => entries,
            Patch::Null => return Ok(Patch::Null),
            Patch::Absent => return Ok(Patch::Absent),
        };
        let read = |(index, entry)| match entry {
            Value::Object(map) => Ok(Self::new(format!("{path}[{index}]"), map)),
            other => Err(wrong_type(format!("{path}[{index}]"), "an object", &other)),
        };
        entries.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Patch::Value)
    }

    /// A list of objects that must be there: its absence is no empty list.
    pub(crate) fn required_objects(&mut self, key: &str) -> Result<Vec<Self>, Error> {
        self.objects(key)?.into_value().ok_or_else(|| Error::Missing { field: self.field(key) })
    }

    /// A list of strings; null entries are skipped.
    pub(crate) fn texts(&mut self, key: &str) -> Result<Patch<Vec<String>>, Error> {
        let path = self.field(key);
        let entries = match self.list(key)? {
            Patch::Value(entries) => entries,
            Patch::Null => return Ok(Patch::Null),
            Patch::Absent => return Ok(Patch::Absent),
        };
        let read = |(index, entry)| match entry {
            Value::String(text) => Some(Ok(text)),
            Value::Null => None,
            other => Some(Err(wrong_type(format!("{path}[{index}]"), "a string", &other))),
        };
        entries.into_iter().enumerate().filter_map(read).collect::<Result<_, _>>().map(Patch::Value)
    }

    /// A number of times; absent and null look alike.
    pub(crate) fn count(&mut self, key: &str) -> Result<Option<u64>, Error> {
        let count = self.take(key, "a whole number from zero up", |value| value.as_u64().ok_or(value))?;
        Ok(count.into_value())
    }

    pub(crate) fn required_id(&mut self, key: &str) -> Result<String, Error> {
        self.optional_id(key)?.ok_or_else(|| Error::Missing { field: self.field(key) })
    }

    pub(crate) fn optional_id(&mut self, key: &str) -> Result<Option<String>, Error> {
        match self.text(key)?.into_value() {
            Some(id) if !is_id(&id) => Err(Error::Identifier { field: self.field(key) }),
            id => Ok(id),
        }
    }

    pub(crate) fn time(&mut self, key: &str) -> Result<Option<Timestamp>, Error> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => timestamp::from_json(&value)
                .map(Some)
                .map_err(|source| Error::Time { field: self.field(key), source }),
        }
    }

    pub(crate) fn into_rest(self) -> Map<String, Value> {
        self.map
    }

    /// The path of a member, for errors.
    pub(crate) fn field(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take<T>(
        &mut self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(Value) -> Result<T, Value>,
    ) -> Result<Patch<T>, Error> {
        match self.map.remove(key) {
            None => Ok(Patch::Absent),
            Some(Value::Null) => Ok(Patch::Null),
            Some(value) => {
                read(value).map(Patch::Value).map_err(|found| wrong_type(self.field(key), expected, &found))
            }
        }
    }
}

pub(crate) fn wrong_type(field: String, expected: &'static str, found: &Value) -> Error {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Error::WrongType { field, expected, found }
}
