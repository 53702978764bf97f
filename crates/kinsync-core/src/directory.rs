//! What is known of the organizations, roles and permissions of a tenant, by id.
//!
//! Memberships refer to roles and permissions by id, and keys change. The state of a user therefore contains what is known of
//! the objects that the user refers to. It is a function from ids to registers, and its join is that of the registers: the
//! order of arrival of a rename, a deletion and a change of the user does not matter.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    field::Value,
    state::Register,
    version::{Micros, Version},
};

/// A fact about an organization, a role or a permission.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fact {
    /// Key of a role or a permission.
    Key,
    /// Display name.
    Name,
    /// Name of an organization in URLs.
    Handle,
    /// Id that the application gave an organization.
    ExternalId,
    /// Description of a role or a permission.
    Description,
    /// Time of creation of an organization.
    CreatedOn,
    /// Ids of the permissions that a role gives.
    Permissions,
}

impl Fact {
    /// Facts that user documents show.
    pub const SHOWN: [Self; 3] = [Self::Key, Self::Name, Self::Permissions];
}

/// What is known of one organization, role or permission.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    facts: BTreeMap<Fact, Register>,
    /// Newest observation that it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    present: Option<Version>,
    /// Newest observation that it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    absent: Option<Version>,
    /// Permissions that a role no longer gives, each with the newest observation of that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    removed: BTreeMap<String, Version>,
}

impl Entry {
    /// Returns an entry with these facts.
    pub fn observed(facts: impl IntoIterator<Item = (Fact, Value)>, version: &Version) -> Self {
        let register = |value| Register { version: version.clone(), value };
        let facts = facts.into_iter().map(|(fact, value)| (fact, register(value))).collect();
        Self { facts, present: Some(version.clone()), ..Self::default() }
    }

    /// Returns the entry of an object that does not exist.
    pub fn deleted(version: &Version) -> Self {
        Self { absent: Some(version.clone()), ..Self::default() }
    }

    /// Returns the entry with permissions that the role no longer gives.
    #[must_use]
    pub fn without_permissions(mut self, ids: impl IntoIterator<Item = String>, version: &Version) -> Self {
        self.removed.extend(ids.into_iter().map(|id| (id, version.clone())));
        self
    }

    /// Returns the join of two entries.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (fact, register) in other.facts {
            let known = self.facts.entry(fact).or_insert_with(|| register.clone());
            if register > *known {
                *known = register;
            }
        }
        for (id, version) in other.removed {
            let known = self.removed.entry(id).or_insert_with(|| version.clone());
            *known = version.max(known.clone());
        }
        self.present = self.present.max(other.present);
        self.absent = self.absent.max(other.absent);
        self
    }

    /// Returns the newest value of a fact.
    pub fn value(&self, fact: Fact) -> Option<&Value> {
        self.facts.get(&fact).map(|register| &register.value)
    }

    /// Returns the newest value of each known fact.
    pub fn values(&self) -> impl Iterator<Item = (Fact, &Value)> {
        self.facts.iter().map(|(fact, register)| (*fact, &register.value))
    }

    /// Returns the newest text of a fact; `None` also for null.
    pub fn text(&self, fact: Fact) -> Option<&str> {
        match self.value(fact)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the newest time of a fact.
    pub fn time(&self, fact: Fact) -> Option<Micros> {
        match self.value(fact)? {
            Value::Time(at) => Some(*at),
            _ => None,
        }
    }

    /// Returns the ids of the permissions of a role, or `None` while no source has listed them.
    pub fn permissions(&self) -> Option<&[String]> {
        match self.value(Fact::Permissions)? {
            Value::Codes(ids) => Some(ids),
            _ => None,
        }
    }

    /// Returns whether the role may have given this permission at this version, and does not any more: the role was deleted or
    /// lost the permission since.
    pub fn has_taken(&self, permission: &String, since: &Version) -> bool {
        let gave = self.permissions().is_some_and(|ids| ids.contains(permission));
        (gave && self.is_absent_at(since))
            || self.removed.get(permission).is_some_and(|removed| removed > since)
    }

    /// Returns whether no deletion is newer than the newest observation.
    pub fn is_live(&self) -> bool {
        self.absence().is_none()
    }

    /// Returns the deletion, if no newer observation exists. At equal versions the deletion wins.
    pub fn absence(&self) -> Option<&Version> {
        self.absent.as_ref().filter(|absent| self.present.as_ref().is_none_or(|present| present <= absent))
    }

    /// Returns the version of the newest observation.
    pub fn newest(&self) -> Option<&Version> {
        self.present.as_ref().max(self.absent.as_ref())
    }

    /// Returns whether the object did not exist as of this version.
    pub fn is_absent_at(&self, version: &Version) -> bool {
        self.absence().is_some_and(|absent| absent >= version)
    }

    /// Returns what user documents show, and the deletion.
    #[must_use]
    pub fn shown(&self) -> Self {
        let facts = self.facts.iter().filter(|(fact, _)| Fact::SHOWN.contains(fact));
        Self {
            facts: facts.map(|(fact, register)| (*fact, register.clone())).collect(),
            // Without a deletion it means nothing to a document, and it changes with every list.
            present: self.present.clone().filter(|_| self.absent.is_some()),
            absent: self.absent.clone(),
            removed: self.removed.clone(),
        }
    }
}

