//! The tenant's users, organizations, roles, permissions and events in memory, and the rules for changes.
//!
//! No I/O: a change returns the events that it causes, and the emulator sends them.

mod directory;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::config::{Config, Generated};
use crate::directory::{Directory, Objects};
use crate::event::{Event, Source};
use crate::user::{NewUser, User, UserEdit};
use crate::users::Users;

pub(crate) use directory::Assign;

/// Why a change is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user does not exist.
    #[error("there is no user `{0}`")]
    UnknownUser(String),
    /// The id or the email belongs to another user.
    #[error("`{0}` belongs to another user")]
    Taken(String),
    /// The user is suspended and cannot sign in.
    #[error("user `{0}` is suspended: unsuspend it first")]
    Suspended(String),
    /// The user is not a member of the requested organization.
    #[error("user `{0}` is not a member of the requested organization")]
    NotAMember(String),
    /// The organization does not exist.
    #[error("there is no organization `{0}`")]
    UnknownOrganization(String),
    /// The default organization cannot be deleted.
    #[error("organization `{0}` is the default one and cannot be deleted")]
    DefaultOrganization(String),
    /// The role does not exist.
    #[error("there is no role `{0}`")]
    UnknownRole(String),
    /// The permission does not exist.
    #[error("there is no permission `{0}`")]
    UnknownPermission(String),
    /// The code or the key belongs to another organization, role or permission.
    #[error("`{0}` is already used")]
    Used(String),
}

/// Whether a deletion keeps the profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Removes the profile.
    #[default]
    Remove,
    /// Keeps the profile as a subscriber's record.
    Keep,
}

/// An event without id and time.
pub(crate) struct Draft {
    pub(crate) kind: String,
    pub(crate) data: Value,
    pub(crate) source: Source,
    pub(crate) ip_address: Option<String>,
}

impl Draft {
    pub(crate) fn new(kind: &str, source: Source, data: Value) -> Self {
        Self { kind: kind.to_owned(), data, source, ip_address: None }
    }

    fn sign_in(kind: &str, id: &str) -> Self {
        let ip_address = Some("203.0.113.7".to_owned());
        Self { ip_address, ..Self::new(kind, Source::User, json!({"user": {"id": id}})) }
    }
}

/// The users and the latest events.
pub(crate) struct Tenant {
    pub(crate) clock: Clock,
    config: Arc<Config>,
    pub(crate) users: Users,
    pub(crate) directory: Directory,
    events: BTreeMap<String, Arc<Event>>,
}

impl Tenant {
    pub(crate) fn new(config: Arc<Config>) -> Self {
        let mut clock = Clock::new(config.seed);
        let mut directory = Directory::new(&config.org_code, clock.tick());
        directory.add_generated(Objects::new(&config.generated));
        Self { clock, users: Users::new(&config), directory, config, events: BTreeMap::new() }
    }

    pub(crate) fn clear(&mut self) {
        self.users = Users::new(&self.config);
        self.directory = Directory::new(&self.config.org_code, self.clock.tick());
        self.directory.add_generated(Objects::new(&self.config.generated));
        self.events.clear();
    }

    /// Generates other users, organizations, roles and permissions. Changed users keep their changes, except memberships and
    /// grants of what no longer exists; changes of generated organizations, roles and permissions are discarded.
    pub(crate) fn set_generated(&mut self, change: impl FnOnce(&mut Generated)) {
        let before = self.users.generated();
        let mut wanted = before;
        change(&mut wanted);
        // Positions and ids of stored users are those of this seed.
        wanted.seed = before.seed;
        self.users.set_generated(wanted, &self.config.org_code);
        self.directory.remove_generated(&Objects::new(&before));
        self.directory.add_generated(Objects::new(&wanted));
        let Self { users, directory, .. } = self;
        users.change_stored(|user| directory.remove_dangling(user));
    }

    /// Adds a user without an event.
    pub(crate) fn add(&mut self, new: NewUser) -> Result<User, Error> {
        let id = new.id.clone().unwrap_or_else(|| self.clock.user_id());
        if self.users.position(&id).is_some_and(|position| self.users.at(position).is_some()) {
            return Err(Error::Taken(id));
        }
        self.check_email(new.email.as_deref(), None)?;
        let at = self.clock.tick();
        if let Some(code) = &new.organization {
            self.directory.ensure_organization(code, at);
        }
        let user = User::new(id, new, &self.config.org_code, at);
        self.users.add(user.clone(), at);
        Ok(user)
    }

    /// Adds a user that signs up, and returns the events of `unknowns.sign_up_events`.
    pub(crate) fn sign_up(&mut self, new: NewUser) -> Result<(User, Vec<Draft>), Error> {
        let user = self.add(new)?;
        let signed_in = self.config.unknowns.sign_up_events.iter().any(|kind| kind == "user.authenticated");
        let user = if signed_in { self.record_sign_in(&user.id)? } else { user };
        let draft = |kind: &String| match kind.as_str() {
            "user.authenticated" => Draft::sign_in(kind, &user.id),
            _ => Draft::new(kind, Source::User, self.data(&user)),
        };
        let drafts = self.config.unknowns.sign_up_events.iter().map(draft).collect();
        Ok((user, drafts))
    }

