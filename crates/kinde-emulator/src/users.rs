//! Where users are: computed ones, created ones, and how both have changed since.
//!
//! A user has a place in the order of creation, which never changes. Computed users have the places from 0 on
//! and cost nothing until they are changed. [`Users::put`] is the only door to every change: it keeps the
//! indexes, and the past for as many changes as are asked for.

mod generated;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};

use jiff::Timestamp;

use crate::config::Config;
use crate::user::User;
use generated::Generated;

/// The place of the first user that was created, far behind every computed one.
const FIRST_CREATED: u64 = 1 << 40;

/// A user as it was before a change.
struct Before {
    at: Timestamp,
    place: u64,
    user: Option<User>,
}

pub(crate) struct Users {
    generated: Generated,
    /// Created users and changed ones; `None` where one was removed.
    kept: BTreeMap<u64, Option<User>>,
    /// Of created users, removed ones included.
    by_id: HashMap<String, u64>,
    /// Of kept users that are not deleted, in lower case.
    by_email: HashMap<String, u64>,
    past: VecDeque<Before>,
    next: u64,
    remembers: usize,
    shows_deleted: bool,
}

impl Users {
    pub(crate) fn new(config: &Config) -> Self {
        let wanted = &config.generated;
        Self {
            generated: Generated::new(wanted.users, wanted.seed, &config.org_code),
            kept: BTreeMap::new(),
            by_id: HashMap::new(),
            by_email: HashMap::new(),
            past: VecDeque::new(),
            next: FIRST_CREATED,
            remembers: config.delivery.log,
            shows_deleted: config.unknowns.list_includes_deleted,
        }
    }

    /// Makes it so many computed users; changes of those that are no more are forgotten.
    pub(crate) fn set_generated(&mut self, count: u64) {
        self.generated.set_count(count);
        let count = self.generated.count();
        let there = |place: u64| place < count || place >= FIRST_CREATED;
        self.kept.retain(|place, _| there(*place));
        self.by_email.retain(|_, place| there(*place));
        self.past.retain(|before| there(before.place));
    }

    /// The user at a place, deleted with the profile kept or not.
    pub(crate) fn at(&self, place: u64) -> Option<Cow<'_, User>> {
        match self.kept.get(&place) {
            Some(kept) => kept.as_ref().map(Cow::Borrowed),
            None => self.generated.user(place).map(Cow::Owned),
        }
    }

    /// The place of the user with this id, removed or not.
    pub(crate) fn place(&self, id: &str) -> Option<u64> {
        self.by_id.get(id).copied().or_else(|| self.generated.by_id(id))
    }

    /// The place of the living user with this email, whatever its case.
    pub(crate) fn owner(&self, email: &str) -> Option<u64> {
        let email = email.to_lowercase();
        let computed = || self.generated.by_email(&email).filter(|place| !self.kept.contains_key(place));
        self.by_email.get(&email).copied().or_else(computed)
    }

    pub(crate) fn add(&mut self, user: User, at: Timestamp) {
        let place = self.next;
        self.next += 1;
        self.by_id.insert(user.id.clone(), place);
        self.put(place, Some(user), at);
    }

    /// Replaces the user at a place, or removes it.
    pub(crate) fn put(&mut self, place: u64, user: Option<User>, at: Timestamp) {
        let before = self.at(place).map(Cow::into_owned);
        let living_email = |user: &Option<User>| {
            let user = user.as_ref().filter(|user| user.deleted_on.is_none())?;
            user.email.as_ref().map(|email| email.to_lowercase())
        };
        if let Some(old) = living_email(&before)
            && self.by_email.get(&old) == Some(&place)
        {
            self.by_email.remove(&old);
        }
        if let Some(new) = living_email(&user) {
            self.by_email.insert(new, place);
        }
        self.kept.insert(place, user);
        self.past.push_back(Before { at, place, user: before });
        if self.past.len() > self.remembers {
            self.past.pop_front();
        }
    }

    /// The users that the API shows now.
    pub(crate) fn now(&self) -> View<'_> {
        View { users: self, then: BTreeMap::new() }
    }

    /// The users that the API showed then, or as long ago as is remembered.
    pub(crate) fn then(&self, then: Timestamp) -> View<'_> {
        let later = self.past.iter().rev().take_while(|before| before.at > then);
        View { users: self, then: later.map(|before| (before.place, before.user.as_ref())).collect() }
    }
}

/// The users that the API shows at one instant.
pub(crate) struct View<'a> {
    users: &'a Users,
    /// What was where it has changed since; its places are among the kept ones.
    then: BTreeMap<u64, Option<&'a User>>,
}

