//! All users of the tenant: generated ones, created ones, and their changes.
//!
//! Each user has a fixed position in the order of creation. Generated users have the positions from 0 and use no memory
//! until they are changed. Every change goes through [`Users::put`], which updates the indexes and records the state
//! before the change, for the latest `delivery.log` changes.

mod generated;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};

use jiff::Timestamp;

use crate::config::{self, Config};
use crate::user::{Grant, User};
use generated::Generated;

/// The position of the first created user, above every generated one.
const FIRST_CREATED: u64 = 1 << 40;

/// The state of a user before a change.
struct Previous {
    at: Timestamp,
    position: u64,
    user: Option<User>,
}

pub(crate) struct Users {
    generated: Generated,
    /// Created and changed users by position; `None` is a removed user.
    stored: BTreeMap<u64, Option<User>>,
    /// Positions of created users, including removed ones.
    by_id: HashMap<String, u64>,
    /// Positions of stored users that are not deleted, by lower-case email.
    by_email: HashMap<String, u64>,
    changes: VecDeque<Previous>,
    next: u64,
    max_changes: usize,
    lists_deleted: bool,
}

impl Users {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            generated: Generated::new(config.generated, &config.org_code),
            stored: BTreeMap::new(),
            by_id: HashMap::new(),
            by_email: HashMap::new(),
            changes: VecDeque::new(),
            next: FIRST_CREATED,
            max_changes: config.delivery.log,
            lists_deleted: config.unknowns.list_includes_deleted,
        }
    }

    /// The settings of the generated users.
    pub(crate) fn generated(&self) -> config::Generated {
        self.generated.settings()
    }

    /// Generates other users and discards the changes of those above the new number.
    pub(crate) fn set_generated(&mut self, settings: config::Generated, org_code: &str) {
        self.generated = Generated::new(settings, org_code);
        let count = self.generated.count();
        let exists = |position: u64| position < count || position >= FIRST_CREATED;
        self.stored.retain(|position, _| exists(*position));
        self.by_email.retain(|_, position| exists(*position));
        self.changes.retain(|change| exists(change.position));
    }

    /// Returns the user at a position, also one deleted with its profile kept.
    pub(crate) fn at(&self, position: u64) -> Option<Cow<'_, User>> {
        match self.stored.get(&position) {
            Some(stored) => stored.as_ref().map(Cow::Borrowed),
            None => self.generated.user(position).map(Cow::Owned),
        }
    }

    /// Returns the position of the user with this id, also of a removed user.
    pub(crate) fn position(&self, id: &str) -> Option<u64> {
        self.by_id.get(id).copied().or_else(|| self.generated.by_id(id))
    }

    /// Returns the position of the user with this email in any case; deleted users have none.
    pub(crate) fn owner(&self, email: &str) -> Option<u64> {
        let email = email.to_lowercase();
        let generated =
            || self.generated.by_email(&email).filter(|position| !self.stored.contains_key(position));
        self.by_email.get(&email).copied().or_else(generated)
    }

    pub(crate) fn add(&mut self, user: User, at: Timestamp) {
        let position = self.next;
        self.next += 1;
        self.by_id.insert(user.id.clone(), position);
        self.put(position, Some(user), at);
    }

    /// Replaces or removes the user at a position.
    pub(crate) fn put(&mut self, position: u64, user: Option<User>, at: Timestamp) {
        let before = self.at(position).map(Cow::into_owned);
        let current_email = |user: &Option<User>| {
            let user = user.as_ref().filter(|user| user.deleted_on.is_none())?;
            user.email.as_ref().map(|email| email.to_lowercase())
        };
        if let Some(old) = current_email(&before)
            && self.by_email.get(&old) == Some(&position)
        {
            self.by_email.remove(&old);
        }
        if let Some(new) = current_email(&user) {
            self.by_email.insert(new, position);
        }
        self.stored.insert(position, user);
        self.changes.push_back(Previous { at, position, user: before });
        if self.changes.len() > self.max_changes {
            self.changes.pop_front();
        }
    }

    /// Ends all memberships in a deleted organization.
    pub(crate) fn remove_organization(&mut self, code: &str) {
        self.generated.remove_organization(code);
        self.change_stored(|user| user.organizations.retain(|member| member.code != code));
    }

    /// Takes a deleted role from all members.
    pub(crate) fn remove_role(&mut self, id: &str) {
        self.generated.set_role(id, None);
        self.change_stored(|user| {
            let members = user.organizations.iter_mut();
            members.for_each(|member| member.roles.retain(|grant| grant.id != id));
        });
    }

    /// Changes the key of a role in all memberships.
    pub(crate) fn rename_role(&mut self, role: &Grant) {
        self.generated.set_role(&role.id, Some(role));
        self.change_stored(|user| {
            let grants = user.organizations.iter_mut().flat_map(|member| &mut member.roles);
            grants.filter(|grant| grant.id == role.id).for_each(|grant| grant.key.clone_from(&role.key));
        });
    }

    /// Changes all users that are stored, without a record of the state before.
    pub(crate) fn change_stored(&mut self, change: impl FnMut(&mut User)) {
        self.stored.values_mut().flatten().for_each(change);
    }

    /// The users that the API lists now.
    pub(crate) fn now(&self) -> View<'_> {
        View { users: self, previous: BTreeMap::new() }
    }

    /// The users that the API listed at `at`, or at the oldest recorded change.
    pub(crate) fn at_time(&self, at: Timestamp) -> View<'_> {
        let later = self.changes.iter().rev().take_while(|change| change.at > at);
        View { users: self, previous: later.map(|change| (change.position, change.user.as_ref())).collect() }
    }
}

