//! Who shows an address that several users have.
//!
//! `users.email` is unique, so of the live users whose newest email is one address, the owner
//! ([`kinsync_core::email::owner`]) shows it and the others carry a conflict that names the
//! owner. A write that may change an owner marks its row as `pending_emails` in the same atomic step, so
//! a crash before the settling is found by a [`Sweep`].
//!
//! An address changes hands in three steps, each safe to cut and to repeat: those who show it and
//! should not let go; the owner takes it; the marks are removed.

use std::collections::{BTreeSet, HashMap};

use kinsync_core::{Field, Micros, UserId, email};

use crate::{
    apply::{contention, pause},
    store::{Error, Holder, Outcome, Row, Store},
};

/// Rounds after which the rows are said to change too fast.
const MAX_ROUNDS: u32 = 64;

/// Times that an address is found taken, and nobody shows it, until that is no chance: an index of the application takes
/// another address for the same.
const MAX_HIDDEN: u32 = 8;

/// Rows taken by one sweep.
const SWEEP: usize = 1000;

/// Finds addresses that are not where they belong, again and again.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Where it goes on among those whose address another row holds.
    after: Option<UserId>,
}

impl Sweep {
    /// Settles what a crash, or an outage in the middle of [`crate::apply::apply`], left behind, and
    /// conflicts of which the holder is another one now: a row that kinsync did not make marks
    /// nothing when it lets go. Looks at some of them at a time. Answers how many rows it found.
    pub async fn run(&mut self, store: &dyn Store, now: Micros) -> Result<usize, Error> {
        let mut rows = store.pending_emails(SWEEP).await?;
        let held = store.conflicted(self.after.as_ref(), SWEEP).await?;
        // Few: the end. Rows that cannot be read are left out, so a full batch may have some less.
        self.after = held.last().filter(|_| held.len() > SWEEP / 2).map(|row| row.id.clone());
        let addresses: BTreeSet<String> =
            held.iter().filter_map(|row| row.state.claimed_email()).map(ToOwned::to_owned).collect();
        let holders = store.email_holders(&Vec::from_iter(addresses)).await?;
        let waits_for: HashMap<String, Option<String>> =
            held.iter().map(|row| (row.id.to_string(), row.metadata.email_held_by.clone())).collect();
        for mut row in held {
            let Some(address) = row.state.claimed_email().map(ToOwned::to_owned) else { continue };
            let holder = holders.get(&address).map(Holder::name);
            let named = row.metadata.email_held_by.as_deref();
            // Named is who should show the address, and who does is named there.
            let is_next_in_line =
                named.and_then(|named| waits_for.get(named)).is_some_and(|of| of.as_deref() == holder);
            if named != holder && !is_next_in_line {
                // Not written down: who is interrupted here finds it again.
                row.pending_emails.insert(address);
                rows.push(row);
            }
        }
        let found = rows.len();
        resolve(store, rows, now).await?;
        Ok(found)
    }
}

/// Settles the addresses that these rows mark. On `Err` the marks are still there. They also stay for an address that
/// an index or a validator of the application keeps from its owner: that blocks nobody, and a sweep tries it again.
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
                "an index or a validator of the application keeps addresses from their owners; they are tried again"
            );
            refused.append(&mut transfer.refused);
        }
        if is_done {
            let settled = addresses.difference(&refused).cloned().collect();
            marked = transfer.unmark(marked, &settled).await?;
        } else {
            marked = reload(store, &marked).await?;
        }
    }
    Err(contention())
}

/// The marked rows as they are now, those that are still marked. A mark that a sweep has not written down is gone: the
/// sweep finds it again when it comes round.
async fn reload(store: &dyn Store, rows: &[Row]) -> Result<Vec<Row>, Error> {
    let ids: Vec<UserId> = rows.iter().map(|row| row.id.clone()).collect();
    let rows = store.load(&ids).await?.into_iter().flatten();
    Ok(rows.filter(|row| !row.pending_emails.is_empty()).collect())
}

/// One try to bring some addresses to their owners.
struct Transfer<'a> {
    store: &'a dyn Store,
    now: Micros,
    /// The live claimants of the addresses, as they were loaded or as we wrote them since.
    rows: HashMap<UserId, Row>,
    /// Addresses of which the store will never take what should be written.
    refused: BTreeSet<String>,
    /// Addresses that are taken, and nobody shows them.
    hidden: BTreeSet<String>,
}

impl<'a> Transfer<'a> {
    async fn of(store: &'a dyn Store, addresses: &BTreeSet<String>, now: Micros) -> Result<Self, Error> {
        let addresses: Vec<String> = addresses.iter().cloned().collect();
        let claimants = store.claimants(&addresses).await?;
        let rows = claimants.into_iter().map(|row| (row.id.clone(), row)).collect();
        Ok(Self { store, now, rows, refused: BTreeSet::new(), hidden: BTreeSet::new() })
    }

    /// Lets the owner of each address show it, and nobody else. `false`: somebody wrote meanwhile.
    async fn run(&mut self, addresses: &BTreeSet<String>) -> Result<bool, Error> {
        let mut is_done = true;
        for address in addresses {
            let claimants: Vec<UserId> = self.claimants(address).map(|row| row.id.clone()).collect();
            let owner = email::owner(self.claimants(address).map(|row| (&row.id, &row.state))).cloned();
            let Some(owner) = owner else { continue };
            let others = claimants.iter().filter(|id| **id != owner);
            let let_go = others.filter_map(|id| self.metadata(id, Some(owner.as_str()))).collect();
            let is_free = match self.put(let_go).await? {
                Outcome::Written => self.take(&owner, address).await?,
                Outcome::Stale => false,
                Outcome::EmailTaken | Outcome::Rejected(_) => self.refuse(address),
            };
            if !is_free && !self.hidden.contains(address) {
                return Ok(false);
            }
            is_done &= is_free;
        }
        Ok(is_done)
    }

