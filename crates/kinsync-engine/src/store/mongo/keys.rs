//! Where the keys of kinsync stand in a user document: the mapping of the settings. Validated once; a path never derives from
//! user input.

use std::collections::BTreeMap;

use bson::{
    Document, RawDocument,
    raw::{CStr, CString, RawBsonRef},
};
use kinsync_core::{Field, UserId};
use serde::{Deserialize, Serialize};

use super::TombstoneEmail;
use crate::store::{DocumentKey, Error, KeySet, Row};

/// The sub-document with kinsync's metadata. Never mapped.
pub(super) const METADATA: &str = "kinsync";

/// Names and form of kinsync's keys in a user document, and the keys with values of the application that kinsync may replace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FieldMapping {
    /// Sub-document that contains every key without a name of its own, except [`DocumentKey::KindeId`]: existing documents of
    /// an application have that key at the top level.
    pub prefix: Option<String>,
    /// Names of single keys: a plain name or a path of depth two such as `profile.email`; `None`: kinsync does not write the
    /// key.
    pub names: BTreeMap<DocumentKey, Option<String>>,
    /// Keys under which kinsync replaces a value that it did not write. It records the former value in `kinsync.replaced`.
    pub take_over: Vec<DocumentKey>,
    /// Whether documents show the address in lower case, as Mongoose writes a key with `lowercase: true`. Users then compete for
    /// addresses in that form. The address as Kinde has it stays in the state of the user.
    pub lowercase_email: bool,
}

impl FieldMapping {
    /// Checks the names, and those of the defaults.
    ///
    /// # Errors
    /// The hint of [`Error::Refused`] names the first name that cannot be used, and why.
    pub fn check(&self, defaults: &BTreeMap<String, serde_json::Value>) -> Result<(), Error> {
        Keys::with_defaults(self, defaults.clone()).map(|_| ())
    }
}

/// A place in a document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Path {
    /// Sub-document that contains the key.
    pub(super) outer: Option<CString>,
    /// Last part.
    pub(super) last: CString,
    /// The whole path.
    dotted: CString,
}

impl Path {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('.').collect();
        let is_plain = |part: &&str| !part.is_empty() && !part.contains(['$', '\0']);
        let is_taken = parts[0] == METADATA || parts[0] == "_id";
        if parts.len() > 2 || !parts.iter().all(is_plain) || is_taken {
            return Err(refused(format!(
                "`{text}` cannot be the name of a key; use a plain name or one below a sub-document such as `kinde.email`, \
                 without `$`, and neither `_id` nor `{METADATA}`"
            )));
        }
        let cstring = |text: &str| CString::try_from(text).map_err(|error| refused(error.to_string()));
        let outer = (parts.len() == 2).then(|| cstring(parts[0])).transpose()?;
        Ok(Self { outer, last: cstring(parts[parts.len() - 1])?, dotted: cstring(text)? })
    }

    /// Returns the path with a dot, as query and update operators take it.
    pub(super) fn dotted(&self) -> &CStr {
        &self.dotted
    }

    /// Returns the key at the top level of the document.
    fn first(&self) -> &CStr {
        self.outer.as_deref().unwrap_or(&self.last)
    }

    /// Returns whether one of the paths is the other, or contains it.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (&self.outer, &other.outer) {
            (Some(_), Some(_)) | (None, None) => self.dotted == other.dotted,
            _ => self.first() == other.first(),
        }
    }
}

/// A valid mapping. Two equal mappings have the same [`Self::id`].
#[derive(Debug)]
pub(super) struct Keys {
    /// Number of the mapping in documents; 0 for the mapping without settings.
    pub(super) id: i64,
    /// Keys under which kinsync replaces values of the application.
    pub(super) take_over: KeySet,
    /// Values of the settings by path: see [`super::Config::defaults`].
    defaults: Vec<(CString, serde_json::Value)>,
    /// Whether documents show the address in lower case.
    pub(super) lowercases_email: bool,
    /// What happens to the address of a deleted user where a rule refuses a document without one.
    pub(super) tombstone_email: TombstoneEmail,
    paths: Vec<(DocumentKey, Option<Path>)>,
}

/// A mapping as stored in kinsync's record of mappings.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct StoredPaths {
    #[serde(rename = "lowercaseEmail", default, skip_serializing_if = "std::ops::Not::not")]
    lowercases_email: bool,
    /// The paths by name. `None`: switched off.
    #[serde(flatten)]
    paths: BTreeMap<DocumentKey, Option<String>>,
}