/// Organizations by code, roles and permissions by id.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Packed", into = "Packed")]
pub struct Directory(BTreeMap<String, Entry>);

impl Directory {
    /// Returns the entry with this code or id.
    pub fn entry(&self, id: &str) -> Option<&Entry> {
        self.0.get(id)
    }

    /// Returns the entries, sorted by code or id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(id, entry)| (id.as_str(), entry))
    }

    /// Returns whether the directory has all of these entries.
    pub fn has_all<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> bool {
        ids.into_iter().all(|id| self.0.contains_key(id))
    }

    /// Returns what user documents show of these entries.
    #[must_use]
    pub fn only<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> Self {
        let entry = |id: &'a String| Some((id.clone(), self.entry(id)?.shown()));
        Self(ids.into_iter().filter_map(entry).collect())
    }

    /// Returns whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what is known of one object.
    pub fn add(&mut self, id: &str, entry: Entry) {
        let known = self.0.entry(id.to_owned()).or_default();
        *known = std::mem::take(known).join(entry);
    }

    /// Returns the join of two directories.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (id, entry) in other.0 {
            self.add(&id, entry);
        }
        self
    }

    /// Returns the key of a role or a permission; the id itself if it is not known.
    pub fn key<'a>(&'a self, id: &'a str) -> &'a str {
        self.entry(id).and_then(|entry| entry.text(Fact::Key)).unwrap_or(id)
    }

    /// Returns the keys of roles or permissions that existed at this version, sorted. An id that is not known is returned as
    /// it is: an old event contains keys alone.
    pub fn keys<'a>(
        &'a self,
        ids: impl IntoIterator<Item = &'a String>,
        version: &Version,
    ) -> BTreeSet<&'a str> {
        let existed = |id: &&String| self.entry(id).is_none_or(|entry| !entry.is_absent_at(version));
        ids.into_iter().filter(existed).map(|id| self.key(id)).collect()
    }
}

impl FromIterator<(String, Entry)> for Directory {
    fn from_iter<T: IntoIterator<Item = (String, Entry)>>(entries: T) -> Self {
        let mut directory = Self::default();
        entries.into_iter().for_each(|(id, entry)| directory.add(&id, entry));
        directory
    }
}

/// The stored form: each version once, because one list sets most registers. Ids are values and not keys, because a store may
/// refuse a key.
#[derive(Serialize, Deserialize)]
struct Packed {
    versions: Vec<Version>,
    entries: Vec<PackedEntry>,
}

#[derive(Serialize, Deserialize)]
struct PackedEntry {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    present: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    absent: Option<u32>,
    facts: Vec<PackedFact>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    removed: Vec<(String, u32)>,
}

#[derive(Serialize, Deserialize)]
struct PackedFact {
    fact: Fact,
    at: u32,
    value: Value,
}

impl From<Directory> for Packed {
    fn from(directory: Directory) -> Self {
        let mut versions = Vec::new();
        let mut position = |version: Version| {
            let known = versions.iter().position(|known| *known == version);
            let position = known.unwrap_or_else(|| {
                versions.push(version);
                versions.len() - 1
            });
            u32::try_from(position).expect("a document holds fewer than 2^32 versions")
        };
        let mut entries = Vec::with_capacity(directory.0.len());
        for (id, entry) in directory.0 {
            let facts = entry.facts.into_iter().map(|(fact, register)| PackedFact {
                fact,
                at: position(register.version),
                value: register.value,
            });
            let facts = facts.collect();
            let (present, absent) = (entry.present.map(&mut position), entry.absent.map(&mut position));
            let removed = entry.removed.into_iter().map(|(id, version)| (id, position(version))).collect();
            entries.push(PackedEntry { id, present, absent, facts, removed });
        }
        Self { versions, entries }
    }
}

impl TryFrom<Packed> for Directory {
    type Error = &'static str;

    fn try_from(Packed { versions, entries }: Packed) -> Result<Self, Self::Error> {
        let version = |position: u32| {
            let known = usize::try_from(position).ok().and_then(|position| versions.get(position));
            known.cloned().ok_or("an entry refers to a version that is not stored")
        };
        let fact = |PackedFact { fact, at, value }| Ok((fact, Register { version: version(at)?, value }));
        let entry = |entry: PackedEntry| {
            let registers = Entry {
                facts: entry.facts.into_iter().map(fact).collect::<Result<_, Self::Error>>()?,
                present: entry.present.map(version).transpose()?,
                absent: entry.absent.map(version).transpose()?,
                removed: entry.removed.into_iter().map(|(id, at)| Ok((id, version(at)?))).collect::<Result<
                    _,
                    Self::Error,
                >>(
                )?,
            };
            Ok((entry.id, registers))
        };
        entries.into_iter().map(entry).collect::<Result<BTreeMap<_, _>, Self::Error>>().map(Self)
    }
}
