//! The memberships of a user in organizations, with roles and permissions.
//!
//! A function from organization codes to registers. Two sources observe it: one lists all memberships, the other reads the
//! membership in one organization. A list makes every code that it does not contain absent as of its version, also the codes
//! that are not known yet. The join is that of the registers, code by code, so it is associative, commutative and
//! idempotent.
//!
//! A membership keeps its newest absence, and a role or a permission counts only if it is newer: it does not come back when a
//! later list contains the code again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    directory::{self, Directory, Fact},
    field::Organization,
    version::{Micros, Version},
};

/// The memberships of a user, by organization code.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Packed", into = "Packed")]
pub struct Memberships {
    /// Newest absence of the codes without an entry.
    absent: Option<Version>,
    entries: BTreeMap<String, Entry>,
}

/// The registers of one code. Registers that no longer count are dropped, so that equal knowledge is an equal value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
struct Entry {
    /// Newest observation that the user is no member.
    absent: Option<Version>,
    /// Newest observation that the user is a member, if it is newer.
    member: Option<Version>,
    roles: Option<Known<Vec<String>>>,
    permissions: Option<Known<Vec<String>>>,
    is_suspended: Option<Known<bool>>,
    joined_on: Option<Known<Micros>>,
}

/// The newest value of a register, with the version of its observation.
// The derived order compares the version first, then the value. The join depends on that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
struct Known<T, V = Version> {
    #[serde(rename = "at")]
    version: V,
    value: T,
}

impl Memberships {
    /// Returns what a list of all memberships shows. A value that is absent in the list stays unknown.
    pub fn listed(list: &[Organization], version: &Version) -> Self {
        let mut memberships = Self { absent: Some(version.clone()), entries: BTreeMap::new() };
        for organization in list {
            let entry = memberships.entries.entry(organization.code.clone()).or_default();
            *entry = std::mem::take(entry).join(Entry::of(organization, version));
        }
        memberships
    }

    /// Returns what a read of one membership shows. `None`: the user is no member.
    pub fn read(code: &str, membership: Option<&Organization>, version: &Version) -> Self {
        let entry = membership.map_or_else(
            || Entry { absent: Some(version.clone()), ..Entry::default() },
            |membership| Entry::of(membership, version),
        );
        Self { absent: None, entries: BTreeMap::from([(code.to_owned(), entry)]) }
    }

    /// Returns the join of two values.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        let Self { absent, mut entries } = other;
        for (code, entry) in &mut self.entries {
            let other = entries.remove(code).unwrap_or_else(|| Entry::absent(absent.clone()));
            *entry = std::mem::take(entry).join(other);
        }
        let others =
            entries.into_iter().map(|(code, entry)| (code, entry.join(Entry::absent(self.absent.clone()))));
        self.entries.extend(others);
        self.absent = self.absent.max(absent);
        // An entry that equals the one of every other code says nothing: a departed member leaves no trace.
        let default = Entry::absent(self.absent.clone());
        self.entries.retain(|_, entry| *entry != default);
        self
    }

    /// Returns the codes of the memberships, sorted.
    pub fn codes(&self) -> impl Iterator<Item = String> + '_ {
        self.entries.iter().filter(|(_, entry)| entry.member.is_some()).map(|(code, _)| code.clone())
    }

    /// Returns the codes of the memberships and the ids of their roles and permissions.
    pub fn references(&self) -> impl Iterator<Item = String> + '_ {
        let members = self.entries.iter().filter(|(_, entry)| entry.member.is_some());
        members.flat_map(|(code, entry)| {
            let ids = entry.roles.iter().chain(&entry.permissions).flat_map(|known| &known.value);
            std::iter::once(code).chain(ids).cloned()
        })
    }

    /// Returns the memberships like [`Self::organizations`], with names and with the keys of roles and permissions.
    pub fn shown(&self, directory: &Directory) -> Option<Vec<Organization>> {
        self.absent.as_ref()?;
        let members = self.entries.iter().filter(|(_, entry)| entry.member.is_some());
        Some(members.map(|(code, entry)| entry.shown(code, directory)).collect())
    }

    /// Returns whether a listed permission is not shown, because it may have come from a role that does not give it any more.
    pub fn has_uncertain_permission(&self, code: &str, directory: &Directory) -> bool {
        let Some(entry) = self.entries.get(code) else { return false };
        let is_taken = |known: &Known<Vec<String>>| {
            known.value.iter().any(|id| entry.is_taken(id, &known.version, directory))
        };
        entry.permissions.as_ref().is_some_and(is_taken)
    }

    /// Returns the membership in one organization like [`Self::organization`], with the keys of roles and permissions.
    pub fn shown_in(&self, code: &str, directory: &Directory) -> Option<Organization> {
        let entry = self.entries.get(code).filter(|entry| entry.member.is_some())?;
        Some(entry.shown(code, directory))
    }

    /// Returns the memberships with ids of roles and permissions, sorted by code; `None` while no source has listed all of them.
    pub fn organizations(&self) -> Option<Vec<Organization>> {
        self.absent.as_ref()?;
        let members = self.entries.iter().filter(|(_, entry)| entry.member.is_some());
        Some(members.map(|(code, entry)| entry.organization(code)).collect())
    }

    /// Returns the membership in one organization; `None` if the user is no member or it is not known.
    pub fn organization(&self, code: &str) -> Option<Organization> {
        let entry = self.entries.get(code).filter(|entry| entry.member.is_some())?;
        Some(entry.organization(code))
    }
}