/// The values that a document has under kinsync's keys.
pub(super) struct Values<'a>(Vec<(DocumentKey, RawBsonRef<'a>)>);

impl<'a> Values<'a> {
    pub(super) fn of(&self, key: DocumentKey) -> Option<RawBsonRef<'a>> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }
}

impl Keys {
    /// Validates the mapping of the settings.
    pub(super) fn new(mapping: &FieldMapping) -> Result<Self, Error> {
        let hidden = [Field::CreatedOn, Field::OrganizationCodes].map(DocumentKey::Field);
        if let Some(key) = mapping.names.keys().find(|key| hidden.contains(key)) {
            return Err(refused(format!("`{key}` has no key of its own in a user document")));
        }
        let path_of = |key: DocumentKey| {
            let default = match &mapping.prefix {
                Some(prefix) if key != DocumentKey::KindeId => format!("{prefix}.{}", key.name()),
                _ => key.name().to_owned(),
            };
            mapping.names.get(&key).cloned().unwrap_or(Some(default))
        };
        let paths = DocumentKey::ALL.into_iter().map(|key| (key, path_of(key))).collect();
        let lowercases_email = mapping.lowercase_email;
        let keys = Self::from_paths(&StoredPaths { lowercases_email, paths })?;
        Ok(Self { take_over: mapping.take_over.iter().copied().collect(), ..keys })
    }

    /// Validates the mapping and the defaults of the settings. A default has a plain name, or the path of a key of kinsync.
    pub(super) fn with_defaults(
        mapping: &FieldMapping,
        defaults: BTreeMap<String, serde_json::Value>,
    ) -> Result<Self, Error> {
        let mut keys = Self::new(mapping)?;
        for (name, value) in defaults {
            let path = Path::parse(&name)?;
            let is_a_key =
                keys.paths.iter().flat_map(|(_, path)| path).any(|known| known.dotted == path.dotted);
            let is_in_the_way =
                keys.paths.iter().flat_map(|(_, known)| known).any(|known| known.overlaps(&path));
            if !is_a_key && (path.outer.is_some() || is_in_the_way) {
                return Err(refused(format!(
                    "`{name}` cannot have a default: use a plain name that is no sub-document of kinsync"
                )));
            }
            if keys.kinde_id() == name {
                return Err(refused(format!("`{name}` cannot have a default: it is the Kinde id")));
            }
            keys.defaults.push((path.dotted, value));
        }
        Ok(keys)
    }

    /// Returns the value that is shown under a key of kinsync while Kinde has none.
    pub(super) fn default_of(&self, key: DocumentKey) -> Option<&serde_json::Value> {
        let path = self.path(key).filter(|_| !self.defaults.is_empty())?;
        self.defaults.iter().find(|(name, _)| *name == path.dotted).map(|(_, value)| value)
    }

    /// Returns the values for keys of the application in documents that kinsync inserts.
    pub(super) fn own_defaults(&self) -> impl Iterator<Item = (&CStr, &serde_json::Value)> {
        let is_ours = |name: &CStr| self.at(name).next().is_some_and(|(_, path)| path.outer.is_none());
        let own = self.defaults.iter().map(|(name, value)| (&**name, value));
        own.filter(move |(name, _)| !is_ours(name) && !name.as_str().contains('.'))
    }

    /// Validates paths, for example those that another process stored.
    pub(super) fn from_paths(stored: &StoredPaths) -> Result<Self, Error> {
        let mut paths: Vec<(DocumentKey, Option<Path>)> = Vec::with_capacity(DocumentKey::ALL.len());
        for key in DocumentKey::ALL {
            let path = stored.paths.get(&key).and_then(Option::as_deref).map(Path::parse).transpose()?;
            let overlaps = |path: &Path| {
                let mut others = paths.iter().filter_map(|(_, other)| other.as_ref());
                others.any(|other| path.overlaps(other))
            };
            if let Some(path) = path.as_ref().filter(|path| overlaps(path)) {
                let path = path.dotted.as_str();
                return Err(refused(format!(
                    "`{path}` is the name of two keys; set another name for one of them"
                )));
            }
            if path.is_none() && key == DocumentKey::KindeId {
                return Err(refused("`kindeId` cannot be switched off: kinsync finds a user by it".into()));
            }
            paths.push((key, path));
        }
        let lowercases_email = stored.lowercases_email;
        let is_default = !lowercases_email && paths.iter().all(|(key, path)| is_default(*key, path.as_ref()));
        Ok(Self {
            id: if is_default { 0 } else { hash(&paths, lowercases_email) },
            lowercases_email,
            take_over: KeySet::default(),
            tombstone_email: TombstoneEmail::default(),
            defaults: Vec::new(),
            paths,
        })
    }

