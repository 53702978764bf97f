//! Email ownership: decides which user's document shows an address that several users have.
//!
//! `users.email` is unique. Of the live users with the same newest address, the owner ([`kinsync_core::email::owner`]) shows
//! it, and the others carry an email conflict that names the owner. A write that may change an owner records the address in
//! [`Row::pending_emails`] in the same atomic step, so a [`Sweep`] finds it after a crash.
//!
//! A transfer has three steps, each safe to interrupt and to repeat: other documents stop showing the address; the owner's
//! document shows it; the pending marks are removed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kinsync_core::{Field, Micros, UserId, email};

use crate::{
    contention::{self, MAX_ROUNDS, pause},
    pending_checks::PendingChecks,
    store::{Error, Holder, Outcome, RefusedKeys, Row, Store},
};

/// Attempts with an address that is taken although no document shows it, before the address counts as refused. A concurrent
/// write explains a few such attempts; more mean that an index of the application treats two addresses as equal.
const MAX_HIDDEN: u32 = 8;

/// Concurrent links: each is a transaction.
const LINKS: usize = 4;

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
            conflicted.iter().filter_map(Row::claimed_email).map(Cow::into_owned).collect();
        let holders = store.email_holders(&Vec::from_iter(addresses)).await?;
        let recorded_holders: HashMap<String, Option<String>> =
            conflicted.iter().map(|row| (row.id.to_string(), row.metadata.email_held_by.clone())).collect();
        for mut row in conflicted {
            let Some(address) = row.claimed_email().map(Cow::into_owned) else { continue };
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
    Err(contention::error("resolve email addresses"))
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
        let (mut owners, mut hidden) = (BTreeMap::new(), Vec::new());
        for (address, ids) in self.claimants(addresses) {
            let rows = ids.iter().filter_map(|id| self.rows.get(id));
            let Some(owner) = email::owner(rows.map(|row| (&row.id, &row.state))).cloned() else { continue };
            let others = ids.iter().filter(|id| **id != owner);
            let others = others.filter_map(|id| self.with_holder(id, Some(owner.as_str())));
            hidden.extend(others.map(|row| (address.clone(), row)));
            owners.insert(address, owner);
        }
        self.request_checks(&owners, &hidden).await?;
        let outcomes = self.put(hidden).await?;
        let mut is_done = self.drop_failed(outcomes, &mut owners);
        if self.store.links_in_any_case() {
            is_done &= self.link(&mut owners).await?;
        }
        Ok(self.show(owners).await? && is_done)
    }

    /// Returns the claimants of each address.
    fn claimants(&self, addresses: &BTreeSet<String>) -> BTreeMap<String, Vec<UserId>> {
        let mut claimants: BTreeMap<String, Vec<UserId>> = BTreeMap::new();
        for row in self.rows.values() {
            let claimed = row.claimed_email().and_then(|claimed| addresses.get(&*claimed));
            if let Some(address) = claimed {
                claimants.entry(address.clone()).or_default().push(row.id.clone());
            }
        }
        claimants
    }

    /// Two users at Kinde cannot have one address, so an event of one of them was lost: a deletion or a change. Requested
    /// before the write, because a repetition after an interruption would find no new conflict.
    async fn request_checks(
        &self,
        owners: &BTreeMap<String, UserId>,
        hidden: &[(String, Row)],
    ) -> Result<(), Error> {
        let users: BTreeSet<UserId> =
            hidden.iter().flat_map(|(address, row)| [&owners[address], &row.id]).cloned().collect();
        if users.is_empty() {
            return Ok(());
        }
        PendingChecks::request(self.store, &Vec::from_iter(users)).await
    }

    /// Makes the documents of the owners show their addresses. If a document of the application shows one and cannot be
    /// linked, records an email conflict instead. Returns `false` if the caller has to reload the rows and repeat.
    async fn show(&mut self, owners: BTreeMap<String, UserId>) -> Result<bool, Error> {
        let mut is_done = true;
        let hidden = owners.into_iter().filter_map(|(address, owner)| {
            let row = self.decided(&address, self.with_holder(&owner, None)?);
            Some((address, row))
        });
        let hidden: Vec<(String, Row)> = hidden.collect();
        let addresses: Vec<String> = hidden.iter().map(|(address, _)| address.clone()).collect();
        let holders = self.store.email_holders(&addresses).await?;
        // Without a unique index the write would succeed although another document shows the address.
        let is_free = |(address, row): &(String, Row)| {
            holders.get(address).is_none_or(|holder| *holder == Holder::User(row.id.clone()))
        };
        let (free, taken): (Vec<_>, Vec<_>) = hidden.into_iter().partition(is_free);
        for (address, outcome) in self.put(free).await? {
            match outcome {
                Outcome::Written => {}
                Outcome::Stale => is_done = false,
                Outcome::EmailTaken => {
                    self.hidden.insert(address);
                    is_done = false;
                }
                Outcome::Failed(_) | Outcome::Refused(_) => _ = self.refused.insert(address),
            }
        }
        let mut of_application = BTreeMap::new();
        for (address, row) in taken {
            if self.belongs_to_application(&holders[&address], &address).await? {
                of_application.insert(address, row.id);
            } else {
                is_done = false;
            }
        }
        Ok(self.link_or_record(of_application, &holders).await? && is_done)
    }

    /// Links documents of the application that show addresses of owners, and records the conflicts with the others. Returns
    /// `false` if the caller has to repeat.
    async fn link_or_record(
        &mut self,
        mut owners: BTreeMap<String, UserId>,
        holders: &HashMap<String, Holder>,
    ) -> Result<bool, Error> {
        let is_done = self.link(&mut owners).await?;
        let conflict = |(address, owner): (&String, &UserId)| {
            let row = self.with_holder(owner, Some(holders[address].name()))?;
            Some((address.clone(), self.decided(address, row)))
        };
        let conflicts: Vec<(String, Row)> = owners.iter().filter_map(conflict).collect();
        let outcomes = self.put(conflicts).await?;
        Ok(self.drop_failed(outcomes, &mut owners) && is_done)
    }

    /// Records addresses with a refused write, and removes all addresses with a failed one. Returns `false` after a concurrent
    /// write; the repetition of a refused write would be refused again.
    fn drop_failed(
        &mut self,
        outcomes: HashMap<String, Outcome>,
        owners: &mut BTreeMap<String, UserId>,
    ) -> bool {
        let mut is_done = true;
        for (address, outcome) in outcomes.into_iter().filter(|(_, outcome)| *outcome != Outcome::Written) {
            owners.remove(&address);
            if outcome == Outcome::Stale {
                is_done = false;
            } else {
                self.refused.insert(address);
            }
        }
        is_done
    }

    /// Links documents of the application that show addresses of owners, if Kinde reported the addresses as verified, and
    /// removes these addresses. Returns `false` after a concurrent write.
    async fn link(&mut self, owners: &mut BTreeMap<String, UserId>) -> Result<bool, Error> {
        let verified = |(address, owner): (&String, &UserId)| {
            let row = self.rows.get(owner).filter(|row| row.state.has_verified_email())?;
            let row = self.with_holder(owner, None).unwrap_or_else(|| row.clone());
            Some((address.clone(), self.decided(address, row)))
        };
        let rows: Vec<(String, Row)> = owners.iter().filter_map(verified).collect();
        let store = self.store;
        let link = |(address, row): (String, Row)| async move {
            let outcome = store.link(&row).await?;
            Ok::<_, Error>((address, row, outcome))
        };
        let linked = stream::iter(rows).map(link).buffer_unordered(LINKS);
        let mut is_done = true;
        for (address, mut row, outcome) in linked.try_collect::<Vec<_>>().await? {
            match outcome {
                Outcome::Written => {
                    row.written();
                    self.rows.insert(row.id.clone(), row);
                    metrics::counter!("kinsync_users_linked_total").increment(1);
                }
                Outcome::Stale => is_done = false,
                Outcome::EmailTaken | Outcome::Failed(_) | Outcome::Refused(_) => continue,
            }
            owners.remove(&address);
        }
        Ok(is_done)
    }

    /// Returns whether the address in a document belongs to the application: kinsync has not written it, or has no observation
    /// of an address of that user. Returns `false` for a claimant that was not loaded yet, and for a document that should not
    /// show the address: that document is written again.
    async fn belongs_to_application(&self, holder: &Holder, address: &str) -> Result<bool, Error> {
        let Holder::User(holder) = holder else { return Ok(true) };
        // The load returns nothing for a document that kinsync never wrote.
        let row = self.store.load(std::slice::from_ref(holder)).await?.pop().flatten();
        let has_observations = |row: &Row| {
            !row.metadata.keeps_email && (row.state.value(Field::Email).is_some() || !row.state.is_live())
        };
        let Some(row) = row.filter(has_observations) else { return Ok(true) };
        if row.state.shown_email(&row.metadata).as_deref() == Some(address) {
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

    /// Returns the row without the mark of an address that this write decides.
    fn decided(&self, address: &str, mut row: Row) -> Row {
        row.pending_emails.remove(address);
        row.metadata.updated_at = self.now;
        row
    }

    /// Writes rows about addresses. Returns for each address `Written` if all its rows were written, else the first other
    /// outcome; `Stale` takes precedence, because a repetition can succeed.
    async fn put(&mut self, rows: Vec<(String, Row)>) -> Result<HashMap<String, Outcome>, Error> {
        let mut worst = HashMap::new();
        if rows.is_empty() {
            return Ok(worst);
        }
        let (addresses, rows): (Vec<String>, Vec<Row>) = rows.into_iter().unzip();
        let outcomes = self.store.write(&rows).await?;
        for ((address, mut row), outcome) in addresses.into_iter().zip(rows).zip(outcomes) {
            if outcome == Outcome::Written {
                row.written();
                self.rows.insert(row.id.clone(), row);
            }
            let known = worst.entry(address).or_insert(Outcome::Written);
            if *known == Outcome::Written || outcome == Outcome::Stale {
                *known = outcome;
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
