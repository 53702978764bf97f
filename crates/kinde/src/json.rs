//! JSON objects without duplicate members.
//!
//! Of two members with the same name, one parser keeps the first and another keeps the last, so the value that one
//! component checked may not be the value that another one uses. Here a duplicate at any depth is an error that names
//! the member. Strings borrow from the input unless they contain escapes.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, value::RawValue};

/// Maximum length of an identifier, in bytes.
const MAX_ID_BYTES: usize = 256;
/// Prefix of the message of a duplicate: `serde` errors carry no type of our own.
const DUPLICATE: &str = "duplicate member";
/// Up to this number of members, comparing all pairs is faster than sorting.
const FEW: usize = 24;
/// Room for outermost members at first; an event of Kinde has fewer.
const USUAL: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("duplicate member {0:?}")]
    Duplicate(String),
    #[error("not a JSON object")]
    Syntax(#[source] serde_json::Error),
}

/// A JSON value. Strings borrow from the input unless they contain escapes.
#[derive(Debug)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Self>),
    Object(Object<'a>),
}

/// The members of an object. Names are unique.
#[derive(Debug, Default)]
pub(crate) struct Object<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

/// The outermost members of an object with their values as raw, unread JSON text. Names may repeat.
#[derive(Debug, Default)]
pub(crate) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// Parses an object. `serde_json` limits the depth to 128.
pub(crate) fn object(bytes: &[u8]) -> Result<Object<'_>, Error> {
    read(bytes)
}

/// Parses the outermost object. Duplicates are detected among its members and not inside their values.
pub(crate) fn members(bytes: &[u8]) -> Result<Members<'_>, Error> {
    let members: Members<'_> = read(bytes)?;
    match duplicate(&members.0) {
        Some(name) => Err(Error::Duplicate(loggable(name))),
        None => Ok(members),
    }
}

/// Returns the text of a payload, with U+FFFD in place of what is not UTF-8. `from_utf8_lossy` alone takes several times as long.
#[cfg(feature = "webhook")]
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// Parses the outermost object and accepts duplicate members; empty if `text` is not an object.
#[cfg(feature = "webhook")]
pub(crate) fn members_with_duplicates(text: &str) -> Members<'_> {
    serde_json::from_str(text).unwrap_or_default()
}

fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| {
        let message = error.to_string();
        match message.strip_prefix(DUPLICATE) {
            Some(rest) => Error::Duplicate(quoted_name(rest)),
            None => Error::Syntax(error),
        }
    })
}

/// Parses an object into an owned map.
pub(crate) fn map(bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    object(bytes).map(Into::into)
}

/// Returns true for an identifier that can be stored and logged: 1 to 256 bytes without control characters.
pub(crate) fn is_id(text: &str) -> bool {
    if text.is_empty() || text.len() > MAX_ID_BYTES {
        return false;
    }
    // Nearly every identifier is ASCII, which needs no decoding.
    if text.is_ascii() {
        return !text.bytes().any(|byte| byte.is_ascii_control());
    }
    !text.chars().any(char::is_control)
}

/// The name between the back-ticks of a message.
fn quoted_name(message: &str) -> String {
    let name = message.trim_start_matches(" `");
    loggable(&name[..name.rfind('`').unwrap_or(name.len())])
}

/// A name, shortened to at most 64 characters because it comes from the input.
fn loggable(name: &str) -> String {
    name.chars().take(64).collect()
}

impl<'a> Object<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Json<'a>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub(crate) fn into_members(self) -> impl Iterator<Item = (Cow<'a, str>, Json<'a>)> {
        self.0.into_iter()
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Json<'a>> {
        self.0.iter_mut().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Json<'a>> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Inserts a member and replaces an existing one with the same name.
    pub(crate) fn put(&mut self, name: &'static str, value: Json<'a>) {
        self.take(name);
        self.0.push((Cow::Borrowed(name), value));
    }
}

impl<'a> Members<'a> {
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The raw JSON text of the first member with this name.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.get())
    }

    /// The value of the first member with this name if it is a string.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        let Text(text) = serde_json::from_str(self.get(name)?).ok()?;
        Some(text)
    }

    #[cfg(feature = "webhook")]
    pub(crate) fn has_duplicates(&self) -> bool {
        duplicate(&self.0).is_some()
    }
}

/// A string; borrows unless it contains escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A name that occurs more than once.
fn duplicate<'m, V>(members: &'m [(Cow<'_, str>, V)]) -> Option<&'m str> {
    if members.len() <= FEW {
        let is_again = |at: usize| members[..at].iter().any(|(name, _)| *name == members[at].0);
        return (0..members.len()).find(|at| is_again(*at)).map(|at| members[at].0.as_ref());
    }
    let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_ref()).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

impl From<Object<'_>> for Map<String, Value> {
    fn from(object: Object<'_>) -> Self {
        object.0.into_iter().map(|(name, value)| (name.into_owned(), value.into())).collect()
    }
}

impl From<Json<'_>> for Value {
    fn from(json: Json<'_>) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => Self::Number(number),
            Json::Text(text) => Self::String(text.into_owned()),
            Json::List(values) => Self::Array(values.into_iter().map(Into::into).collect()),
            Json::Object(object) => Self::Object(object.into()),
        }
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_map(JsonVisitor)? {
            Json::Object(object) => Ok(object),
            _ => Err(de::Error::custom("not an object")),
        }
    }
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

