//! Takes typed fields out of a JSON object. Errors contain the path of the field and never its value.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Error;
use crate::json::{Json, Object, is_id};
use crate::patch::Patch;
use crate::timestamp;

/// An object from which known members are taken. The remaining members are the `extra` of the struct.
pub(crate) struct Reader<'a> {
    path: String,
    members: Object<'a>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(path: String, members: Object<'a>) -> Self {
        Self { path, members }
    }

    /// Takes the object `name` from `data` or, in the flat shape, from the envelope.
    pub(crate) fn subject(&mut self, name: &'static str) -> Result<Self, Error> {
        let (path, value) = match self.members.get_mut("data") {
            None | Some(Json::Null) => (name.to_owned(), self.members.take(name)),
            Some(Json::Object(data)) => (format!("data.{name}"), data.take(name)),
            Some(other) => return Err(wrong_type("data".to_owned(), "an object", other)),
        };
        if let Some(Json::Object(data)) = self.members.get("data")
            && data.is_empty()
        {
            self.members.take("data");
        }
        match value {
            Some(Json::Object(members)) => Ok(Self::new(path, members)),
            None | Some(Json::Null) => Err(Error::MissingField { field: path }),
            Some(other) => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Puts the remaining members of a subject back to their place.
    pub(crate) fn put_back(&mut self, name: &'static str, subject: Self) {
        if subject.members.is_empty() {
            return;
        }
        let rest = Json::Object(subject.members);
        if subject.path == name {
            return self.members.put(name, rest);
        }
        let mut data = match self.members.take("data") {
            Some(Json::Object(data)) => data,
            _ => Object::default(),
        };
        data.put(name, rest);
        self.members.put("data", Json::Object(data));
    }

    /// Returns an error unless the member `key` is an object.
    pub(crate) fn require_object(&self, key: &str) -> Result<(), Error> {
        match self.members.get(key) {
            Some(Json::Object(_)) => Ok(()),
            None | Some(Json::Null) => Err(Error::MissingField { field: self.field(key) }),
            Some(other) => Err(wrong_type(self.field(key), "an object", other)),
        }
    }

    /// Takes `data` unread or, if there is none, all remaining members.
    pub(crate) fn raw_data(&mut self) -> Value {
        let all = |reader: &mut Self| Json::Object(std::mem::take(&mut reader.members));
        self.members.take("data").unwrap_or_else(|| all(self)).into()
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Patch<String>, Error> {
        self.take(key, "a string", |value| match value {
            Json::Text(text) => Ok(text.into_owned()),
            other => Err(other),
        })
    }

    /// A string that is null if it is empty: Kinde writes a missing email or phone as `""`.
    pub(crate) fn address(&mut self, key: &str) -> Result<Patch<String>, Error> {
        Ok(match self.text(key)? {
            Patch::Value(text) if text.is_empty() => Patch::Null,
            other => other,
        })
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<Patch<bool>, Error> {
        self.take(key, "true or false", |value| match value {
            Json::Bool(flag) => Ok(flag),
            other => Err(other),
        })
    }

    pub(crate) fn list(&mut self, key: &str) -> Result<Patch<Vec<Json<'a>>>, Error> {
        self.take(key, "a list", |value| match value {
            Json::List(values) => Ok(values),
            other => Err(other),
        })
    }

    /// A required object.
    pub(crate) fn required_object(&mut self, key: &str) -> Result<Self, Error> {
        let path = self.field(key);
        match self.members.take(key) {
            Some(Json::Object(members)) => Ok(Self::new(path, members)),
            None | Some(Json::Null) => Err(Error::MissingField { field: path }),
            Some(other) => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// A list of objects, each with a reader for its path.
    pub(crate) fn objects(&mut self, key: &str) -> Result<Patch<Vec<Self>>, Error> {
        let path = self.field(key);
        let list = self.list(key)?;
        let read = |(index, entry)| match entry {
            Json::Object(members) => Ok(Self::new(format!("{path}[{index}]"), members)),
            other => Err(wrong_type(format!("{path}[{index}]"), "an object", &other)),
        };
        list.try_map(|entries| entries.into_iter().enumerate().map(read).collect())
    }

    /// A required list of objects. An absent list is an error, not an empty list.
    pub(crate) fn required_objects(&mut self, key: &str) -> Result<Vec<Self>, Error> {
        self.objects(key)?.into_value().ok_or_else(|| Error::MissingField { field: self.field(key) })
    }

    /// A list of strings. Null entries are skipped.
    pub(crate) fn texts(&mut self, key: &str) -> Result<Patch<Vec<String>>, Error> {
        let path = self.field(key);
        let list = self.list(key)?;
        let read = |(index, entry)| match entry {
            Json::Text(text) => Some(Ok(text.into_owned())),
            Json::Null => None,
            other => Some(Err(wrong_type(format!("{path}[{index}]"), "a string", &other))),
        };
        list.try_map(|entries| entries.into_iter().enumerate().filter_map(read).collect())
    }

    /// An object with members that are strings or null.
    pub(crate) fn text_map(&mut self, key: &str) -> Result<Patch<BTreeMap<String, Patch<String>>>, Error> {
        let path = self.field(key);
        let members = self.take(key, "an object", |value| match value {
            Json::Object(members) => Ok(members),
            other => Err(other),
        })?;
        let read = |(name, value): (Cow<'_, str>, Json<'_>)| match value {
            Json::Text(text) => Ok((name.into_owned(), Patch::Value(text.into_owned()))),
            Json::Null => Ok((name.into_owned(), Patch::Null)),
            other => Err(wrong_type(format!("{path}.{name}"), "a string", &other)),
        };
        members.try_map(|members| members.into_members().map(read).collect())
    }

    /// A non-negative integer; `None` if absent or null.
    pub(crate) fn count(&mut self, key: &str) -> Result<Option<u64>, Error> {
        let count = self.take(key, "a non-negative integer", |value| match &value {
            Json::Number(number) => number.as_u64().ok_or(value),
            _ => Err(value),
        })?;
        Ok(count.into_value())
    }

    pub(crate) fn required_id(&mut self, key: &str) -> Result<String, Error> {
        self.optional_id(key)?.ok_or_else(|| Error::MissingField { field: self.field(key) })
    }

    pub(crate) fn optional_id(&mut self, key: &str) -> Result<Option<String>, Error> {
        match self.text(key)?.into_value() {
            Some(id) if !is_id(&id) => Err(Error::InvalidIdentifier { field: self.field(key) }),
            id => Ok(id),
        }
    }

    pub(crate) fn time(&mut self, key: &str) -> Result<Option<Timestamp>, Error> {
        let time = match self.members.take(key) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Text(text)) => timestamp::parse(&text).map(Some),
            Some(other) => timestamp::from_json(&other.into()).map(Some),
        };
        time.map_err(|source| Error::InvalidTime { field: self.field(key), source })
    }

    pub(crate) fn into_rest(self) -> Map<String, Value> {
        self.members.into()
    }

    /// The path of a member.
    pub(crate) fn field(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take<T>(
        &mut self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(Json<'a>) -> Result<T, Json<'a>>,
    ) -> Result<Patch<T>, Error> {
        match self.members.take(key) {
            None => Ok(Patch::Absent),
            Some(Json::Null) => Ok(Patch::Null),
            Some(value) => {
                read(value).map(Patch::Value).map_err(|found| wrong_type(self.field(key), expected, &found))
            }
        }
    }
}

pub(crate) fn wrong_type(field: String, expected: &'static str, found: &Json<'_>) -> Error {
    let found = match found {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::Text(_) => "a string",
        Json::List(_) => "a list",
        Json::Object(_) => "an object",
    };
    Error::WrongType { field, expected, found }
}
