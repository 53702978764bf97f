//! Settings of the derived collections: the name of each collection, and where its keys stand.

use std::collections::BTreeMap;

use super::super::keys::Path;
use crate::store::Error;

/// A collection of documents that are derived from the users and from kinsync's own records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Derived {
    /// One document per organization.
    Organizations,
    /// One document per role.
    Roles,
    /// One document per user and organization.
    Memberships,
}

impl Derived {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Organizations, Self::Roles, Self::Memberships];

    /// Returns the keys of the documents by name. The first `identity` keys identify a document.
    pub fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Organizations => &[
                "code",
                "name",
                "handle",
                "externalId",
                "createdAt",
                "memberCount",
                "membersAsOf",
                "isDeleted",
                "deletedAt",
            ],
            Self::Roles => &["id", "key", "name", "description", "permissions", "isDeleted", "deletedAt"],
            Self::Memberships => {
                &["kindeId", "code", "name", "roles", "permissions", "isSuspended", "joinedOn", "isDeleted"]
            }
        }
    }

    /// Returns the keys that identify a document.
    pub(super) fn identity(self) -> &'static [&'static str] {
        match self {
            Self::Organizations | Self::Roles => &self.keys()[..1],
            Self::Memberships => &self.keys()[..2],
        }
    }

    /// Returns the table of the settings with the names of the keys.
    pub fn table(self) -> &'static str {
        match self {
            Self::Organizations => "organization_fields",
            Self::Roles => "role_fields",
            Self::Memberships => "membership_fields",
        }
    }
}

/// Settings of one derived collection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DerivedConfig {
    /// Name of the collection; `None`: kinsync writes no such documents.
    pub collection: Option<String>,
    /// Sub-document that contains every key without a name of its own, except those that identify a document.
    pub prefix: Option<String>,
    /// Names of single keys, as in [`super::super::FieldMapping::names`].
    pub names: BTreeMap<String, Option<String>>,
}

/// Where the keys of a derived collection stand. Validated.
#[derive(Debug)]
pub(super) struct Paths {
    paths: Vec<(&'static str, Option<Path>)>,
    /// Whether the settings name every key that identifies a document: documents of the application then have Kinde's code or id
    /// there.
    pub(super) identity_is_named: bool,
}

impl DerivedConfig {
    /// Checks the names.
    ///
    /// # Errors
    /// The hint of [`Error::Refused`] names the first name that cannot be used, and why.
    pub fn check(&self, derived: Derived) -> Result<(), Error> {
        Paths::new(self, derived).map(|_| ())
    }
}

impl Paths {
    pub(super) fn new(config: &DerivedConfig, derived: Derived) -> Result<Self, Error> {
        let mut paths: Vec<(&'static str, Option<Path>)> = Vec::new();
        for key in derived.keys() {
            let is_identity = derived.identity().contains(key);
            let default = match &config.prefix {
                Some(prefix) if !is_identity => format!("{prefix}.{key}"),
                _ => (*key).to_owned(),
            };
            let path = config.names.get(*key).cloned().unwrap_or(Some(default));
            let path = path.as_deref().map(Path::parse).transpose()?;
            if path.is_none() && is_identity {
                return Err(refused(format!(
                    "`{key}` cannot be switched off: kinsync finds a document by it"
                )));
            }
            if let Some(path) = &path
                && paths.iter().flat_map(|(_, known)| known).any(|known| known.overlaps(path))
            {
                let name = path.dotted().as_str();
                return Err(refused(format!(
                    "`{name}` is the name of two keys; set another name for one of them"
                )));
            }
            paths.push((key, path));
        }
        let identity_is_named = derived.identity().iter().all(|key| config.names.contains_key(*key));
        Ok(Self { paths, identity_is_named })
    }

    /// Returns the dotted path of a key; `None` if the settings switch it off.
    pub(super) fn of(&self, key: &str) -> Option<&str> {
        let (_, path) = self.paths.iter().find(|(name, _)| *name == key)?;
        path.as_ref().map(|path| path.dotted().as_str())
    }

    /// Returns the top-level keys of the paths.
    pub(super) fn first(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().flat_map(|(_, path)| path).map(|path| {
            let dotted = path.dotted().as_str();
            dotted.split_once('.').map_or(dotted, |(first, _)| first)
        })
    }

    /// Returns all paths as one text, which differs for different settings.
    pub(super) fn text(&self) -> String {
        let paths = self.paths.iter().map(|(key, _)| self.of(key).unwrap_or("-"));
        paths.collect::<Vec<_>>().join(",")
    }
}

fn refused(hint: String) -> Error {
    Error::Refused { doing: "use the configured field names", hint, source: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(derived: Derived, names: &[(&str, Option<&str>)], is_valid: bool) {
        let names = names.iter().map(|(key, name)| ((*key).to_owned(), name.map(ToOwned::to_owned)));
        let config = DerivedConfig { names: names.collect(), ..DerivedConfig::default() };
        assert_eq!(config.check(derived).is_ok(), is_valid, "{config:?}");
    }

    #[test]
    fn names_are_plain_unique_and_complete() {
        check(Derived::Organizations, &[], true);
        check(Derived::Organizations, &[("name", Some("kinde.name")), ("handle", None)], true);
        check(Derived::Organizations, &[("code", None)], false);
        check(Derived::Memberships, &[("code", None)], false);
        check(Derived::Memberships, &[("name", None)], true);
        check(Derived::Roles, &[("key", Some("kinsync.key"))], false);
        check(Derived::Roles, &[("key", Some("name"))], false);
    }

    #[test]
    fn a_prefix_leaves_the_keys_that_identify_a_document_at_the_top() {
        let config = DerivedConfig { prefix: Some("kinde".into()), ..DerivedConfig::default() };
        let paths = Paths::new(&config, Derived::Memberships).expect("valid");
        let shown = ["kindeId", "code", "roles"].map(|key| paths.of(key));
        assert_eq!(shown, [Some("kindeId"), Some("code"), Some("kinde.roles")]);
        assert_eq!(
            paths.text(),
            "kindeId,code,kinde.name,kinde.roles,kinde.permissions,kinde.isSuspended,kinde.joinedOn,kinde.isDeleted"
        );
    }
}
