//! Maps fields to keys of a user document. Validated once; keys never derive from user input.

use std::collections::BTreeMap;

use bson::{Document, raw::CStr, raw::CString};
use kinsync_core::Field;

use crate::store::Error;

/// Keys that kinsync writes besides those of the fields.
const OWN: [&str; 10] = [
    "kindeId",
    "emailConflict",
    "createdAt",
    "updatedAt",
    "lastSeenAt",
    "lastSignedInAt",
    "isDeleted",
    "deletedAt",
    "source",
    "kinsync",
];

/// Keys of the shown fields.
#[derive(Debug)]
pub(super) struct Keys(Vec<(Field, CString)>);

impl Keys {
    /// Returns the default keys, with some replaced. Fails for invalid or duplicate keys.
    pub(super) fn new(names: &BTreeMap<Field, String>) -> Result<Self, Error> {
        if let Some(field) = names.keys().find(|field| !is_shown(**field)) {
            return Err(refused(format!("`{}` has no key of its own in a user document", field.key())));
        }
        let mut keys = Vec::with_capacity(Field::ALL.len());
        for field in Field::ALL.into_iter().filter(|field| is_shown(*field)) {
            let key = names.get(&field).map_or(field.key(), String::as_str);
            if keys.iter().any(|(_, taken): &(Field, CString)| *taken == *key) {
                return Err(refused(format!("`{key}` is the key of two fields; give each its own key")));
            }
            keys.push((field, parse(key)?));
        }
        Ok(Self(keys))
    }

    /// Returns the key of a shown field.
    pub(super) fn of(&self, field: Field) -> Option<&CStr> {
        self.0.iter().find(|(known, _)| *known == field).map(|(_, key)| &**key)
    }

    /// Returns the field with this key.
    pub(super) fn field(&self, key: &CStr) -> Option<Field> {
        self.0.iter().find(|(_, known)| **known == *key).map(|(field, _)| *field)
    }

    /// Returns whether kinsync writes this key.
    pub(super) fn is_ours(&self, key: &CStr) -> bool {
        OWN.contains(&key.as_str()) || self.field(key).is_some()
    }

    /// Returns the key of the email address.
    pub(super) fn email(&self) -> &str {
        self.of(Field::Email).expect("`is_shown` holds for the email").as_str()
    }

    /// Returns the keys with arrays.
    pub(super) fn arrays(&self) -> Vec<String> {
        let arrays = [Field::Organizations, Field::Identities];
        arrays.iter().filter_map(|field| self.of(*field)).map(|key| key.as_str().to_owned()).collect()
    }

    /// Returns the projection that decodes a row without the application's own fields, which may be large.
    pub(super) fn projection(&self) -> Document {
        let own = ["kindeId", "source", "kinsync"].into_iter();
        let keys = own.chain(self.0.iter().map(|(_, key)| key.as_str()));
        let mut projection: Document = keys.map(|key| (key.to_owned(), 1.into())).collect();
        projection.insert("_id", 0);
        projection
    }
}

/// Returns whether a field has a key of its own. `createdOn` is shown as `createdAt`, and the codes of a scan in
/// `organizations`.
fn is_shown(field: Field) -> bool {
    !matches!(field, Field::CreatedOn | Field::OrganizationCodes)
}

fn parse(key: &str) -> Result<CString, Error> {
    let plain = !key.is_empty() && !key.contains(['.', '$', '\0']);
    if !plain || key == "_id" || OWN.contains(&key) {
        return Err(refused(format!(
            "`{key}` cannot be the key of a field; it must not contain `.` or `$`, and must not be one of _id, {}",
            OWN.join(", ")
        )));
    }
    CString::try_from(key).map_err(|error| refused(error.to_string()))
}

fn refused(hint: String) -> Error {
    Error::Refused { doing: "use the configured field names", hint, source: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_and_unique_keys_are_accepted() {
        let check = |field: Field, key: &str, fine: bool| {
            let names = BTreeMap::from([(field, key.to_owned())]);
            assert_eq!(Keys::new(&names).is_ok(), fine, "{field:?} as {key:?}");
        };
        check(Field::FirstName, "first_name", true);
        check(Field::FirstName, "vorname", true);
        for key in ["", "a.b", "$set", "_id", "kinsync", "kindeId", "updatedAt", "lastName", "a\0b"] {
            check(Field::FirstName, key, false);
        }
        check(Field::CreatedOn, "born", false);
    }
}
