//! The memberships of a user in organizations, with roles and permissions.
//!
//! A function from organization codes to registers. Two sources observe it: one lists all memberships, the other reads the
//! membership in one organization. A list makes every code that it does not contain absent as of its version, also the codes
//! that are not known yet. The join is that of the registers, code by code, so it is associative, commutative and
//! idempotent.
//!
//! A membership keeps its newest absence, and a role or a permission counts only if it is newer: it does not come back when a
//! later list contains the code again.

mod parts;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    directory::{self, Directory, Fact},
    field::Organization,
    packed::{self, Versions},
    version::{Micros, Rank, Version},
};

pub use self::parts::{MembershipPart, Part};

/// The memberships of a user, by organization code.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Packed", into = "Packed")]
pub struct Memberships {
    /// Newest absence of the codes without an entry.
    absent: Option<Version>,
    // A node of the map has room for eleven values, and most users have one or two.
    entries: BTreeMap<String, Box<Entry>>,
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

/// Origin of a listed permission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// A role gives it, or gave it.
    Role,
    /// The member has it apart from roles.
    Member,
    Unknown,
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
            let entry = &mut **memberships.entries.entry(organization.code.clone()).or_default();
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
        Self { absent: None, entries: BTreeMap::from([(code.to_owned(), Box::new(entry))]) }
    }

    /// Returns the join of two values.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        let Self { absent, mut entries } = other;
        for (code, entry) in &mut self.entries {
            let other = entries.remove(code).map_or_else(|| Entry::absent(absent.clone()), |other| *other);
            **entry = std::mem::take(&mut **entry).join(other);
        }
        for (code, entry) in entries {
            let entry = entry.join(Entry::absent(self.absent.clone()));
            self.entries.insert(code, Box::new(entry));
        }
        self.absent = self.absent.max(absent);
        // An entry that equals the one of every other code says nothing: a departed member leaves no trace.
        let default = Entry::absent(self.absent.clone());
        self.entries.retain(|_, entry| **entry != default);
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
            let ids = entry.roles.iter().chain(entry.permissions()).flat_map(|known| &known.value);
            std::iter::once(code).chain(ids).cloned()
        })
    }

    /// Returns the memberships like [`Self::organizations`], with names and with the keys of roles and permissions.
    pub fn shown(&self, directory: &Directory) -> Option<Vec<Organization>> {
        self.absent.as_ref()?;
        let members = self.entries.iter().filter(|(_, entry)| entry.member.is_some());
        Some(members.map(|(code, entry)| entry.shown(code, directory)).collect())
    }

    /// Returns whether a value or an absence of this version counts.
    pub fn contains(&self, version: &Version) -> bool {
        self.versions().any(|known| known == version)
    }

    /// Returns the versions of all values and absences that count.
    pub fn versions(&self) -> impl Iterator<Item = &Version> {
        self.absent.iter().chain(self.entries.values().flat_map(|entry| entry.versions()))
    }

    /// Returns whether a read of the member's own permissions would show more than what is known: an event listed a
    /// permission that no role gives, a role has lost permissions since they were listed, the roles are newer, or roles give
    /// permissions and none was ever listed for the member.
    pub fn needs_read_of_permissions(&self, code: &str, directory: &Directory) -> bool {
        self.entries.get(code).is_some_and(|entry| entry.needs_read(directory))
    }

    /// Returns the membership in one organization like [`Self::organization`], with the keys of roles and permissions.
    pub fn shown_in(&self, code: &str, directory: &Directory) -> Option<Organization> {
        let entry = self.entries.get(code).filter(|entry| entry.member.is_some())?;
        Some(entry.shown(code, directory))
    }

    /// Returns the permissions that [`Self::shown_in`] contains, each with the roles that give it, by keys. A permission without a
    /// role was listed for the member by an event or a read. `None` while the permissions are not known.
    pub fn permission_roles<'a>(
        &'a self,
        code: &str,
        directory: &'a Directory,
    ) -> Option<BTreeMap<&'a str, BTreeSet<&'a str>>> {
        let entry = self.entries.get(code).filter(|entry| entry.member.is_some())?;
        let shown = entry.effective_permissions(directory)?;
        let given = entry.given_permissions(directory)?;
        let roles_of = |permission| {
            let gives = |(_, ids, version): &&(&str, &'a [String], &Version)| {
                directory.keys(*ids, version).contains(permission)
            };
            given.iter().filter(gives).map(|(role, ..)| directory.key(role)).collect()
        };
        Some(shown.into_iter().map(|permission| (permission, roles_of(permission))).collect())
    }

    /// Returns the keys of the permissions that the known lists of the member's roles contain. They are a part of those of
    /// [`Self::shown_in`], and they are known also while its permissions are not.
    pub fn permissions_of_roles<'a>(&'a self, code: &str, directory: &'a Directory) -> BTreeSet<&'a str> {
        let member = self.entries.get(code).filter(|entry| entry.member.is_some());
        let given =
            member.into_iter().flat_map(|entry| entry.role_lists(directory)).filter_map(|(_, list)| list);
        given.flat_map(|(ids, version)| directory.keys(ids, version)).collect()
    }

    /// Returns the ids of the roles in one organization that existed when they were observed. One without a record did.
    pub fn existing_roles<'a>(
        &'a self,
        code: &str,
        directory: &'a Directory,
    ) -> impl Iterator<Item = &'a str> {
        let member = self.entries.get(code).filter(|entry| entry.member.is_some());
        member.into_iter().flat_map(|entry| entry.role_lists(directory)).map(|(id, _)| id)
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
    fn versions(&self) -> impl Iterator<Item = &Version> {
        let Self { absent, member, roles, is_suspended, joined_on, .. } = self;
        let versions = [
            absent.as_ref(),
            member.as_ref(),
            roles.as_ref().map(|known| &known.version),
            self.permissions().map(|known| &known.version),
            is_suspended.as_ref().map(|known| &known.version),
            joined_on.as_ref().map(|known| &known.version),
        ];
        versions.into_iter().flatten()
    }

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

    /// Returns the permissions of the roles, and those that an event or a read listed. `None` if a list of a role, the
    /// member's own list or the origin of a permission in it is not known: the others alone would look complete.
    fn effective_permissions<'a>(&'a self, directory: &'a Directory) -> Option<BTreeSet<&'a str>> {
        let given = self.given_permissions(directory)?;
        let mut shown: BTreeSet<&str> =
            given.iter().flat_map(|(_, ids, version)| directory.keys(*ids, version)).collect();
        let listed = self.permissions()?;
        for (id, origin) in self.origins(&given, directory) {
            match origin {
                Origin::Role => {}
                Origin::Member => shown.extend(directory.keys([id], &listed.version)),
                Origin::Unknown => return None,
            }
        }
        Some(shown)
    }

    /// Returns the roles that exist, each with its permissions and the version of that list. `None` if one is not known.
    fn given_permissions<'a>(
        &'a self,
        directory: &'a Directory,
    ) -> Option<Vec<(&'a str, &'a [String], &'a Version)>> {
        self.roles.as_ref()?;
        let given =
            self.role_lists(directory).map(|(id, list)| list.map(|(ids, version)| (id, ids, version)));
        given.collect()
    }

    /// Returns the roles that exist, each with the newest list of its permissions and the version of that list, if one is known.
    fn role_lists<'a>(
        &'a self,
        directory: &'a Directory,
    ) -> impl Iterator<Item = (&'a str, Option<(&'a [String], &'a Version)>)> {
        self.roles.iter().flat_map(move |roles| {
            let entries = roles.value.iter().map(|id| (id.as_str(), directory.entry(id)));
            let live =
                entries.filter(|(_, entry)| entry.is_none_or(|entry| !entry.is_absent_at(&roles.version)));
            live.map(|(id, entry)| (id, entry.and_then(directory::Entry::listed_permissions)))
        })
    }

    /// Returns the listed permissions, each with its origin.
    ///
    /// Kinde does not document whether the lists in events contain the permissions of roles. A permission that a role has
    /// given therefore counts as the role's, so that it does not outlive the role. If a role was not listed before the event,
    /// it may have given any permission. A read separates what roles give.
    fn origins<'a>(
        &'a self,
        given: &[(&str, &[String], &Version)],
        directory: &'a Directory,
    ) -> impl Iterator<Item = (&'a String, Origin)> {
        let listed = self
            .permissions()
            .into_iter()
            .flat_map(|known| known.value.iter().map(|id| (id, &known.version)));
        let roles: Vec<&directory::Entry> =
            self.roles.iter().flat_map(|known| &known.value).filter_map(|id| directory.entry(id)).collect();
        listed.map(move |(id, version)| {
            let origin = if version.rank == Rank::Snapshot {
                Origin::Member
            } else if given.iter().any(|(_, ids, _)| ids.contains(id))
                || roles.iter().any(|role| role.has_given(id))
            {
                Origin::Role
            } else if roles.iter().all(|role| role.was_listed_at(version)) {
                Origin::Member
            } else {
                Origin::Unknown
            };
            (id, origin)
        })
    }

    /// Returns whether a read of the member's own permissions shows more than what is known.
    fn needs_read(&self, directory: &Directory) -> bool {
        if self.permissions.is_some() && self.permissions().is_none() {
            return true;
        }
        let Some(given) = self.given_permissions(directory) else { return false };
        let Some(listed) = self.permissions() else {
            return given.iter().any(|(_, ids, _)| !ids.is_empty());
        };
        let is_given = |id: &String| given.iter().any(|(_, ids, _)| ids.contains(id));
        let is_event = listed.version.rank != Rank::Snapshot;
        let roles = self.roles.iter().flat_map(|known| &known.value).filter_map(|id| directory.entry(id));
        (is_event && listed.value.iter().any(|id| !is_given(id)))
            || roles.into_iter().any(|role| role.has_lost_since(&listed.version))
    }

    fn organization(&self, code: &str) -> Organization {
        Organization {
            code: code.to_owned(),
            name: None,
            roles: value(self.roles.as_ref()),
            permissions: value(self.permissions()),
            is_suspended: value(self.is_suspended.as_ref()),
            joined_on: value(self.joined_on.as_ref()),
        }
    }

    /// Returns the listed permissions, unless the roles are newer. A read of roles alone shows that they changed, and permissions
    /// may come from roles: they are unknown until they are observed again. Otherwise a permission would outlive its role. By time and
    /// not by version: two reads within one second have the same time and no order.
    fn permissions(&self) -> Option<&Known<Vec<String>>> {
        let is_current =
            |known: &&Known<_>| self.roles.as_ref().is_none_or(|roles| known.version.at >= roles.version.at);
        self.permissions.as_ref().filter(is_current)
    }

    /// Joins register by register and drops what no longer counts. What is dropped here would be dropped after any further
    /// join too, so the order does not matter.
    fn join(self, other: Self) -> Self {
        let absent = self.absent.max(other.absent);
        let is_newer = |version: &Version| Some(version) > absent.as_ref();
        Self {
            member: self.member.max(other.member).filter(is_newer),
            is_suspended: newest(self.is_suspended, other.is_suspended, is_newer),
            joined_on: newest(self.joined_on, other.joined_on, is_newer),
            roles: newest(self.roles, other.roles, is_newer),
            // Kept if the roles are newer: a scan then reads them again.
            permissions: newest(self.permissions, other.permissions, is_newer),
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
        let mut versions = Versions::default();
        let mut position = |version| versions.position(version);
        let absent = memberships.absent.map(&mut position);
        let mut entries = Vec::with_capacity(memberships.entries.len());
        for (code, entry) in memberships.entries {
            let entry = *entry;
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
        Self { versions: versions.into_list(), absent, entries }
    }
}

impl TryFrom<Packed> for Memberships {
    type Error = &'static str;

    fn try_from(Packed { versions, absent, entries }: Packed) -> Result<Self, Self::Error> {
        let version = |position| packed::at(&versions, position);
        let entry = |entry: PackedEntry| -> Result<(String, Box<Entry>), &'static str> {
            let registers = Entry {
                absent: entry.absent.map(version).transpose()?,
                member: entry.member.map(version).transpose()?,
                roles: entry.roles.map(|known| known.try_map(version)).transpose()?,
                permissions: entry.permissions.map(|known| known.try_map(version)).transpose()?,
                is_suspended: entry.is_suspended.map(|known| known.try_map(version)).transpose()?,
                joined_on: entry.joined_on.map(|known| known.try_map(version)).transpose()?,
            };
            Ok((entry.code, Box::new(registers)))
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
