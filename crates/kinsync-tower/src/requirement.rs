//! What a user needs for a request.

use std::{fmt, sync::Arc};

/// A role or a permission that a user needs in the organization of the token. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requirement {
    pub(crate) kind: Kind,
    pub(crate) any_of: Arc<[String]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Role,
    Permission,
}

impl Requirement {
    /// Requires the role with this key.
    pub fn role(key: impl Into<String>) -> Self {
        Self::any_role([key])
    }

    /// Requires one of the roles with these keys. Without a key no user meets it.
    pub fn any_role(keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { kind: Kind::Role, any_of: keys.into_iter().map(Into::into).collect() }
    }

    /// Requires the permission with this key, given by a role or to the user.
    pub fn permission(key: impl Into<String>) -> Self {
        Self::any_permission([key])
    }

    /// Requires one of the permissions with these keys. Without a key no user meets it.
    pub fn any_permission(keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { kind: Kind::Permission, any_of: keys.into_iter().map(Into::into).collect() }
    }
}

/// Such as ``the role `admin` ``.
impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            Kind::Role => "role",
            Kind::Permission => "permission",
        };
        match &*self.any_of {
            [] => write!(f, "a {name} that does not exist"),
            [key] => write!(f, "the {name} `{key}`"),
            keys => write!(f, "one of the {name}s `{}`", keys.join("`, `")),
        }
    }
}
