//! Properties of users in the Management API.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::pages::{List, Pages, Paging};
use super::{Client, Error, USERS, check_id};
use crate::endpoint::Endpoint;
use crate::event;
use crate::event::reader::Reader;
use crate::patch::Patch;

/// A property of a user.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Property {
    /// `prop_…`; opaque.
    pub id: String,
    /// Display name.
    pub name: Patch<String>,
    /// Description.
    pub description: Patch<String>,
    /// Key that applications refer to.
    pub key: String,
    /// The value of the user.
    pub value: Patch<String>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// A property that users can have.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct PropertyDefinition {
    /// `prop_…`; opaque.
    pub id: String,
    /// Key that applications refer to.
    pub key: String,
    /// Display name.
    pub name: Patch<String>,
    /// Description.
    pub description: Patch<String>,
    /// True if tokens and front ends do not get the values.
    pub is_private: Patch<bool>,
    /// True for a property that Kinde defines.
    pub is_kinde_property: Patch<bool>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// A result of the search for users.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SearchedUser {
    /// `kp_…`; opaque, 1 to 256 bytes without control characters.
    pub id: String,
    /// The values of the user's properties, by key.
    pub properties: Patch<BTreeMap<String, Patch<String>>>,
    /// All other members, which are those of a user of the list.
    pub extra: Map<String, Value>,
}

/// Properties of users. Kinde sends no event when one changes.
impl Client {
    /// Lists the properties that users can have. Scope `read:properties`. Kinde does not return the category of a property.
    pub fn user_property_definitions(&self) -> Pages<PropertyDefinition> {
        let list = List {
            endpoint: Endpoint::Properties,
            scope: "read:properties",
            url: self.url(&["properties"]),
            query: vec![("context", "usr".to_owned())],
            member: "properties",
            paging: Paging::After(|property: &PropertyDefinition| &property.id),
            read: PropertyDefinition::read,
        };
        Pages::new(self.clone(), list)
    }

    /// Lists the properties of a user. Scope `read:user_properties`.
    pub fn user_properties(&self, user: &str) -> Result<Pages<Property>, Error> {
        check_id(user)?;
        let list = List {
            endpoint: Endpoint::UserProperties,
            scope: "read:user_properties",
            url: self.url(&["users", user, "properties"]),
            query: Vec::new(),
            member: "properties",
            paging: Paging::Unsized,
            read: Property::read,
        };
        Ok(Pages::new(self.clone(), list))
    }

    /// Lists all users with the values of their properties. Scope `read:users`.
    ///
    /// The list continues after the last user of a page, and a page without users ends it.
    pub fn users_with_properties(&self) -> Pages<SearchedUser> {
        let list = List {
            endpoint: Endpoint::SearchUsers,
            scope: USERS,
            url: self.url(&["search", "users"]),
            query: vec![("query", "*".to_owned()), ("expand", "properties".to_owned())],
            member: "results",
            paging: Paging::After(|user: &SearchedUser| &user.id),
            read: SearchedUser::read,
        };
        Pages::new(self.clone(), list)
    }
}

impl Property {
    fn read(mut reader: Reader<'_>) -> Result<Self, event::Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            name: reader.text("name")?,
            description: reader.text("description")?,
            key: reader.required_id("key")?,
            value: reader.text("value")?,
            extra: reader.into_rest(),
        })
    }
}

impl PropertyDefinition {
    fn read(mut reader: Reader<'_>) -> Result<Self, event::Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            key: reader.required_id("key")?,
            name: reader.text("name")?,
            description: reader.text("description")?,
            is_private: reader.flag("is_private")?,
            is_kinde_property: reader.flag("is_kinde_property")?,
            extra: reader.into_rest(),
        })
    }
}

impl SearchedUser {
    fn read(mut reader: Reader<'_>) -> Result<Self, event::Error> {
        Ok(Self {
            id: reader.required_id("id")?,
            properties: reader.text_map("properties")?,
            extra: reader.into_rest(),
        })
    }
}

/// Prints the key only: the value may be personal data.
impl fmt::Debug for Property {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Property").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Prints the id only: the other fields are personal data.
impl fmt::Debug for SearchedUser {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SearchedUser").field("id", &self.id).finish_non_exhaustive()
    }
}
