//! Email ownership: decides which user's document shows an address that several users have.
//!
//! `users.email` is unique. Of the live users with the same newest address, the owner ([`kinsync_core::email::owner`]) shows
//! it, and the others carry an email conflict that names the owner. A write that may change an owner records the address in
//! [`Row::pending_emails`] in the same atomic step, so a [`Sweep`] finds it after a crash.
//!
//! A transfer has three steps, each safe to interrupt and to repeat: other documents stop showing the address; the owner's
//! document shows it; the pending marks are removed.

use std::collections::{BTreeSet, HashMap};

use kinsync_core::{Field, Micros, UserId, email};

use crate::{
    contention::{self, MAX_ROUNDS, pause},
    pending_checks::PendingChecks,
    store::{Error, Holder, Outcome, RefusedKeys, Row, Store},
};

/// Attempts with an address that is taken although no document shows it, before the address counts as refused. A concurrent
/// write explains a few such attempts; more mean that an index of the application treats two addresses as equal.
const MAX_HIDDEN: u32 = 8;

/// Rows per sweep.
const SWEEP: usize = 1000;

/// Finds and completes interrupted transfers. Meant to run periodically.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Position in the list of rows with an email conflict; `None`: the beginning.
    after: Option<UserId>,
    /// The same in the list of rows with pending resolutions. Rows that the store always refuses must not hide the others.
    after_pending: Option<UserId>,
}

impl Sweep {
    /// Completes transfers that a crash or an outage in [`crate::apply::apply`] interrupted, and updates conflicts that name
    /// a former holder: a document of the application records no pending mark when it stops showing an address. Checks a
    /// limited number of rows per call and returns the number of rows found.
    ///
    /// # Errors
    /// Fails when the store fails. The pending marks stay, and the next sweep finds them.
    pub async fn run(&mut self, store: &dyn Store, now: Micros) -> Result<usize, Error> {
        let mut rows = store.pending_emails(self.after_pending.as_ref(), SWEEP).await?;
        self.after_pending = position(&rows);
        let conflicted = store.conflicted(self.after.as_ref(), SWEEP).await?;
        self.after = position(&conflicted);
        let addresses: BTreeSet<String> =
            conflicted.iter().filter_map(Row::claimed_email).map(ToOwned::to_owned).collect();
        let holders = store.email_holders(&Vec::from_iter(addresses)).await?;
        let recorded_holders: HashMap<String, Option<String>> =
            conflicted.iter().map(|row| (row.id.to_string(), row.metadata.email_held_by.clone())).collect();
        for mut row in conflicted {
            let Some(address) = row.claimed_email().map(ToOwned::to_owned) else { continue };
            let holder = holders.get(&address).map(Holder::name);
            let recorded = row.metadata.email_held_by.as_deref();
            // The recorded holder is the owner, and the owner in turn records the document that shows the address.
            let is_owner_waiting =
                recorded.and_then(|id| recorded_holders.get(id)).is_some_and(|of| of.as_deref() == holder);
            if recorded != holder && !is_owner_waiting {
                // The mark is not stored: the next sweep finds the row again after an interruption.
                row.pending_emails.insert(address);
                rows.push(row);
            }
        }
        let found = rows.len();
        resolve(store, rows, now).await?;
        Ok(found)
    }
}

/// Returns the position after a batch. A small batch is the last one; unreadable rows are left out, so a full batch may have
/// fewer than [`SWEEP`] rows.
fn position(rows: &[Row]) -> Option<UserId> {
    rows.last().filter(|_| rows.len() > SWEEP / 2).map(|row| row.id.clone())
}

/// Transfers the addresses in [`Row::pending_emails`] of these rows to their owners.
///
/// An address that an index or a validator of the application refuses keeps its pending mark and does not delay the other
/// addresses; the next sweep retries it.
///
/// # Errors
/// Fails when the store fails, or when the rows change in each of 64 attempts. The pending marks stay.
pub async fn resolve(store: &dyn Store, mut marked: Vec<Row>, now: Micros) -> Result<(), Error> {
    let (mut refused, mut hidden) = (BTreeSet::new(), HashMap::<String, u32>::new());
    for round in 0..MAX_ROUNDS {
        let addresses: BTreeSet<String> =
            marked.iter().flat_map(|row| row.pending_emails.difference(&refused).cloned()).collect();
        if addresses.is_empty() {
            return Ok(());
        }
        pause(round).await;
        let mut transfer = Transfer::of(store, &addresses, now).await?;
        let is_done = transfer.run(&addresses).await?;
        for address in std::mem::take(&mut transfer.hidden) {
            let times = hidden.entry(address.clone()).or_default();
            *times += 1;
            if *times >= MAX_HIDDEN {
                transfer.refused.insert(address);
            }
        }
        if !transfer.refused.is_empty() {
            tracing::warn!(
                addresses = transfer.refused.len(),
                "an index or a validator of the application refused to store email addresses; the next sweep retries them"
            );
            refused.append(&mut transfer.refused);
        }
        if is_done {
            let resolved = addresses.difference(&refused).cloned().collect();
            marked = transfer.unmark(marked, &resolved).await?;
        } else {
            marked = reload(store, &marked).await?;
        }
    }
    Err(contention::error())
}

