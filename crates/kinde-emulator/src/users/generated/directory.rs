//! Generated organizations, roles and permissions, and the memberships of generated users.
//!
//! User `k` is a member of the organization of the tenant and of the generated organizations from `k` on, so that the members of
//! one organization are found without a look at every user.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{FIRST_CREATED_ON, mix};
use crate::config;
use crate::directory::{Objects, Organization, Permission, Role};
use crate::user::{Grant, Membership};

/// Permissions of each role, and generated permissions per role: neighbouring roles share some.
const PERMISSIONS_OF_ROLE: usize = 5;
const PERMISSIONS_PER_ROLE: usize = 2;
/// The largest number of organizations and of roles.
const MAX: usize = 1 << 20;

impl Objects {
    pub(crate) fn new(wanted: &config::Generated) -> Self {
        let key = mix(!wanted.seed);
        let permission = |n: usize| Permission::new(uuid(mix(key), n), &format!("permission-{n}"));
        let permissions: Vec<_> = (0..size(wanted.roles) * PERMISSIONS_PER_ROLE).map(permission).collect();
        let role = |n: usize| {
            let of_role = permissions.iter().cycle().skip(n * PERMISSIONS_PER_ROLE).take(PERMISSIONS_OF_ROLE);
            let mut ids: Vec<String> = of_role.map(|permission| permission.id.clone()).collect();
            ids.truncate(permissions.len());
            Role { permissions: ids, ..Role::new(uuid(key, n), &format!("role-{n}")) }
        };
        Self {
            organizations: (1..size(wanted.organizations)).map(|n| organization(key, n)).collect(),
            roles: (0..size(wanted.roles)).map(role).collect(),
            permissions,
        }
    }
}

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(MAX).min(MAX)
}

fn organization(key: u64, n: usize) -> Organization {
    let created_on = Timestamp::from_second(FIRST_CREATED_ON).unwrap_or_default();
    let code = format!("org_{:06x}{n:05x}", mix(key ^ n as u64) >> 40);
    Organization {
        name: format!("Organization {n}"),
        handle: Some(format!("organization-{n}")),
        ..Organization::new(&code, created_on)
    }
}

fn uuid(key: u64, n: usize) -> String {
    let (hi, lo) = (mix(key ^ n as u64), mix(key.wrapping_add(n as u64)));
    let (lo, tail) = (lo >> 52, lo & 0xffff_ffff_ffff);
    format!("{:08x}-{:04x}-4{:03x}-8{lo:03x}-{tail:012x}", hi >> 32, hi >> 16 & 0xffff, hi & 0xfff)
}

/// The memberships of all generated users.
pub(super) struct Memberships {
    /// Code of the organization of every user.
    first: String,
    /// Codes of the generated organizations; `None` is a deleted one.
    codes: Vec<Option<String>>,
    /// Positions in `codes`.
    by_code: HashMap<String, usize>,
    /// Generated roles; `None` is a deleted one.
    roles: Vec<Option<Grant>>,
    /// Generated organizations of each user.
    per_user: usize,
}

impl Memberships {
    pub(super) fn new(wanted: &config::Generated, first: &str) -> Self {
        let objects = Objects::new(wanted);
        let codes: Vec<String> = objects.organizations.into_iter().map(|one| one.code).collect();
        Self {
            first: first.to_owned(),
            by_code: codes.iter().cloned().zip(0..).collect(),
            per_user: size(wanted.memberships_per_user.saturating_sub(1)).min(codes.len()),
            codes: codes.into_iter().map(Some).collect(),
            roles: objects.roles.iter().map(|role| Some(role.grant())).collect(),
        }
    }

    /// The memberships of user `k`. `random` is a number of this user.
    pub(super) fn of(&self, k: u64, random: u64, joined_on: Timestamp) -> Vec<Membership> {
        let of_user = (k..).take(self.per_user);
        let generated = of_user.filter_map(|n| self.codes[remainder(n, self.codes.len())].as_deref());
        let codes = std::iter::once(self.first.as_str()).chain(generated);
        let member = |(n, code)| Membership {
            roles: self.roles_of(mix(random.wrapping_add(n))),
            ..Membership::new(code, joined_on)
        };
        (1..).zip(codes).map(member).collect()
    }

    /// No role, one role or two roles.
    fn roles_of(&self, random: u64) -> Vec<Grant> {
        let (first, second) = (random >> 2 & 0xffff, random >> 32 & 0xffff);
        let numbers = match random & 3 {
            _ if self.roles.is_empty() => vec![],
            0 => vec![],
            3 if remainder(first, self.roles.len()) != remainder(second, self.roles.len()) => {
                vec![first, second]
            }
            _ => vec![first],
        };
        let role = |number| self.roles[remainder(number, self.roles.len())].clone();
        numbers.into_iter().filter_map(role).collect()
    }

    /// The numbers of the users in `from..count` that are members of an organization; `None` if all of them are.
    pub(super) fn members(&self, code: &str, from: u64, count: u64) -> Option<Vec<u64>> {
        if code == self.first {
            return None;
        }
        let Some(at) = self.by_code.get(code) else { return Some(Vec::new()) };
        let organizations = self.codes.len();
        let start = remainder(from, organizations);
        let numbers = |slot: usize| {
            let residue = (at + organizations - slot) % organizations;
            let first = from + ((residue + organizations - start) % organizations) as u64;
            (first..count).step_by(organizations)
        };
        Some((0..self.per_user).flat_map(numbers).collect())
    }

    /// Ends all memberships in a deleted organization.
    pub(super) fn remove_organization(&mut self, code: &str) {
        if let Some(at) = self.by_code.remove(code) {
            self.codes[at] = None;
        }
    }

    /// Changes the grant of a role, or takes a deleted role from all members.
    pub(super) fn set_role(&mut self, id: &str, grant: Option<&Grant>) {
        let role = self.roles.iter_mut().find(|role| role.as_ref().is_some_and(|known| known.id == id));
        if let Some(role) = role {
            *role = grant.cloned();
        }
    }
}

/// `number` modulo a length above zero.
fn remainder(number: u64, length: usize) -> usize {
    usize::try_from(number % length as u64).unwrap_or_default()
}