impl<'a> View<'a> {
    pub(crate) fn at(&self, place: u64) -> Option<Cow<'a, User>> {
        let user = match self.then.get(&place) {
            Some(then) => then.map(Cow::Borrowed),
            None => self.users.at(place),
        };
        user.filter(|user| user.deleted_on.is_none() || self.users.shows_deleted)
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<Cow<'a, User>> {
        self.at(self.users.place(id)?)
    }

    /// The users from a place on, with their places.
    pub(crate) fn from(&self, place: u64) -> impl Iterator<Item = (u64, Cow<'a, User>)> {
        let created = self.users.kept.range(place.max(FIRST_CREATED)..).map(|(place, _)| *place);
        let places = (place..self.users.generated.count()).chain(created);
        places.filter_map(|place| Some((place, self.at(place)?)))
    }

    /// The places where users with these emails (in lower case) may be.
    pub(crate) fn may_have(&self, emails: &[String]) -> Vec<u64> {
        let computed = emails.iter().filter_map(|email| self.users.generated.by_email(email));
        let mut places: Vec<u64> = self.users.kept.keys().copied().chain(computed).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// The places of these ids, in order.
    pub(crate) fn places(&self, ids: &[String]) -> Vec<u64> {
        let mut places: Vec<u64> = ids.iter().filter_map(|id| self.users.place(id)).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// How many there are, in time that grows with the changes alone.
    pub(crate) fn count(&self) -> usize {
        let hidden = self.hidden().count();
        let created = self.users.kept.range(FIRST_CREATED..);
        let shown = created.filter(|(place, _)| self.at(**place).is_some()).count();
        usize::try_from(self.users.generated.count()).unwrap_or(usize::MAX) - hidden + shown
    }

    /// The place of the user that has so many before it; behind every place when there are not so many.
    pub(crate) fn nth(&self, rank: u64) -> u64 {
        let mut place = rank;
        for hidden in self.hidden() {
            if hidden > place {
                break;
            }
            place = place.saturating_add(1);
        }
        let Some(left) = place.checked_sub(self.users.generated.count()) else { return place };
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        self.from(FIRST_CREATED).nth(left).map_or(u64::MAX, |(place, _)| place)
    }

    /// The places of computed users that are not shown any more, in order.
    fn hidden(&self) -> impl Iterator<Item = u64> {
        let changed = self.users.kept.range(..FIRST_CREATED).map(|(place, _)| *place);
        changed.filter(|place| self.at(*place).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::user::NewUser;

    fn people(users: u64) -> Users {
        let generated = config::Generated { users, seed: 3 };
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
    fn every_rank_is_where_the_walk_finds_it() {
        let mut people = people(20);
        for name in ["a", "b", "c"] {
            people.add(created(name), time(2));
        }
        for place in [0, 1, 7, 19, FIRST_CREATED + 1] {
            people.put(place, None, time(3));
        }
        let mut changed = people.at(5).unwrap().into_owned();
        changed.deleted_on = Some(time(4));
        people.put(5, Some(changed), time(4));
        let view = people.now();
        let walk: Vec<u64> = view.from(0).map(|(place, _)| place).collect();
        assert_eq!((walk.len(), view.count()), (17, 17));
        for (rank, place) in (0..).zip(&walk) {
            assert_eq!(view.nth(rank), *place);
        }
        assert_eq!((view.nth(17), view.from(u64::MAX).count()), (u64::MAX, 0));
    }

    #[test]
    fn the_past_is_shown_as_it_was() {
        let mut people = people(3);
        people.add(created("a"), time(10));
        let before = ids(&people.now());
        people.add(created("b"), time(20));
        let first = people.at(0).unwrap().into_owned();
        let renamed = User { first_name: Some("New".to_owned()), ..first.clone() };
        people.put(0, Some(renamed), time(21));
        people.put(0, None, time(22));
        people.put(people.place("kp_a").unwrap(), None, time(23));
        assert_eq!(ids(&people.then(time(15))), before);
        assert_eq!(people.then(time(15)).by_id(&first.id).as_deref(), Some(&first));
        assert_eq!(people.then(time(21)).by_id(&first.id).unwrap().first_name.as_deref(), Some("New"));
        assert_eq!(
            (people.then(time(5)).count(), people.then(time(15)).count(), people.now().count()),
            (3, 4, 3)
        );
    }

    #[test]
    fn an_email_belongs_to_one_user_computed_or_not() {
        let mut people = people(100);
        let place = (0..100).find(|place| people.at(*place).unwrap().email.is_some()).unwrap();
        let user = people.at(place).unwrap().into_owned();
        let email = user.email.clone().unwrap();
        assert_eq!(people.owner(&email.to_uppercase()), Some(place));
        people.put(place, Some(User { email: Some("new@x.org".to_owned()), ..user }), time(1));
        assert_eq!((people.owner(&email), people.owner("New@x.org")), (None, Some(place)));
        people.put(place, None, time(2));
        assert_eq!(people.owner("new@x.org"), None);
        people.set_generated(place);
        assert_eq!((people.at(place), people.now().count()), (None, usize::try_from(place).unwrap()));
    }
}
