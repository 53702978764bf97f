//! What Kinde's deliveries have told kinsync so far: the fold of every delivery that was answered 200.
//!
//! It is made from the emulator's records alone, apart from the code that kinsync joins with, so that the two can be
//! held against each other. Events, once told, are as in Kinde's law: the newest value of a field wins, and a deletion
//! is final.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use kinde_emulator::{Delivery, DeliveryState, Event};
use serde_json::Value;

/// What was told of one user.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    fields: BTreeMap<String, (Timestamp, Value)>,
    /// Whether a deletion was told.
    pub(super) is_deleted: bool,
    /// The newest sign-in.
    pub(super) signed_in: Option<Timestamp>,
}

impl Told {
    /// The newest value of a field of the payload.
    pub(super) fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).map(|(_, value)| value)
    }

    fn take(&mut self, event: &Event) {
        match event.kind.as_str() {
            "user.created" | "user.updated" => self.take_fields(event),
            "user.deleted" => self.is_deleted = true,
            "user.authenticated" => self.signed_in = self.signed_in.max(Some(event.at)),
            _ => {}
        }
    }

    fn take_fields(&mut self, event: &Event) {
        for (name, value) in event.data["user"].as_object().into_iter().flatten() {
            let known = self.fields.get(name).map(|(at, _)| *at);
            if known.is_none_or(|at| at < event.at) {
                self.fields.insert(name.clone(), (event.at, value.clone()));
            }
        }
    }
}

/// Everything told, and what is still on its way.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    told: HashMap<String, Told>,
    open: HashMap<u64, Arc<Event>>,
    known: HashSet<String>,
    read_to: u64,
}

impl Ledger {
    /// Reads the emulator's latest records, oldest first. `find` answers the event of an id.
    pub(super) fn read(&mut self, deliveries: &[Delivery], find: impl Fn(&str) -> Option<Arc<Event>>) {
        for delivery in deliveries {
            if delivery.number > self.read_to {
                self.read_to = delivery.number;
                self.known.extend(delivery.user_id.clone());
                if let Some(event) = find(&delivery.event_id) {
                    self.open.insert(delivery.number, event);
                }
            }
            if delivery.state != DeliveryState::Pending
                && let Some(event) = self.open.remove(&delivery.number)
            {
                self.settle(delivery.state, &event);
            }
        }
    }

    fn settle(&mut self, state: DeliveryState, event: &Event) {
        if let (DeliveryState::Delivered, Some(user)) = (state, event.user_id()) {
            self.told.entry(user.to_owned()).or_default().take(event);
        }
    }

    /// Remembers a user, so that one who leaves without a word is still known to be of this town.
    pub(super) fn meet(&mut self, user: &str) {
        if !self.known.contains(user) {
            self.known.insert(user.to_owned());
        }
    }

    /// Whether the user is, or was, of this town.
    pub(super) fn knows(&self, user: &str) -> bool {
        self.known.contains(user)
    }

    /// What was told of a user, if anything was.
    pub(super) fn told(&self, user: &str) -> Option<&Told> {
        self.told.get(user)
    }

    /// The users of whom a delivery is still on its way.
    pub(super) fn awaited(&self) -> HashSet<&str> {
        self.open.values().filter_map(|event| event.user_id()).collect()
    }
}