    /// Returns the paths, to be stored.
    pub(super) fn stored(&self) -> StoredPaths {
        let text = |path: &Path| path.dotted.as_str().to_owned();
        let paths = self.paths.iter().map(|(key, path)| (*key, path.as_ref().map(text))).collect();
        StoredPaths { lowercases_email: self.lowercases_email, paths }
    }

    /// Returns the row of a user without observations that is not stored.
    pub(super) fn unknown(&self, id: UserId) -> Row {
        let mut row = Row::unknown(id);
        row.metadata.lowercases_email = self.lowercases_email;
        row
    }

    /// Returns the path of a key, or `None` if the settings switch it off.
    pub(super) fn path(&self, key: DocumentKey) -> Option<&Path> {
        self.paths.iter().find(|(known, _)| *known == key).and_then(|(_, path)| path.as_ref())
    }

    /// Returns the dotted path of a key, or `None` if the settings switch it off.
    pub(super) fn dotted(&self, key: DocumentKey) -> Option<&str> {
        self.path(key).map(|path| path.dotted.as_str())
    }

    /// Returns the dotted path of the Kinde id.
    pub(super) fn kinde_id(&self) -> &str {
        self.dotted(DocumentKey::KindeId).expect("`from_paths` requires a path for the Kinde id")
    }

    /// Returns the dotted path of the email address, or `None` if the settings switch it off.
    pub(super) fn email(&self) -> Option<&str> {
        self.dotted(DocumentKey::EMAIL)
    }

    /// Returns the keys with arrays.
    pub(super) fn arrays() -> Vec<DocumentKey> {
        [Field::Organizations, Field::Identities].map(DocumentKey::Field).into()
    }

    /// Returns the keys at these paths, or that contain them. A document can lack each of them.
    pub(super) fn optional_at(&self, paths: &[String]) -> Vec<DocumentKey> {
        let is_at = |key: &DocumentKey| {
            self.dotted(*key).is_some_and(|own| {
                paths.iter().any(|path| {
                    path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                })
            })
        };
        DocumentKey::ALL.into_iter().filter(|key| *key != DocumentKey::KindeId && is_at(key)).collect()
    }

    /// Reads the values under kinsync's keys. Null counts as absent, and a value in place of a sub-document as the value of
    /// each key below.
    pub(super) fn values<'a>(&self, doc: &'a RawDocument) -> Values<'a> {
        let mut values = Vec::with_capacity(self.paths.len());
        for (name, value) in doc.iter().map_while(Result::ok) {
            for (key, path) in self.at(name) {
                let value = match (&path.outer, value.as_document()) {
                    (Some(_), Some(inner)) => inner.get(path.last.as_str()).ok().flatten(),
                    _ => Some(value),
                };
                values.extend(value.filter(|value| !is_null(*value)).map(|value| (key, value)));
            }
        }
        Values(values)
    }

    fn at<'a>(&'a self, name: &'a CStr) -> impl Iterator<Item = (DocumentKey, &'a Path)> {
        let paths = self.paths.iter().filter_map(|(key, path)| Some((*key, path.as_ref()?)));
        paths.filter(move |(_, path)| *path.first() == *name)
    }

    /// Returns whether everything under this top-level key belongs to kinsync. In a sub-document of the prefix only the known
    /// keys do.
    pub(super) fn is_ours(&self, name: &CStr, value: RawBsonRef<'_>) -> bool {
        if name.as_str() == METADATA {
            return true;
        }
        let mut own = self.at(name).peekable();
        let Some((_, path)) = own.peek() else { return false };
        if path.outer.is_none() {
            return true;
        }
        let own: Vec<&Path> = own.map(|(_, path)| path).collect();
        let inner = value.as_document().map(|inner| inner.iter().map_while(Result::ok));
        inner.is_some_and(|mut inner| inner.all(|(name, _)| own.iter().any(|path| *path.last == *name)))
    }

    /// Returns the projection that decodes a row without the application's own fields, which may be large.
    pub(super) fn projection(&self) -> Document {
        // Sub-documents are read as a whole: a projection of a path hides a text in place of its sub-document.
        let first = self.paths.iter().filter_map(|(_, path)| Some(path.as_ref()?.first().as_str()));
        first.chain([METADATA, "_id"]).map(|name| (name.to_owned(), 1.into())).collect()
    }
}