    fn claimants(&self, address: &str) -> impl Iterator<Item = &Row> {
        self.rows.values().filter(move |row| row.state.claimed_email() == Some(address))
    }

    /// The owner shows its address, unless a row that kinsync did not make shows it and cannot be
    /// linked.
    async fn take(&mut self, owner: &UserId, address: &str) -> Result<bool, Error> {
        let Some(shown) = self.metadata(owner, None) else { return Ok(true) };
        match self.put(vec![shown]).await? {
            Outcome::Written => return Ok(true),
            Outcome::EmailTaken => {}
            Outcome::Stale => return Ok(false),
            Outcome::Rejected(_) => return Ok(self.refuse(address)),
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
            Outcome::EmailTaken | Outcome::Rejected(_) => {}
        }
        let conflict = self.metadata(owner, Some(holder.name())).into_iter().collect();
        Ok(match self.put(conflict).await? {
            Outcome::Written => true,
            Outcome::Stale => false,
            Outcome::EmailTaken | Outcome::Rejected(_) => self.refuse(address),
        })
    }

    /// To do it again would be refused again: the others go on.
    fn refuse(&mut self, address: &str) -> bool {
        self.refused.insert(address.to_owned());
        true
    }

    /// Makes the row of the application that shows the owner's address the owner's, if Kinde says
    /// that the address is verified.
    async fn link(&mut self, owner: &UserId) -> Result<Outcome, Error> {
        let verified = self.rows.get(owner).filter(|row| row.state.has_verified_email());
        let shown = verified.and_then(|_| self.metadata(owner, None));
        let Some(mut row) = shown else { return Ok(Outcome::EmailTaken) };
        let outcome = self.store.link(&row).await?;
        if outcome == Outcome::Written {
            row.revision += 1;
            self.rows.insert(row.id.clone(), row);
            metrics::counter!("kinsync_users_linked_total").increment(1);
        }
        Ok(outcome)
    }

    /// Whether a document with a Kinde id that shows the address is left as it is: the application
    /// wrote it there for a user of whose address kinsync was told nothing. Not one of a user who
    /// only was not loaded as a claimant yet; and not one that kinsync wrote without the address:
    /// that is written again.
    async fn belongs_to_application(&self, holder: &UserId, address: &str) -> Result<bool, Error> {
        // Not loaded: kinsync never wrote it.
        let row = self.store.load(std::slice::from_ref(holder)).await?.pop().flatten();
        let has_observations = |row: &Row| row.state.value(Field::Email).is_some() || !row.state.is_live();
        let Some(row) = row.filter(has_observations) else { return Ok(true) };
        if row.state.shown_email(&row.metadata) == Some(address) {
            return Ok(false);
        }
        let outcomes = self.store.write(&[row]).await?;
        Ok(outcomes.iter().any(|outcome| matches!(outcome, Outcome::Rejected(_))))
    }

    /// The row with this metadata towards its address: shown (`None`), or held by someone else.
    /// `None` when it stands so already.
    fn metadata(&self, id: &UserId, held_by: Option<&str>) -> Option<Row> {
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

    /// Writes the rows. `Written` when all of them were, else what kept one from it: that somebody else wrote before all
    /// else, since that will pass.
    async fn put(&mut self, rows: Vec<Row>) -> Result<Outcome, Error> {
        if rows.is_empty() {
            return Ok(Outcome::Written);
        }
        let mut worst = Outcome::Written;
        let outcomes = self.store.write(&rows).await?;
        for (mut row, outcome) in rows.into_iter().zip(outcomes) {
            if outcome == Outcome::Written {
                row.revision += 1;
                self.rows.insert(row.id.clone(), row);
            } else if worst == Outcome::Written || outcome == Outcome::Stale {
                worst = outcome;
            }
        }
        Ok(worst)
    }

    /// Removes the marks of addresses that are settled. Answers the rows that somebody else wrote
    /// meanwhile and that are still marked: a mark made since then is not ours to remove.
    async fn unmark(&self, marked: Vec<Row>, settled: &BTreeSet<String>) -> Result<Vec<Row>, Error> {
        let newest = marked.into_iter().map(|row| self.rows.get(&row.id).cloned().unwrap_or(row));
        let cleared: Vec<Row> = newest.filter_map(|row| without_marks(row, settled)).collect();
        if cleared.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = self.store.write(&cleared).await?;
        // A mark that the store never lets be removed is found by each sweep, and keeps nobody from anything.
        let lost = cleared.into_iter().zip(outcomes).filter(|(_, outcome)| *outcome == Outcome::Stale);
        let lost: Vec<Row> = lost.map(|(row, _)| row).collect();
        if lost.is_empty() { Ok(lost) } else { reload(self.store, &lost).await }
    }
}

/// The row without these marks, or `None` when it carries none of them.
fn without_marks(mut row: Row, settled: &BTreeSet<String>) -> Option<Row> {
    let before = row.pending_emails.len();
    row.pending_emails.retain(|address| !settled.contains(address));
    (row.pending_emails.len() < before).then_some(row)
}
