//! The fields of a user and their values.
//!
//! A new synced field needs a variant of [`Field`] here, and changes of the files that the table in CONTRIBUTING.md lists. Join and
//! stores iterate over [`Field::ALL`] and need no change.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{membership::Memberships, property::Properties, rfc3339, version::Micros};

/// A synced field of a user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Field {
    Email,
    FirstName,
    LastName,
    Phone,
    Username,
    IsSuspended,
    IsPasswordResetRequested,
    Organizations,
    Picture,
    EmailVerified,
    CreatedOn,
    ProvidedId,
    Identities,
    /// Organization codes as a scan lists them, without roles and permissions. A state contains them in
    /// [`Self::Organizations`].
    OrganizationCodes,
    /// Properties, which only a read of their own carries.
    Properties,
}

/// The kind of source that usually carries a field.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Group {
    /// Fields that every `user.created` and `user.updated` carries.
    Event,
    /// Fields that no event carries.
    Scan,
}

/// The kind of the values of a field, as a document shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValueKind {
    /// A text.
    Text,
    /// A boolean.
    Flag,
    /// An instant.
    Time,
    /// A list.
    List,
    /// A document with keys of its own.
    Document,
}

impl Field {
    /// All fields, in the order of their variants. Append only: documents store positions in this list.
    pub const ALL: [Self; 15] = [
        Self::Email,
        Self::FirstName,
        Self::LastName,
        Self::Phone,
        Self::Username,
        Self::IsSuspended,
        Self::IsPasswordResetRequested,
        Self::Organizations,
        Self::Picture,
        Self::EmailVerified,
        Self::CreatedOn,
        Self::ProvidedId,
        Self::Identities,
        Self::OrganizationCodes,
        Self::Properties,
    ];

    /// Returns the key in a user document, unless the settings map it to another key.
    pub fn key(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::FirstName => "firstName",
            Self::LastName => "lastName",
            Self::Phone => "phone",
            Self::Username => "username",
            Self::IsSuspended => "isSuspended",
            Self::IsPasswordResetRequested => "isPasswordResetRequested",
            Self::Organizations => "organizations",
            Self::Picture => "picture",
            Self::EmailVerified => "emailVerified",
            Self::CreatedOn => "createdOn",
            Self::ProvidedId => "providedId",
            Self::Identities => "identities",
            Self::OrganizationCodes => "organizationCodes",
            Self::Properties => "properties",
        }
    }

    /// Returns the field with this [`Field::key`].
    pub fn from_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.key() == key)
    }

    /// Returns the kind of source that usually carries the field.
    pub fn group(self) -> Group {
        match self {
            Self::Email
            | Self::FirstName
            | Self::LastName
            | Self::Phone
            | Self::Username
            | Self::IsSuspended
            | Self::IsPasswordResetRequested
            | Self::Organizations => Group::Event,
            Self::Picture
            | Self::EmailVerified
            | Self::CreatedOn
            | Self::ProvidedId
            | Self::Identities
            | Self::OrganizationCodes
            | Self::Properties => Group::Scan,
        }
    }

    /// Returns the kind of the values.
    pub fn value_kind(self) -> ValueKind {
        match self {
            Self::Email
            | Self::FirstName
            | Self::LastName
            | Self::Phone
            | Self::Username
            | Self::Picture
            | Self::ProvidedId => ValueKind::Text,
            Self::IsSuspended | Self::IsPasswordResetRequested | Self::EmailVerified => ValueKind::Flag,
            Self::CreatedOn => ValueKind::Time,
            Self::Organizations | Self::Identities | Self::OrganizationCodes => ValueKind::List,
            Self::Properties => ValueKind::Document,
        }
    }

    /// Returns whether an empty text means that the value is absent: Kinde sends `""` as the email of a user with a
    /// phone sign-in only.
    fn empty_is_null(self) -> bool {
        matches!(self, Self::Email | Self::Phone)
    }
}

/// A value of a field. The total order makes the join of two values with equal versions deterministic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Value {
    /// Observed to have no value, in contrast to a field that was never observed.
    Null,
    /// A boolean.
    Flag(bool),
    /// An instant.
    Time(Micros),
    /// A text. Stores never evaluate it as an expression.
    Text(Arc<str>),
    /// All memberships with roles and permissions, sorted by code, in an observation. A state contains
    /// [`Self::Memberships`].
    Organizations(Vec<Organization>),
    /// All organization codes, sorted, in an observation. A state contains [`Self::Memberships`].
    Codes(Vec<String>),
    /// Memberships with a version for each part, in a state.
    Memberships(Memberships),
    /// Sign-in identities, sorted. Equal entries stay: two passkeys have the same kind and no name.
    Identities(Vec<Identity>),
    /// Properties with a version for each.
    Properties(Properties),
}