/// The name of a member.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_str(JsonVisitor)? {
            Json::Text(name) => Ok(Self(name)),
            _ => Err(de::Error::custom("not a name")),
        }
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json<'de>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json<'de>, A::Error> {
        let members = all(&mut access, 0)?;
        match duplicate(&members) {
            Some(name) => Err(de::Error::custom(format_args!("{DUPLICATE} `{name}`"))),
            None => Ok(Json::Object(Object(members))),
        }
    }
}

/// Reads all members of a map, with room for `usual` at first.
fn all<'de, V: Deserialize<'de>, A: MapAccess<'de>>(
    access: &mut A,
    usual: usize,
) -> Result<Vec<(Cow<'de, str>, V)>, A::Error> {
    let mut members = Vec::with_capacity(usual);
    while let Some(Name(name)) = access.next_key()? {
        members.push((name, access.next_value()?));
    }
    Ok(members)
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members<'de>, A::Error> {
        all(&mut access, USUAL).map(Members)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_duplicate_member_is_named_at_any_depth_and_in_objects_of_any_size() {
        let top = br#"{"a":1,"b":2,"\u0061":3}"#;
        assert!(matches!(object(top), Err(Error::Duplicate(name)) if name == "a"));
        let deep = br#"{"a":[{"b":{"c":1,"c":2}}]}"#;
        assert!(matches!(object(deep), Err(Error::Duplicate(name)) if name == "c"));
        for members in [2, FEW, FEW + 1, 1000] {
            let unique: Vec<_> = (0..members).map(|n| format!("\"m{n}\":{n}")).collect();
            assert_eq!(map(format!("{{{}}}", unique.join(",")).as_bytes()).unwrap().len(), members);
            let again = format!("{{{},\"m1\":0}}", unique.join(","));
            assert!(matches!(object(again.as_bytes()), Err(Error::Duplicate(name)) if name == "m1"));
        }
    }

    #[test]
    fn the_values_of_members_are_not_parsed() {
        let deep = "[".repeat(500) + &"]".repeat(500);
        let text = format!(r#"{{"a":{{"b":1,"b":2}},"c":"x","d":{deep},"e":1e999}}"#);
        let found = members(text.as_bytes()).unwrap();
        assert_eq!((found.get("a"), found.get("c")), (Some(r#"{"b":1,"b":2}"#), Some(r#""x""#)));
        assert_eq!((found.get("d"), found.get("b")), (Some(&*deep), None));
        let again = members(br#"{"a":1,"\u0061":2}"#);
        assert!(matches!(again, Err(Error::Duplicate(name)) if name == "a"));
        assert!(matches!(members(b"[]"), Err(Error::Syntax(_))));
    }

    #[test]
    fn only_complete_objects_are_accepted() {
        for text in ["", "[]", "1", "null", "\"a\"", "{} x", "{", "\u{feff}{}", "{\"a\":NaN}", "{1:2}"] {
            assert!(matches!(object(text.as_bytes()), Err(Error::Syntax(_))), "{text}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(100_000)).into_bytes();
        assert!(object(&deep).is_err());
    }

    #[test]
    fn values_keep_their_type_and_content() {
        let text = r#"{"a":[null,true,-1,18446744073709551615,1.5,"x\u0000",{"b":{}}],"\u00e9":"plain"}"#;
        let expect = json!({"a": [null, true, -1, u64::MAX, 1.5, "x\0", {"b": {}}], "é": "plain"});
        assert_eq!(Value::Object(map(text.as_bytes()).unwrap()), expect);
    }

    #[test]
    fn an_id_has_1_to_256_bytes_and_no_control_character() {
        for id in ["k", "kp_1 2", "kp_é", &"k".repeat(MAX_ID_BYTES), &"é".repeat(MAX_ID_BYTES / 2)] {
            assert!(is_id(id), "{id:?}");
        }
        for control in ['\0', '\t', '\n', '\u{1f}', '\u{7f}', '\u{80}', '\u{9f}'] {
            assert!(!is_id(&format!("k{control}")) && !is_id(&format!("é{control}")), "{control:?}");
        }
        for id in [String::new(), "k".repeat(MAX_ID_BYTES + 1), "é".repeat(MAX_ID_BYTES / 2 + 1)] {
            assert!(!is_id(&id), "{id:?}");
        }
    }

    #[test]
    fn members_are_taken_and_put() {
        let mut object = object(br#"{"a":1,"b":"two","c":null}"#).unwrap();
        assert!(matches!(object.take("b"), Some(Json::Text(Cow::Borrowed("two")))));
        assert!(object.take("b").is_none() && object.get("b").is_none());
        object.put("a", Json::Bool(true));
        assert!(matches!(object.get_mut("a"), Some(Json::Bool(true))));
        assert_eq!(Value::Object(object.into()), json!({"a": true, "c": null}));
    }
}
