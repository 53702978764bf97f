//! What is known of the organizations, roles and permissions of a tenant, by id.
//!
//! Memberships refer to roles and permissions by id, and keys change. The state of a user therefore contains what is known of
//! the objects that the user refers to. It is a function from ids to registers, and its join is that of the registers: the
//! order of arrival of a rename, a deletion and a change of the user does not matter.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    field::Value,
    packed::{self, Versions},
    register::{Register, smallest},
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
    /// Oldest list of the permissions of a role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listed_since: Option<Version>,
    /// Permissions of a role that a list contained and the newest one does not.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    former: BTreeSet<String>,
}

impl Entry {
    /// Returns an entry with these facts.
    pub fn observed(facts: impl IntoIterator<Item = (Fact, Value)>, version: &Version) -> Self {
        let register = |value| Register { version: version.clone(), value };
        let facts: BTreeMap<Fact, Register> =
            facts.into_iter().map(|(fact, value)| (fact, register(value))).collect();
        let listed_since = facts.contains_key(&Fact::Permissions).then(|| version.clone());
        Self { facts, present: Some(version.clone()), listed_since, ..Self::default() }
    }

    /// Returns the entry of an object that does not exist.
    pub fn deleted(version: &Version) -> Self {
        Self { absent: Some(version.clone()), ..Self::default() }
    }

    /// Returns the join of two entries.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        let listed: Vec<String> =
            [&self, &other].into_iter().filter_map(Self::permissions).flatten().cloned().collect();
        for (fact, register) in other.facts {
            let known = self.facts.entry(fact).or_insert_with(|| register.clone());
            if register > *known {
                *known = register;
            }
        }
        self.present = self.present.max(other.present);
        self.absent = self.absent.max(other.absent);
        self.listed_since = smallest(self.listed_since, other.listed_since);
        self.former.extend(other.former.into_iter().chain(listed));
        let given: BTreeSet<String> = self.permissions().into_iter().flatten().cloned().collect();
        self.former.retain(|id| !given.contains(id));
        self
    }

    /// Returns what is known of an object after one more observation. `listed` is the version of the newest complete list of
    /// objects of this kind.
    ///
    /// That list is a proof: an object that was not known then did not exist, and what is known of a live one is as of the
    /// list. An older observation adds only what is not known. The result does not depend on the order of the observations
    /// and of the list.
    #[must_use]
    pub fn observe(known: Option<Self>, entry: Self, listed: Option<&Version>) -> Self {
        let Some(listed) = listed else { return known.unwrap_or_default().join(entry) };
        match known {
            Some(known) if known.is_live() => known.observe_listed(entry, listed),
            known => {
                let known = known.unwrap_or_default();
                let next = known.clone().join(entry);
                // Without anything new the absence stays as it is: a repetition writes nothing.
                if next == known { known } else { next.join(Self::deleted(listed)) }
            }
        }
    }

    fn observe_listed(self, mut entry: Self, listed: &Version) -> Self {
        entry.former.extend(entry.permissions().into_iter().flatten().cloned().collect::<Vec<_>>());
        let adds = |fact: &Fact, register: &mut Register| {
            register.version > *listed || !self.facts.contains_key(fact)
        };
        entry.facts.retain(adds);
        let mut next = self.join(entry);
        if next.absence().is_some_and(|absent| absent < listed) {
            next.present = Some(listed.clone());
        }
        next
    }

    /// Returns what follows for an object from an event of this version about a user that names it: that it did not exist when the
    /// newest complete list was made. `None`: the list contains it or is older, or what is known says so already.
    ///
    /// The events of its creation and of its deletion may both be lost. A missing record is no evidence alone, so the list has to be one
    /// that another list has confirmed.
    #[must_use]
    pub fn unlisted(known: Option<&Self>, named: &Version, listed: Option<&Version>) -> Option<Self> {
        let listed = listed.filter(|listed| named <= listed)?;
        let is_missing = known.is_none_or(|known| known.absence().is_some_and(|absent| absent < named));
        is_missing.then(|| Self::deleted(listed))
    }

    /// Returns whether an object in a complete list differs from what is stored. An equal value keeps its version, so that a
    /// list without a difference writes nothing.
    pub fn differs(&self, listed: &Self) -> bool {
        let is_other = |(fact, register): (&Fact, &Register)| self.value(*fact) != Some(&register.value);
        !self.is_live() || listed.facts.iter().any(is_other) || listed.is_listed_earlier(self)
    }

    fn is_listed_earlier(&self, other: &Self) -> bool {
        self.listed_since
            .as_ref()
            .is_some_and(|since| other.listed_since.as_ref().is_none_or(|known| since < known))
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

    /// Returns the list of the permissions of a role, with its version.
    pub fn listed_permissions(&self) -> Option<(&[String], &Version)> {
        Some((self.permissions()?, &self.facts.get(&Fact::Permissions)?.version))
    }

    /// Returns whether a list of the role has contained this permission.
    pub fn has_given(&self, permission: &String) -> bool {
        self.former.contains(permission) || self.permissions().is_some_and(|ids| ids.contains(permission))
    }

    /// Returns whether a list of the role, as of this version, is known: the permissions that it gave then are.
    pub fn was_listed_at(&self, version: &Version) -> bool {
        self.listed_since.as_ref().is_some_and(|since| since.at <= version.at)
    }

    /// Returns whether the role has lost permissions by a list that is newer than this version.
    pub fn has_lost_since(&self, version: &Version) -> bool {
        !self.former.is_empty() && self.listed_permissions().is_some_and(|(_, listed)| listed.at > version.at)
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

    /// Returns the newest deletion, also if the object was observed again later.
    pub fn deletion(&self) -> Option<&Version> {
        self.absent.as_ref()
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
            listed_since: self.listed_since.clone(),
            former: self.former.clone(),
        }
    }

    /// Returns whether [`Self::shown`] returns the same.
    fn is_shown(&self) -> bool {
        self.facts.keys().all(|fact| Fact::SHOWN.contains(fact))
            && (self.present.is_none() || self.absent.is_some())
    }
}