    pub(crate) fn edit(
        &mut self,
        id: &str,
        edit: UserEdit,
        source: Source,
    ) -> Result<(User, Vec<Draft>), Error> {
        let (position, user) = self.existing(id)?;
        self.check_email(edit.email.as_deref().filter(|text| !text.is_empty()), Some(position))?;
        Ok(self.change(position, user, source, |user| user.apply(edit)))
    }

    /// Exchanges two emails: two `user.updated` events. After the first one both users have the same email.
    pub(crate) fn swap_emails(&mut self, a: &str, b: &str) -> Result<Vec<Draft>, Error> {
        let ((at_a, a), (at_b, b)) = (self.existing(a)?, self.existing(b)?);
        if at_a == at_b {
            return Ok(Vec::new());
        }
        let (of_a, of_b) = (a.email.clone(), b.email.clone());
        let mut drafts = self.change(at_a, a, Source::Admin, |user| user.email = of_b).1;
        drafts.extend(self.change(at_b, b, Source::Admin, |user| user.email = of_a).1);
        Ok(drafts)
    }

    pub(crate) fn delete(&mut self, id: &str, profile: Profile, source: Source) -> Result<Vec<Draft>, Error> {
        let (position, user) = self.existing(id)?;
        let at = self.clock.tick();
        let remaining = (profile == Profile::Keep).then_some(User { deleted_on: Some(at), ..user });
        self.users.put(position, remaining, at);
        Ok(vec![Draft::new("user.deleted", source, json!({"user": {"id": id}}))])
    }

    /// Signs a user in. A sign-in that is refused because of a suspension has an event too.
    pub(crate) fn sign_in(&mut self, id: &str) -> (Result<User, Error>, Vec<Draft>) {
        match self.record_sign_in(id) {
            Ok(user) => (Ok(user), vec![Draft::sign_in("user.authenticated", id)]),
            Err(error @ Error::Suspended(_)) => {
                (Err(error), vec![Draft::sign_in("user.authentication_failed", id)])
            }
            Err(error) => (Err(error), Vec::new()),
        }
    }

    fn record_sign_in(&mut self, id: &str) -> Result<User, Error> {
        let (position, mut user) = self.existing(id)?;
        let at = self.clock.tick();
        let outcome = if user.is_suspended {
            user.failed_sign_ins += 1;
            Err(Error::Suspended(id.to_owned()))
        } else {
            user.last_signed_in = Some(at);
            user.total_sign_ins += 1;
            user.failed_sign_ins = 0;
            Ok(user.clone())
        };
        self.users.put(position, Some(user), at);
        outcome
    }

    pub(crate) fn created(&self, user: &User, source: Source) -> Draft {
        Draft::new("user.created", source, self.data(user))
    }

    /// Assigns an id and a time to a draft and stores the event.
    pub(crate) fn record(&mut self, draft: Draft) -> Arc<Event> {
        let at = self.clock.tick();
        let Draft { kind, data, source, ip_address } = draft;
        let event = Arc::new(Event { id: self.clock.event_id(at), kind, source, at, data, ip_address });
        self.events.insert(event.id.clone(), Arc::clone(&event));
        if self.events.len() > self.config.delivery.log {
            self.events.pop_first();
        }
        event
    }

    pub(crate) fn event(&self, id: &str) -> Option<Arc<Event>> {
        self.events.get(id).cloned()
    }

    /// Returns a user that is not deleted, or a deleted one with a kept profile if `list_includes_deleted` is set.
    pub(crate) fn user(&self, id: &str) -> Option<User> {
        self.users.now().by_id(id).map(Cow::into_owned)
    }

    pub(crate) fn user_by_email(&self, email: &str) -> Option<User> {
        self.users.at(self.users.owner(email)?).map(Cow::into_owned)
    }

    fn existing(&self, id: &str) -> Result<(u64, User), Error> {
        let found = || {
            let position = self.users.position(id)?;
            let user = self.users.at(position)?;
            user.deleted_on.is_none().then(|| (position, user.into_owned()))
        };
        found().ok_or_else(|| Error::UnknownUser(id.to_owned()))
    }

    /// Checks that no other user has this email.
    fn check_email(&self, email: Option<&str>, position: Option<u64>) -> Result<(), Error> {
        let owner = email.and_then(|email| self.users.owner(email));
        match (email, owner) {
            (Some(email), Some(owner)) if Some(owner) != position => Err(Error::Taken(email.to_lowercase())),
            _ => Ok(()),
        }
    }

    fn change(
        &mut self,
        position: u64,
        mut user: User,
        source: Source,
        change: impl FnOnce(&mut User),
    ) -> (User, Vec<Draft>) {
        let at = self.clock.tick();
        change(&mut user);
        user.updated_on = at;
        self.users.put(position, Some(user.clone()), at);
        let draft = Draft::new("user.updated", source, self.data(&user));
        (user, vec![draft])
    }

    fn data(&self, user: &User) -> Value {
        let unknowns = &self.config.unknowns;
        user.webhook_data(unknowns.missing_email, |member| {
            let listed = self.directory.permissions_of(member, unknowns.user_permissions);
            listed.into_iter().map(|(permission, _)| permission.grant()).collect()
        })
    }
}
