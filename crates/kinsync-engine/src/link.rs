//! Which rows of an application become users', and why the others do not.
//!
//! [`crate::settle`] adopts a row by itself as soon as Kinde says that the address is verified.
//! This looks at all rows at once, for the operator who wants to know before, and for rows whose
//! user was told of before adoption was on. The decision to write is [`Store::link`]'s alone.
//!
//! An address is compared as it is written: `Ada@x.org` is not `ada@x.org`.

use std::collections::{BTreeMap, BTreeSet};

use kinsync_core::{Micros, UserId, email};
use serde::Serialize;

use crate::store::{Error, Outcome, Row, Store, mongo::MongoStore};

/// Rows read at once.
const PAGE: usize = 1000;

/// One row of the application that shows the address of a user at Kinde.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// The `_id` of the application's row; the smallest one when there are several.
    pub row: String,
    /// The user whose address it shows.
    pub user: UserId,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// What becomes of a row of the application.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It becomes the user's; in a dry run: it would.
    Linked,
    /// Kinde has not said that the address is verified.
    NotVerified,
    /// Several rows of the application show the address.
    SeveralRows,
    /// The application has fields of its own in both documents.
    FieldsInBoth,
    /// It changed meanwhile, or adoption is off.
    Refused,
}

impl Verdict {
    /// What an operator can do.
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::Linked => "nothing to do",
            Self::NotVerified => {
                "the user signs in, or asks /api/profile, after verifying the address at Kinde"
            }
            Self::SeveralRows => "merge the rows, or remove the address from all but one",
            Self::FieldsInBoth => {
                "move your fields from the user's document to your row, or the other way round"
            }
            Self::Refused => "run it again; see `adopt_by_email` in `kinsync config show`",
        }
    }
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkReport {
    /// Rows of the application that show an address.
    pub rows: u64,
    /// Of those: nobody at Kinde has the address.
    pub unlinked: u64,
    /// The others.
    pub candidates: Vec<Candidate>,
}

/// Looks at every row that has no Kinde id, and adopts what may be linked unless this is a dry
/// run. Told after each page how many rows were seen. Safe to cut and to repeat.
pub async fn link(
    store: &MongoStore,
    now: Micros,
    run: Run,
    progress: &(dyn Fn(&LinkReport) + Sync),
) -> Result<LinkReport, Error> {
    let mut found = LinkReport::default();
    let mut after = String::new();
    loop {
        let mut page = store.unlinked(&after, PAGE).await?;
        let Some(last) = page.last().map(|row| row.email.clone()) else { return Ok(found) };
        // The rows of the last address may go on in the next page.
        if page.len() == PAGE && page[0].email != last {
            page.retain(|row| row.email != last);
        }
        after = page.last().map(|row| row.email.clone()).unwrap_or(last);
        found.rows += page.len() as u64;
        let mut rows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in page {
            rows.entry(row.email).or_default().insert(row.id);
        }
        judge(store, now, run, rows, &mut found).await?;
        progress(&found);
    }
}

/// Whether anything is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Run {
    /// Only looks.
    Dry,
    /// Adopts what may be linked.
    Link,
}

async fn judge(
    store: &MongoStore,
    now: Micros,
    run: Run,
    rows: BTreeMap<String, BTreeSet<String>>,
    found: &mut LinkReport,
) -> Result<(), Error> {
    let addresses: Vec<String> = rows.keys().cloned().collect();
    let claimants = store.claimants(&addresses).await?;
    for (address, ids) in rows {
        let of_address = claimants.iter().filter(|row| row.state.claimed_email() == Some(&address));
        let owner = email::owner(of_address.map(|row| (&row.id, &row.state)));
        let owner = owner.and_then(|id| claimants.iter().find(|row| row.id == *id));
        let Some(owner) = owner else {
            found.unlinked += ids.len() as u64;
            continue;
        };
        let mut verdict = verdict(store, owner, ids.len()).await?;
        if verdict == Verdict::Linked && run == Run::Link {
            verdict = take(store, owner.clone(), now).await?;
        }
        let row = ids.into_iter().next().unwrap_or_default();
        found.candidates.push(Candidate { row, user: owner.id.clone(), verdict });
    }
    Ok(())
}

async fn verdict(store: &MongoStore, owner: &Row, rows: usize) -> Result<Verdict, Error> {
    Ok(match () {
        () if !owner.state.has_verified_email() => Verdict::NotVerified,
        () if rows > 1 => Verdict::SeveralRows,
        () if store.has_fields_of_the_application(owner).await? => Verdict::FieldsInBoth,
        () => Verdict::Linked,
    })
}

async fn take(store: &MongoStore, mut owner: Row, now: Micros) -> Result<Verdict, Error> {
    owner.metadata.holds_email = true;
    owner.metadata.email_held_by = None;
    owner.metadata.updated_at = now;
    let taken = store.link(&owner).await? == Outcome::Written;
    Ok(if taken { Verdict::Linked } else { Verdict::Refused })
}