/// Organizations by code, roles and permissions by id.
///
/// Entries are shared: all members of an organization refer to the same few, and an entry is many times as large as a pointer.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Packed", into = "Packed")]
pub struct Directory(BTreeMap<String, Arc<Entry>>);

/// Equal entries of several directories, each once.
#[derive(Debug, Default)]
pub struct SharedEntries(HashSet<Arc<Entry>>);

impl SharedEntries {
    fn share(&mut self, entry: &mut Arc<Entry>) {
        if let Some(known) = self.0.get(entry) {
            entry.clone_from(known);
        } else {
            self.0.insert(Arc::clone(entry));
        }
    }
}

impl Directory {
    /// Returns the entry with this code or id.
    pub fn entry(&self, id: &str) -> Option<&Entry> {
        self.0.get(id).map(Arc::as_ref)
    }

    /// Returns the entries, sorted by code or id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(id, entry)| (id.as_str(), &**entry))
    }

    /// Returns whether the directory has all of these entries.
    pub fn has_all<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> bool {
        ids.into_iter().all(|id| self.0.contains_key(id))
    }

    /// Returns what user documents show of these entries.
    #[must_use]
    pub fn only<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> Self {
        let entry = |id: &'a String| Some((id.clone(), shown(self.0.get(id)?)));
        Self(ids.into_iter().filter_map(entry).collect())
    }

    /// Returns what user documents show of all entries.
    #[must_use]
    pub fn shown(&self) -> Self {
        Self(self.0.iter().map(|(id, entry)| (id.clone(), shown(entry))).collect())
    }

    /// Replaces the entries by equal ones of other directories.
    pub fn share(&mut self, shared: &mut SharedEntries) {
        self.0.values_mut().for_each(|entry| shared.share(entry));
    }

    /// Returns whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what is known of one object.
    pub fn add(&mut self, id: &str, entry: Entry) {
        self.join_entry(id.to_owned(), Arc::new(entry));
    }

    /// Returns the join of two directories.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (id, entry) in other.0 {
            self.join_entry(id, entry);
        }
        self
    }

    /// Joins an entry, and shares it if the result equals it.
    fn join_entry(&mut self, id: String, entry: Arc<Entry>) {
        match self.0.entry(id) {
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(entry);
            }
            btree_map::Entry::Occupied(mut known) if **known.get() == *entry => drop(known.insert(entry)),
            btree_map::Entry::Occupied(mut known) => {
                let joined = Entry::clone(known.get()).join(Entry::clone(&entry));
                known.insert(if joined == *entry { entry } else { Arc::new(joined) });
            }
        }
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

/// Returns what user documents show of an entry, shared if that is all of it.
fn shown(entry: &Arc<Entry>) -> Arc<Entry> {
    if entry.is_shown() { Arc::clone(entry) } else { Arc::new(entry.shown()) }
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
#[serde(rename_all = "camelCase")]
struct PackedEntry {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    present: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    absent: Option<u32>,
    facts: Vec<PackedFact>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listed_since: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    former: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct PackedFact {
    fact: Fact,
    at: u32,
    value: Value,
}

impl From<Directory> for Packed {
    fn from(directory: Directory) -> Self {
        let mut versions = Versions::default();
        let mut position = |version| versions.position(version);
        let mut entries = Vec::with_capacity(directory.0.len());
        for (id, entry) in directory.0 {
            let entry = Arc::unwrap_or_clone(entry);
            let fact =
                |(fact, Register { version, value })| PackedFact { fact, at: position(version), value };
            let facts = entry.facts.into_iter().map(fact).collect();
            entries.push(PackedEntry {
                id,
                facts,
                present: entry.present.map(&mut position),
                absent: entry.absent.map(&mut position),
                listed_since: entry.listed_since.map(&mut position),
                former: entry.former,
            });
        }
        Self { versions: versions.into_list(), entries }
    }
}

impl TryFrom<Packed> for Directory {
    type Error = &'static str;

    fn try_from(Packed { versions, entries }: Packed) -> Result<Self, Self::Error> {
        let version = |position| packed::at(&versions, position);
        let fact = |PackedFact { fact, at, value }| Ok((fact, Register { version: version(at)?, value }));
        let entry = |entry: PackedEntry| {
            let registers = Entry {
                facts: entry.facts.into_iter().map(fact).collect::<Result<_, Self::Error>>()?,
                present: entry.present.map(version).transpose()?,
                absent: entry.absent.map(version).transpose()?,
                listed_since: entry.listed_since.map(version).transpose()?,
                former: entry.former,
            };
            Ok((entry.id, Arc::new(registers)))
        };
        entries.into_iter().map(entry).collect::<Result<BTreeMap<_, _>, Self::Error>>().map(Self)
    }
}
