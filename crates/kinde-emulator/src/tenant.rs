//! The tenant's users and events in memory, and the rules of changing them.
//!
//! Pure of I/O: a change returns the events that it causes, and the emulator sends them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::config::Config;
use crate::event::{Event, Source};
use crate::user::{Grant, Membership, NewUser, User, UserEdit};

/// A change that the tenant refuses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such user.
    #[error("there is no user `{0}`")]
    UnknownUser(String),
    /// The id or the email belongs to another user.
    #[error("`{0}` belongs to another user")]
    Taken(String),
    /// The user cannot sign in.
    #[error("user `{0}` is suspended: unsuspend it first")]
    Suspended(String),
}

/// What a deletion leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Nothing.
    #[default]
    Remove,
    /// The profile, as a subscriber's record.
    Keep,
}

/// An event that has no id and no time yet.
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

/// Users in the order of their creation, and the events so far.
pub(crate) struct Tenant {
    pub(crate) clock: Clock,
    config: Arc<Config>,
    users: BTreeMap<u64, User>,
    by_id: HashMap<String, u64>,
    by_email: HashMap<String, u64>,
    next: u64,
    events: BTreeMap<String, Arc<Event>>,
}

impl Tenant {
    pub(crate) fn new(config: Arc<Config>) -> Self {
        Self {
            clock: Clock::new(config.seed),
            config,
            users: BTreeMap::new(),
            by_id: HashMap::new(),
            by_email: HashMap::new(),
            next: 1,
            events: BTreeMap::new(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.users.clear();
        self.by_id.clear();
        self.by_email.clear();
        self.events.clear();
    }

    /// Adds a user without any event.
    pub(crate) fn add(&mut self, new: NewUser) -> Result<User, Error> {
        let id = new.id.clone().unwrap_or_else(|| self.clock.user_id());
        if self.by_id.contains_key(&id) {
            return Err(Error::Taken(id));
        }
        self.claim_email(new.email.as_deref(), self.next)?;
        let at = self.clock.tick();
        let user = User::new(id.clone(), new, &self.config.org_code, at);
        self.by_id.insert(id, self.next);
        self.users.insert(self.next, user.clone());
        self.next += 1;
        Ok(user)
    }

    /// Adds a user who signs up, with the events that are configured for it.
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
        let seq = self.seq(id)?;
        if let Some(email) = edit.email.as_deref() {
            self.claim_email(Some(email).filter(|text| !text.is_empty()), seq)?;
        }
        Ok(self.change(seq, source, |user, at| user.apply(edit, at)))
    }

    /// Gives each the other's email: two `user.updated`, the first of which takes the other's email.
    pub(crate) fn swap_emails(&mut self, a: &str, b: &str) -> Result<Vec<Draft>, Error> {
        let (a, b) = (self.seq(a)?, self.seq(b)?);
        let (of_a, of_b) = (self.users[&a].email.clone(), self.users[&b].email.clone());
        for (email, owner) in [(&of_b, a), (&of_a, b)] {
            if let Some(email) = email {
                self.by_email.insert(email.to_lowercase(), owner);
            }
        }
        let mut drafts =
            self.change(a, Source::Admin, |user, at| (user.email, user.updated_on) = (of_b, at)).1;
        drafts.extend(self.change(b, Source::Admin, |user, at| (user.email, user.updated_on) = (of_a, at)).1);
        Ok(drafts)
    }

    /// Adds the user to an organization, or replaces the roles and permissions in it.
    pub(crate) fn join(
        &mut self,
        id: &str,
        code: &str,
        roles: &[String],
        permissions: &[String],
    ) -> Result<(User, Vec<Draft>), Error> {
        let seq = self.seq(id)?;
        let mut grants = |keys: &[String]| -> Vec<Grant> {
            keys.iter().map(|key| Grant { id: self.clock.uuid(), key: key.clone() }).collect()
        };
        let member =
            Membership { code: code.to_owned(), roles: grants(roles), permissions: grants(permissions) };
        Ok(self.change(seq, Source::Admin, |user, at| {
            user.organizations.retain(|org| org.code != member.code);
            user.organizations.push(member);
            user.updated_on = at;
        }))
    }

    pub(crate) fn delete(&mut self, id: &str, profile: Profile, source: Source) -> Result<Vec<Draft>, Error> {
        let seq = self.seq(id)?;
        let at = self.clock.tick();
        if let Some(email) = self.users[&seq].email.as_ref().map(|email| email.to_lowercase()) {
            self.by_email.remove(&email);
        }
        if profile == Profile::Remove {
            self.users.remove(&seq);
            self.by_id.remove(id);
        } else if let Some(user) = self.users.get_mut(&seq) {
            user.deleted_on = Some(at);
        }
        Ok(vec![Draft::new("user.deleted", source, json!({"user": {"id": id}}))])
    }

    /// The outcome, and the event that tells of it: a suspended user's sign-in fails with an event too.
    pub(crate) fn sign_in(&mut self, id: &str) -> (Result<User, Error>, Vec<Draft>) {
        match self.record_sign_in(id) {
            Ok(user) => (Ok(user), vec![Draft::sign_in("user.authenticated", id)]),
            Err(Error::Suspended(who)) => {
                (Err(Error::Suspended(who)), vec![Draft::sign_in("user.authentication_failed", id)])
            }
            Err(error) => (Err(error), Vec::new()),
        }
    }

    fn record_sign_in(&mut self, id: &str) -> Result<User, Error> {
        let seq = self.seq(id)?;
        let at = self.clock.tick();
        let user = self.users.get_mut(&seq).expect("`seq` only finds users that are there");
        if user.is_suspended {
            user.failed_sign_ins += 1;
            return Err(Error::Suspended(id.to_owned()));
        }
        user.last_signed_in = Some(at);
        user.total_sign_ins += 1;
        user.failed_sign_ins = 0;
        Ok(user.clone())
    }

    pub(crate) fn created(&self, user: &User, source: Source) -> Draft {
        Draft::new("user.created", source, self.data(user))
    }

    /// Gives a draft its id and time and keeps the event.
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

    /// A user that is not deleted, or was deleted with the profile kept if those are shown.
    pub(crate) fn user(&self, id: &str) -> Option<&User> {
        self.users.get(self.by_id.get(id)?).filter(|user| self.shows(user))
    }

    pub(crate) fn user_by_email(&self, email: &str) -> Option<&User> {
        self.users.get(self.by_email.get(&email.to_lowercase())?)
    }

    /// The users that are shown, with their place in the order, from the place `from` on.
    pub(crate) fn users_from(&self, from: u64) -> impl Iterator<Item = (u64, &User)> {
        let shown = self.users.range(from..).filter(|(_, user)| self.shows(user));
        shown.map(|(seq, user)| (*seq, user))
    }

    fn shows(&self, user: &User) -> bool {
        user.deleted_on.is_none() || self.config.unknowns.list_includes_deleted
    }

    fn seq(&self, id: &str) -> Result<u64, Error> {
        let seq = self.by_id.get(id).copied();
        let living = seq.filter(|seq| self.users[seq].deleted_on.is_none());
        living.ok_or_else(|| Error::UnknownUser(id.to_owned()))
    }

    /// Makes `owner` the one with this email, and frees the email that it had.
    fn claim_email(&mut self, email: Option<&str>, owner: u64) -> Result<(), Error> {
        let new = email.map(str::to_lowercase);
        if let Some(email) = &new
            && self.by_email.get(email).is_some_and(|other| *other != owner)
        {
            return Err(Error::Taken(email.clone()));
        }
        if let Some(old) = self.users.get(&owner).and_then(|user| user.email.as_ref()) {
            self.by_email.remove(&old.to_lowercase());
        }
        if let Some(email) = new {
            self.by_email.insert(email, owner);
        }
        Ok(())
    }

    fn change(
        &mut self,
        seq: u64,
        source: Source,
        change: impl FnOnce(&mut User, Timestamp),
    ) -> (User, Vec<Draft>) {
        let at = self.clock.tick();
        let user = self.users.get_mut(&seq).expect("`seq` only finds users that are there");
        change(user, at);
        let user = user.clone();
        let draft = Draft::new("user.updated", source, self.data(&user));
        (user, vec![draft])
    }

    fn data(&self, user: &User) -> Value {
        user.webhook_data(self.config.unknowns.missing_email)
    }
}