/// Reloads the rows and returns those with pending marks. Marks that a sweep did not store disappear; a later sweep finds the
/// rows again.
async fn reload(store: &dyn Store, rows: &[Row]) -> Result<Vec<Row>, Error> {
    let ids: Vec<UserId> = rows.iter().map(|row| row.id.clone()).collect();
    let rows = store.load(&ids).await?.into_iter().flatten();
    Ok(rows.filter(|row| !row.pending_emails.is_empty()).collect())
}

/// One attempt to transfer some addresses to their owners.
struct Transfer<'a> {
    store: &'a dyn Store,
    now: Micros,
    /// Live claimants of the addresses, as loaded or as written since.
    rows: HashMap<UserId, Row>,
    /// Addresses that an index or a validator of the application refuses.
    refused: BTreeSet<String>,
    /// Addresses that are taken although no document shows them.
    hidden: BTreeSet<String>,
}

impl<'a> Transfer<'a> {
    async fn of(store: &'a dyn Store, addresses: &BTreeSet<String>, now: Micros) -> Result<Self, Error> {
        let addresses: Vec<String> = addresses.iter().cloned().collect();
        let claimants = store.claimants(&addresses).await?;
        let rows = claimants.into_iter().map(|row| (row.id.clone(), row)).collect();
        Ok(Self { store, now, rows, refused: BTreeSet::new(), hidden: BTreeSet::new() })
    }

    /// Makes the owner's document the only one that shows each address. Returns `false` after a concurrent write.
    async fn run(&mut self, addresses: &BTreeSet<String>) -> Result<bool, Error> {
        let mut is_done = true;
        for address in addresses {
            let claimants: Vec<UserId> = self.claimants(address).map(|row| row.id.clone()).collect();
            let owner = email::owner(self.claimants(address).map(|row| (&row.id, &row.state))).cloned();
            let Some(owner) = owner else { continue };
            let others = claimants.iter().filter(|id| **id != owner);
            let hidden: Vec<Row> =
                others.filter_map(|id| self.with_holder(id, Some(owner.as_str()))).collect();
            self.request_checks(&owner, &hidden).await?;
            let is_transferred = match self.put(hidden).await? {
                Outcome::Written => self.show(&owner, address).await?,
                Outcome::Stale => false,
                Outcome::EmailTaken | Outcome::Failed(_) | Outcome::Rejected(_) => self.refuse(address),
            };
            if !is_transferred && !self.hidden.contains(address) {
                return Ok(false);
            }
            is_done &= is_transferred;
        }
        Ok(is_done)
    }

    /// Two users at Kinde cannot have one address, so an event of one of them was lost: a deletion or a change. Requested
    /// before the write, because a repetition after an interruption would find no new conflict.
    async fn request_checks(&self, owner: &UserId, hidden: &[Row]) -> Result<(), Error> {
        if hidden.is_empty() {
            return Ok(());
        }
        let users: Vec<UserId> =
            std::iter::once(owner).chain(hidden.iter().map(|row| &row.id)).cloned().collect();
        PendingChecks::request(self.store, &users).await
    }

    fn claimants(&self, address: &str) -> impl Iterator<Item = &Row> {
        self.rows.values().filter(move |row| row.claimed_email() == Some(address))
    }

    /// Makes the owner's document show the address. If a document of the application shows it and cannot be linked, records
    /// an email conflict instead. Returns `false` if the caller has to reload the rows and repeat.
    async fn show(&mut self, owner: &UserId, address: &str) -> Result<bool, Error> {
        let Some(shown) = self.with_holder(owner, None) else { return Ok(true) };
        // Without a unique index the write would succeed although another document shows the address.
        let is_free = self.store.enforces_unique_emails()
            || self.store.email_holders(&[address.to_owned()]).await?.is_empty();
        let shown = if is_free { self.put(vec![shown]).await? } else { Outcome::EmailTaken };
        match shown {
            Outcome::Written => return Ok(true),
            Outcome::EmailTaken => {}
            Outcome::Stale => return Ok(false),
            Outcome::Failed(_) | Outcome::Rejected(_) => return Ok(self.refuse(address)),
        }
        let holder = self.store.email_holders(&[address.to_owned()]).await?.remove(address);
        let Some(holder) = holder else {
            self.hidden.insert(address.to_owned());
            return Ok(false);
        };
        if let Holder::User(id) = &holder
            && !self.belongs_to_application(id, address).await?
        {
            return Ok(false);
        }
        match self.link(owner).await? {
            Outcome::Written => return Ok(true),
            Outcome::Stale => return Ok(false),
            Outcome::EmailTaken | Outcome::Failed(_) | Outcome::Rejected(_) => {}
        }
        let conflict = self.with_holder(owner, Some(holder.name())).into_iter().collect();
        Ok(match self.put(conflict).await? {
            Outcome::Written => true,
            Outcome::Stale => false,
            Outcome::EmailTaken | Outcome::Failed(_) | Outcome::Rejected(_) => self.refuse(address),
        })
    }