fn is_null(value: RawBsonRef<'_>) -> bool {
    matches!(value, RawBsonRef::Null | RawBsonRef::Undefined)
}

fn is_default(key: DocumentKey, path: Option<&Path>) -> bool {
    path.is_some_and(|path| path.dotted.as_str() == key.name())
}

/// Returns a number that differs for different paths: FNV-1a, which is the same in every version of kinsync.
fn hash(paths: &[(DocumentKey, Option<Path>)], lowercases_email: bool) -> i64 {
    let mut hash: u32 = if lowercases_email { 0x811c_9dc4 } else { 0x811c_9dc5 };
    for (key, path) in paths {
        let path = path.as_ref().map_or("", |path| path.dotted.as_str());
        for byte in key.name().bytes().chain([0]).chain(path.bytes()).chain([0]) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
    i64::from(hash).max(1)
}

fn refused(hint: String) -> Error {
    Error::Refused { doing: "use the configured field names", hint, source: None }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn named(names: &[(&str, &str)]) -> FieldMapping {
        let names = names.iter().map(|(key, name)| {
            (DocumentKey::from_name(key).expect("a key"), (*name != "off").then(|| (*name).to_owned()))
        });
        FieldMapping { names: names.collect(), ..FieldMapping::default() }
    }

    #[test]
    fn only_plain_and_unique_names_are_accepted() {
        let check = |key: &str, name: &str, fine: bool| {
            assert_eq!(Keys::new(&named(&[(key, name)])).is_ok(), fine, "{key} as {name:?}");
        };
        for name in ["first_name", "vorname", "profile.first", "off"] {
            check("firstName", name, true);
        }
        check("createdAt", "off", true);
        check("kindeId", "off", false);
        check("kindeId", "kinde_id", true);
        let refused = [
            "",
            "a.b.c",
            ".a",
            "a.",
            "$set",
            "a.$b",
            "_id",
            "kinsync",
            "kinsync.event",
            "kindeId",
            "lastName",
            "a\0b",
            "lastName.first",
        ];
        for name in refused {
            check("firstName", name, false);
        }
        let hidden = FieldMapping {
            names: BTreeMap::from([(DocumentKey::Field(Field::CreatedOn), Some("born".into()))]),
            ..FieldMapping::default()
        };
        assert!(Keys::new(&hidden).is_err());
    }

    #[test]
    fn a_prefix_moves_every_key_but_the_kinde_id_and_those_with_a_name() {
        let mapping = FieldMapping { prefix: Some("kinde".into()), ..named(&[("email", "email")]) };
        let keys = Keys::new(&mapping).expect("valid");
        let paths =
            [DocumentKey::KindeId, DocumentKey::EMAIL, DocumentKey::CreatedAt].map(|key| keys.dotted(key));
        assert_eq!(paths, [Some("kindeId"), Some("email"), Some("kinde.createdAt")]);
        let again = Keys::from_paths(&keys.stored()).expect("valid");
        assert_eq!((again.id, again.stored()), (keys.id, keys.stored()));
    }

    #[test]
    fn equal_mappings_have_the_same_number() {
        let id = |names: &[(&str, &str)]| Keys::new(&named(names)).expect("valid").id;
        assert_eq!(id(&[]), 0);
        assert_eq!(id(&[("email", "email")]), 0);
        assert_eq!(id(&[("email", "mail")]), id(&[("email", "mail"), ("phone", "phone")]));
        assert_ne!(id(&[("email", "mail")]), id(&[("email", "off")]));
    }

    #[test]
    fn values_are_read_at_their_paths() {
        let keys =
            Keys::new(&named(&[("email", "profile.email"), ("phone", "profile.phone")])).expect("valid");
        let doc = rawdoc! { "profile": { "email": "a", "own": 1 }, "username": "ada", "own": true };
        let values = keys.values(&doc);
        let of =
            |name| values.of(DocumentKey::from_name(name).expect("a key")).and_then(bson::RawBsonRef::as_str);
        assert_eq!((of("email"), of("phone"), of("username")), (Some("a"), None, Some("ada")));
        let blocked = rawdoc! { "profile": "a text" };
        let values = keys.values(&blocked);
        assert!(values.of(DocumentKey::EMAIL).is_some_and(|value| value.as_str() == Some("a text")));
    }
}