/// The users that the API lists at one instant.
pub(crate) struct View<'a> {
    users: &'a Users,
    /// Users that changed since then, as they were. Their positions are among the stored ones.
    previous: BTreeMap<u64, Option<&'a User>>,
}

impl<'a> View<'a> {
    pub(crate) fn at(&self, position: u64) -> Option<Cow<'a, User>> {
        let user = match self.previous.get(&position) {
            Some(previous) => previous.map(Cow::Borrowed),
            None => self.users.at(position),
        };
        user.filter(|user| user.deleted_on.is_none() || self.users.lists_deleted)
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<Cow<'a, User>> {
        self.at(self.users.position(id)?)
    }

    /// The users from a position on, with their positions.
    pub(crate) fn from(&self, position: u64) -> impl Iterator<Item = (u64, Cow<'a, User>)> {
        let created = self.users.stored.range(position.max(FIRST_CREATED)..).map(|(position, _)| *position);
        let positions = (position..self.users.generated.count()).chain(created);
        positions.filter_map(|position| Some((position, self.at(position)?)))
    }

    /// The users from a position on that may be members of an organization, with their positions.
    pub(crate) fn members(
        &self,
        code: &str,
        from: u64,
    ) -> Box<dyn Iterator<Item = (u64, Cow<'a, User>)> + '_> {
        let Some(mut positions) = self.users.generated.members(code, from) else {
            return Box::new(self.from(from));
        };
        positions.extend(self.users.stored.range(from..).map(|(position, _)| *position));
        positions.sort_unstable();
        positions.dedup();
        Box::new(positions.into_iter().filter_map(|position| Some((position, self.at(position)?))))
    }

    /// The positions that may have users with these lower-case emails, in order.
    pub(crate) fn candidates(&self, emails: &[String]) -> Vec<u64> {
        let generated = emails.iter().filter_map(|email| self.users.generated.by_email(email));
        let mut positions: Vec<u64> = self.users.stored.keys().copied().chain(generated).collect();
        positions.sort_unstable();
        positions.dedup();
        positions
    }

    /// The positions of these ids, in order.
    pub(crate) fn positions(&self, ids: &[String]) -> Vec<u64> {
        let mut positions: Vec<u64> = ids.iter().filter_map(|id| self.users.position(id)).collect();
        positions.sort_unstable();
        positions.dedup();
        positions
    }

    /// The number of users. Takes time proportional to the number of changes.
    pub(crate) fn count(&self) -> usize {
        let hidden = self.hidden().count();
        let created = self.users.stored.range(FIRST_CREATED..);
        let listed = created.filter(|(position, _)| self.at(**position).is_some()).count();
        usize::try_from(self.users.generated.count()).unwrap_or(usize::MAX) - hidden + listed
    }

    /// The position of the user with `rank` users before it; `u64::MAX` if there are not as many.
    pub(crate) fn nth(&self, rank: u64) -> u64 {
        let mut position = rank;
        for hidden in self.hidden() {
            if hidden > position {
                break;
            }
            position = position.saturating_add(1);
        }
        let Some(left) = position.checked_sub(self.users.generated.count()) else { return position };
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        self.from(FIRST_CREATED).nth(left).map_or(u64::MAX, |(position, _)| position)
    }

    /// The positions of generated users that are no longer listed, in order.
    fn hidden(&self) -> impl Iterator<Item = u64> {
        let changed = self.users.stored.range(..FIRST_CREATED).map(|(position, _)| *position);
        changed.filter(|position| self.at(*position).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::user::NewUser;

    fn users(generated: u64) -> Users {
        let generated = config::Generated { users: generated, seed: 3, ..config::Generated::default() };
        Users::new(&Config { generated, ..Config::default() })
    }

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn created(name: &str) -> User {
        User::new(format!("kp_{name}"), NewUser::named(&format!("{name}@x.org"), name, "N"), "org_1", time(1))
    }

    fn ids(view: &View<'_>) -> Vec<String> {
        view.from(0).map(|(_, user)| user.id.clone()).collect()
    }

    #[test]
    fn a_rank_has_the_position_found_by_iteration() {
        let mut users = users(20);
        for name in ["a", "b", "c"] {
            users.add(created(name), time(2));
        }
        for position in [0, 1, 7, 19, FIRST_CREATED + 1] {
            users.put(position, None, time(3));
        }
        let mut changed = users.at(5).unwrap().into_owned();
        changed.deleted_on = Some(time(4));
        users.put(5, Some(changed), time(4));
        let view = users.now();
        let positions: Vec<u64> = view.from(0).map(|(position, _)| position).collect();
        assert_eq!((positions.len(), view.count()), (17, 17));
        for (rank, position) in (0..).zip(&positions) {
            assert_eq!(view.nth(rank), *position);
        }
        assert_eq!((view.nth(17), view.from(u64::MAX).count()), (u64::MAX, 0));
    }

    #[test]
    fn an_earlier_state_is_listed_as_it_was() {
        let mut users = users(3);
        users.add(created("a"), time(10));
        let before = ids(&users.now());
        users.add(created("b"), time(20));
        let first = users.at(0).unwrap().into_owned();
        let renamed = User { first_name: Some("New".to_owned()), ..first.clone() };
        users.put(0, Some(renamed), time(21));
        users.put(0, None, time(22));
        users.put(users.position("kp_a").unwrap(), None, time(23));
        assert_eq!(ids(&users.at_time(time(15))), before);
        assert_eq!(users.at_time(time(15)).by_id(&first.id).as_deref(), Some(&first));
        assert_eq!(users.at_time(time(21)).by_id(&first.id).unwrap().first_name.as_deref(), Some("New"));
        assert_eq!(
            (users.at_time(time(5)).count(), users.at_time(time(15)).count(), users.now().count()),
            (3, 4, 3)
        );
    }

    #[test]
    fn an_email_belongs_to_one_user() {
        let mut users = users(100);
        let position = (0..100).find(|position| users.at(*position).unwrap().email.is_some()).unwrap();
        let user = users.at(position).unwrap().into_owned();
        let email = user.email.clone().unwrap();
        assert_eq!(users.owner(&email.to_uppercase()), Some(position));
        users.put(position, Some(User { email: Some("new@x.org".to_owned()), ..user }), time(1));
        assert_eq!((users.owner(&email), users.owner("New@x.org")), (None, Some(position)));
        users.put(position, None, time(2));
        assert_eq!(users.owner("new@x.org"), None);
        users.set_generated(config::Generated { users: position, ..users.generated() }, "org_1");
        assert_eq!((users.at(position), users.now().count()), (None, usize::try_from(position).unwrap()));
    }
}