    /// Records a refused address. Returns `true`, because a repetition would be refused again.
    fn refuse(&mut self, address: &str) -> bool {
        self.refused.insert(address.to_owned());
        true
    }

    /// Links the document of the application that shows the owner's address to the owner, if Kinde reported the address as
    /// verified.
    async fn link(&mut self, owner: &UserId) -> Result<Outcome, Error> {
        let verified = self.rows.get(owner).filter(|row| row.state.has_verified_email());
        let shown = verified.and_then(|_| self.with_holder(owner, None));
        let Some(mut row) = shown else { return Ok(Outcome::EmailTaken) };
        let outcome = self.store.link(&row).await?;
        if outcome == Outcome::Written {
            row.written();
            self.rows.insert(row.id.clone(), row);
            metrics::counter!("kinsync_users_linked_total").increment(1);
        }
        Ok(outcome)
    }

    /// Returns whether the address in a document with a Kinde id belongs to the application: kinsync has not written it, or
    /// has no observation of an address of that user. Returns `false` for a claimant that was not loaded yet, and for a document that should not
    /// show the address: that document is written again.
    async fn belongs_to_application(&self, holder: &UserId, address: &str) -> Result<bool, Error> {
        // The load returns nothing for a document that kinsync never wrote.
        let row = self.store.load(std::slice::from_ref(holder)).await?.pop().flatten();
        let has_observations = |row: &Row| {
            !row.metadata.keeps_email && (row.state.value(Field::Email).is_some() || !row.state.is_live())
        };
        let Some(row) = row.filter(has_observations) else { return Ok(true) };
        if row.state.shown_email(&row.metadata) == Some(address) {
            return Ok(false);
        }
        // All keys: a rule may have kept the address in the document.
        let whole = Row { refused: RefusedKeys::default(), ..row };
        let outcomes = self.store.write(&[whole]).await?;
        Ok(outcomes.iter().any(|outcome| !matches!(outcome, Outcome::Written | Outcome::Stale)))
    }

    /// Returns the row with another holder of its address: itself (`None`) or another document. Returns `None` if the row
    /// already has this holder.
    fn with_holder(&self, id: &UserId, held_by: Option<&str>) -> Option<Row> {
        let mut row = self.rows.get(id)?.clone();
        let holds = held_by.is_none();
        if row.metadata.holds_email == holds && row.metadata.email_held_by.as_deref() == held_by {
            return None;
        }
        row.metadata.holds_email = holds;
        row.metadata.email_held_by = held_by.map(ToOwned::to_owned);
        row.metadata.updated_at = self.now;
        Some(row)
    }

    /// Writes the rows. Returns `Written` if all were written, else the first other outcome; `Stale` takes precedence,
    /// because a repetition can succeed.
    async fn put(&mut self, rows: Vec<Row>) -> Result<Outcome, Error> {
        if rows.is_empty() {
            return Ok(Outcome::Written);
        }
        let mut worst = Outcome::Written;
        let outcomes = self.store.write(&rows).await?;
        for (mut row, outcome) in rows.into_iter().zip(outcomes) {
            if outcome == Outcome::Written {
                row.written();
                self.rows.insert(row.id.clone(), row);
            } else if worst == Outcome::Written || outcome == Outcome::Stale {
                worst = outcome;
            }
        }
        Ok(worst)
    }

    /// Removes the pending marks of resolved addresses. Returns the rows that changed concurrently and still have marks: a
    /// mark from the concurrent write must stay.
    async fn unmark(&self, marked: Vec<Row>, resolved: &BTreeSet<String>) -> Result<Vec<Row>, Error> {
        let newest = marked.into_iter().map(|row| self.rows.get(&row.id).cloned().unwrap_or(row));
        let cleared: Vec<Row> = newest.filter_map(|row| without_marks(row, resolved)).collect();
        if cleared.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = self.store.write(&cleared).await?;
        // If the store refuses to remove a mark, each sweep finds the row again. That has no effect on other users.
        let lost = cleared.into_iter().zip(outcomes).filter(|(_, outcome)| *outcome == Outcome::Stale);
        let lost: Vec<Row> = lost.map(|(row, _)| row).collect();
        if lost.is_empty() { Ok(lost) } else { reload(self.store, &lost).await }
    }
}

/// Returns the row without these marks, or `None` if it has none of them.
fn without_marks(mut row: Row, resolved: &BTreeSet<String>) -> Option<Row> {
    let before = row.pending_emails.len();
    row.pending_emails.retain(|address| !resolved.contains(address));
    (row.pending_emails.len() < before).then_some(row)
}