impl Entry {
    fn absent(absent: Option<Version>) -> Self {
        Self { absent, ..Self::default() }
    }

    fn of(organization: &Organization, version: &Version) -> Self {
        Self {
            absent: None,
            member: Some(version.clone()),
            roles: known(organization.roles.as_ref(), version),
            permissions: known(organization.permissions.as_ref(), version),
            is_suspended: known(organization.is_suspended.as_ref(), version),
            joined_on: known(organization.joined_on.as_ref(), version),
        }
    }

    fn shown(&self, code: &str, directory: &Directory) -> Organization {
        let owned = |keys: BTreeSet<&str>| keys.into_iter().map(str::to_owned).collect();
        let roles = self.roles.as_ref().map(|known| directory.keys(&known.value, &known.version));
        Organization {
            name: directory.entry(code).and_then(|entry| entry.text(Fact::Name)).map(str::to_owned),
            roles: roles.map(owned),
            permissions: self.effective_permissions(directory).map(owned),
            ..self.organization(code)
        }
    }

    /// Returns whether a listed permission may have come from a role that does not give it any more: Kinde does not document
    /// whether its lists contain the permissions of roles. The document does not show it until it is listed again.
    fn is_taken(&self, permission: &String, listed: &Version, directory: &Directory) -> bool {
        let roles = self.roles.iter().flat_map(|known| &known.value);
        roles.filter_map(|id| directory.entry(id)).any(|role| role.has_taken(permission, listed))
    }

    /// Returns the permissions of the roles, and those that an event or a read listed. `None` if neither is known.
    fn effective_permissions<'a>(&'a self, directory: &'a Directory) -> Option<BTreeSet<&'a str>> {
        let listed = self.permissions.as_ref().map(|known| {
            let version = &known.version;
            directory.keys(known.value.iter().filter(|id| !self.is_taken(id, version, directory)), version)
        });
        let given = self.roles.as_ref().and_then(|roles| {
            let live = roles.value.iter().filter_map(|id| match directory.entry(id) {
                Some(entry) if entry.is_absent_at(&roles.version) => None,
                entry => Some(entry.and_then(directory::Entry::permissions)),
            });
            // A role without a known list makes the whole unknown.
            let given: Option<Vec<&[String]>> = live.collect();
            Some(directory.keys(given?.into_iter().flatten(), &roles.version))
        });
        match (listed, given) {
            (Some(mut listed), given) => {
                listed.extend(given.into_iter().flatten());
                Some(listed)
            }
            (None, given) => given.filter(|given| !given.is_empty()),
        }
    }

    fn organization(&self, code: &str) -> Organization {
        Organization {
            code: code.to_owned(),
            name: None,
            roles: value(self.roles.as_ref()),
            permissions: value(self.permissions.as_ref()),
            is_suspended: value(self.is_suspended.as_ref()),
            joined_on: value(self.joined_on.as_ref()),
        }
    }