/// One membership.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Organization {
    /// Kinde's code, such as `org_590d7f1a86a`.
    pub code: String,
    /// Name of the organization. Absent while no source has reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Keys of the roles in this organization. Absent while no source has listed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
    /// Keys of the permissions in this organization: those that the roles give, and those that an event or a read of this
    /// user listed. Absent while no source has reported one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Vec<String>>,
    /// Whether the user cannot sign in to this organization. Absent while no scan has read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_suspended: Option<bool>,
    /// When the user joined the organization. Absent while no scan has read it.
    #[serde(with = "rfc3339::optional", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub joined_on: Option<Micros>,
}

impl Organization {
    /// Returns a membership of which nothing else is known.
    pub fn new(code: impl Into<String>) -> Self {
        Self { code: code.into(), ..Self::default() }
    }
}

/// One way in which a user signs in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Identity {
    /// `email`, `phone`, `username` or the name of a connection.
    pub kind: String,
    /// The address, number or name. `null` for a kind without one, such as a passkey.
    #[serde(default)]
    pub identity: Option<String>,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<Micros> for Value {
    fn from(at: Micros) -> Self {
        Self::Time(at)
    }
}

/// Values of some fields from one source. An absent field is unknown; a null field is known to have no value.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Profile(BTreeMap<Field, Value>);

impl Profile {
    /// Returns a profile without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the profile with one more field in canonical form: lists sorted, organizations without duplicates, an empty
    /// email or phone as null.
    #[must_use]
    pub fn with(mut self, field: Field, value: impl Into<Value>) -> Self {
        self.set(field, value.into());
        self
    }

    /// Sets one field, in canonical form.
    pub fn set(&mut self, field: Field, value: Value) {
        self.0.insert(field, canonical(field, value));
    }

    /// Returns the value of a field, or `None` if the profile does not contain the field.
    pub fn value(&self, field: Field) -> Option<&Value> {
        self.0.get(&field)
    }

    /// Returns whether the profile contains no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Iterates over the fields and values in the order of [`Field::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Field, &Value)> {
        self.0.iter().map(|(field, value)| (*field, value))
    }
}

fn canonical(field: Field, value: Value) -> Value {
    match value {
        Value::Text(text) if text.is_empty() && field.empty_is_null() => Value::Null,
        Value::Organizations(list) => Value::Organizations(set(list)),
        Value::Codes(list) => Value::Codes(set(list)),
        Value::Identities(mut list) => {
            list.sort();
            Value::Identities(list)
        }
        other => other,
    }
}

fn set<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list.dedup();
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_own_key_and_is_found_by_it() {
        for field in Field::ALL {
            assert_eq!(Field::from_key(field.key()), Some(field));
        }
        assert!(Field::ALL.is_sorted_by(|a, b| a < b), "ALL lists the variants in order, each once");
        // The error lists every variant in backticks, after the unknown one.
        let error = serde_json::from_str::<Field>("\"none\"").unwrap_err().to_string();
        assert_eq!(error.matches('`').count() / 2 - 1, Field::ALL.len(), "ALL lists every variant: {error}");
    }

    #[test]
    fn an_empty_email_is_null_and_an_empty_last_name_is_not() {
        let profile = Profile::new().with(Field::Email, "").with(Field::LastName, "");
        assert_eq!(profile.value(Field::Email), Some(&Value::Null));
        assert_eq!(profile.value(Field::LastName), Some(&Value::Text("".into())));
        assert_eq!(profile.value(Field::Phone), None, "absent is not null");
    }

    #[test]
    fn two_passkeys_stay_two() {
        let passkey = Identity { kind: "passkey".into(), identity: None };
        let two = Value::Identities(vec![passkey.clone(), passkey]);
        assert_eq!(Profile::new().with(Field::Identities, two.clone()).value(Field::Identities), Some(&two));
    }

    #[test]
    fn codes_are_sorted_and_deduplicated() {
        let codes = |list: &[&str]| Value::Codes(list.iter().map(ToString::to_string).collect());
        let one = Profile::new().with(Field::OrganizationCodes, codes(&["b", "a", "b"]));
        assert_eq!(one, Profile::new().with(Field::OrganizationCodes, codes(&["a", "b"])));
    }
}