    /// Joins register by register and drops what no longer counts. What is dropped here would be dropped after any further
    /// join too, so the order does not matter.
    fn join(self, other: Self) -> Self {
        let absent = self.absent.max(other.absent);
        let is_newer = |version: &Version| Some(version) > absent.as_ref();
        let roles = newest(self.roles, other.roles, is_newer);
        // A read of roles alone shows that they changed, and permissions may come from roles: they are unknown until they are
        // observed again. Otherwise a permission would outlive its role. By time and not by version: two reads within one second
        // have the same time and no order.
        let are_newer = |version: &Version| {
            is_newer(version) && roles.as_ref().is_none_or(|roles| version.at >= roles.version.at)
        };
        let permissions = newest(self.permissions, other.permissions, are_newer);
        Self {
            member: self.member.max(other.member).filter(is_newer),
            is_suspended: newest(self.is_suspended, other.is_suspended, is_newer),
            joined_on: newest(self.joined_on, other.joined_on, is_newer),
            roles,
            permissions,
            absent,
        }
    }
}

fn known<T: Clone>(value: Option<&T>, version: &Version) -> Option<Known<T>> {
    value.map(|value| Known { version: version.clone(), value: value.clone() })
}

fn value<T: Clone>(known: Option<&Known<T>>) -> Option<T> {
    known.map(|known| known.value.clone())
}

fn newest<T: Ord>(
    a: Option<Known<T>>,
    b: Option<Known<T>>,
    counts: impl Fn(&Version) -> bool,
) -> Option<Known<T>> {
    a.max(b).filter(|known| counts(&known.version))
}

/// The stored form: each version once, because one event sets most registers. Codes are values and not keys, because a
/// store may refuse a key.
#[derive(Serialize, Deserialize)]
struct Packed {
    versions: Vec<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    absent: Option<u32>,
    entries: Vec<PackedEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PackedEntry {
    code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    absent: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    member: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    roles: Option<Known<Vec<String>, u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    permissions: Option<Known<Vec<String>, u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    is_suspended: Option<Known<bool, u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    joined_on: Option<Known<Micros, u32>>,
}

impl From<Memberships> for Packed {
    fn from(memberships: Memberships) -> Self {
        let mut versions = Vec::new();
        let mut position = |version: Version| {
            let known = versions.iter().position(|known| *known == version);
            let position = known.unwrap_or_else(|| {
                versions.push(version);
                versions.len() - 1
            });
            u32::try_from(position).expect("a document holds fewer than 2^32 versions")
        };
        let absent = memberships.absent.map(&mut position);
        let mut entries = Vec::with_capacity(memberships.entries.len());
        for (code, entry) in memberships.entries {
            entries.push(PackedEntry {
                code,
                absent: entry.absent.map(&mut position),
                member: entry.member.map(&mut position),
                roles: entry.roles.map(|known| known.map(&mut position)),
                permissions: entry.permissions.map(|known| known.map(&mut position)),
                is_suspended: entry.is_suspended.map(|known| known.map(&mut position)),
                joined_on: entry.joined_on.map(|known| known.map(&mut position)),
            });
        }
        Self { versions, absent, entries }
    }
}

impl TryFrom<Packed> for Memberships {
    type Error = &'static str;

    fn try_from(Packed { versions, absent, entries }: Packed) -> Result<Self, Self::Error> {
        let version = |position: u32| {
            let known = usize::try_from(position).ok().and_then(|position| versions.get(position));
            known.cloned().ok_or("a membership refers to a version that is not stored")
        };
        let entry = |entry: PackedEntry| -> Result<(String, Entry), &'static str> {
            let registers = Entry {
                absent: entry.absent.map(version).transpose()?,
                member: entry.member.map(version).transpose()?,
                roles: entry.roles.map(|known| known.try_map(version)).transpose()?,
                permissions: entry.permissions.map(|known| known.try_map(version)).transpose()?,
                is_suspended: entry.is_suspended.map(|known| known.try_map(version)).transpose()?,
                joined_on: entry.joined_on.map(|known| known.try_map(version)).transpose()?,
            };
            Ok((entry.code, registers))
        };
        Ok(Self {
            absent: absent.map(version).transpose()?,
            entries: entries.into_iter().map(entry).collect::<Result<_, Self::Error>>()?,
        })
    }
}

impl<T, V> Known<T, V> {
    fn map<W>(self, map: impl FnOnce(V) -> W) -> Known<T, W> {
        Known { version: map(self.version), value: self.value }
    }

    fn try_map<W, E>(self, map: impl FnOnce(V) -> Result<W, E>) -> Result<Known<T, W>, E> {
        Ok(Known { version: map(self.version)?, value: self.value })
    }
}
