//! Links existing documents of an application to Kinde users, and reports why others cannot be linked.
//!
//! [`crate::email_ownership`] links a document automatically as soon as Kinde reports the address as verified. This module
//! checks all documents at once: as a dry run before linking is enabled, and for users that kinsync stored before linking
//! was enabled. [`Store::link`] alone decides whether a document is written.
//!
//! Addresses are compared byte by byte: `Ada@x.org` is not `ada@x.org`.

use std::collections::{BTreeMap, BTreeSet};

use kinsync_core::{Micros, UserId, email};
use serde::Serialize;

use crate::store::{
    DocumentKey, Error, Outcome, Row, Store,
    mongo::{KeptKey, KeptTally, MongoStore},
};

/// Documents per read.
const PAGE: usize = 1000;

/// An existing document with the email address of a Kinde user.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// `_id` of the document; the smallest one if several documents have the address.
    pub row: String,
    /// The user that owns the address.
    pub user: UserId,
    /// Outcome for the document.
    pub verdict: Verdict,
    /// Keys of kinsync under which the document keeps a value of the application.
    pub kept: Vec<DocumentKey>,
}

/// Outcome for an existing document.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The document was linked to the user; in a dry run, it can be linked.
    Linked,
    /// Kinde has not reported the address as verified.
    NotVerified,
    /// Several documents of the application have the address.
    SeveralRows,
    /// Both documents contain fields of the application.
    FieldsInBoth,
    /// The document changed meanwhile, or linking is disabled.
    Refused,
}

impl Verdict {
    /// Returns the next step for an operator.
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::Linked => "nothing to do",
            Self::NotVerified => {
                "the user verifies the address at Kinde, then signs in or requests /api/profile"
            }
            Self::SeveralRows => "merge the documents, or remove the address from all but one",
            Self::FieldsInBoth => "move the fields of the application into one of the two documents",
            Self::Refused => "run `kinsync link` again; check `link_by_email` in `kinsync config show`",
        }
    }
}

/// Result of [`link()`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkReport {
    /// Documents of the application with an email address and without a Kinde id.
    pub rows: u64,
    /// Documents among them with an address that no Kinde user has.
    pub unlinked: u64,
    /// The other documents, one candidate per address.
    pub candidates: Vec<Candidate>,
    /// Values of the application that stay in these documents, by key of kinsync.
    pub kept: Vec<KeptKey>,
}

/// Checks every document without a Kinde id, and links those that can be linked unless `run` is dry. Calls `progress` after
/// each page. Cancel safe, and safe to repeat.
///
/// # Errors
/// Fails when the store fails. Documents linked before the failure stay linked.
pub async fn link(
    store: &MongoStore,
    now: Micros,
    run: Run,
    progress: &(dyn Fn(&LinkReport) + Sync),
) -> Result<LinkReport, Error> {
    let mut report = LinkReport::default();
    let mut tally = KeptTally::default();
    let mut after = String::new();
    loop {
        let mut page = store.unlinked(&after, PAGE).await?;
        let Some(last) = page.last().map(|row| row.email.clone()) else {
            report.kept = store.with_paths(tally);
            return Ok(report);
        };
        // The next page may contain more documents with the last address.
        if page.len() == PAGE && page[0].email != last {
            page.retain(|row| row.email != last);
        }
        after = page.last().map(|row| row.email.clone()).unwrap_or(last);
        report.rows += page.len() as u64;
        let mut rows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in page {
            rows.entry(row.email).or_default().insert(row.id);
        }
        let linkable = report.candidates.len();
        link_page(store, now, run, rows, &mut report).await?;
        for candidate in report.candidates[linkable..].iter().filter(|one| one.verdict == Verdict::Linked) {
            tally.add(&candidate.row, candidate.kept.iter().copied());
        }
        progress(&report);
    }
}

/// Mode of [`link()`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Run {
    /// Reports, and writes nothing.
    Dry,
    /// Links what can be linked.
    Link,
}

async fn link_page(
    store: &MongoStore,
    now: Micros,
    run: Run,
    rows: BTreeMap<String, BTreeSet<String>>,
    report: &mut LinkReport,
) -> Result<(), Error> {
    let addresses: Vec<String> = rows.keys().cloned().collect();
    let claimants = store.claimants(&addresses).await?;
    let owner_of = |address: &str| {
        let of_address = claimants.iter().filter(|row| row.claimed_email() == Some(address));
        let owner = email::owner(of_address.map(|row| (&row.id, &row.state)));
        owner.and_then(|id| claimants.iter().find(|row| row.id == *id))
    };
    let owners: Vec<&Row> = addresses.iter().filter_map(|address| owner_of(address)).collect();
    let mut kept = store.kept_if_linked(&owners).await?;
    for (address, ids) in rows {
        let Some(owner) = owner_of(&address) else {
            report.unlinked += ids.len() as u64;
            continue;
        };
        let mut verdict = verdict(store, owner, ids.len()).await?;
        if verdict == Verdict::Linked && run == Run::Link {
            verdict = link_one(store, owner.clone(), now).await?;
        }
        let row = ids.into_iter().next().unwrap_or_default();
        let kept = kept.remove(&owner.id).unwrap_or_default();
        report.candidates.push(Candidate { row, user: owner.id.clone(), verdict, kept });
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

async fn link_one(store: &MongoStore, mut owner: Row, now: Micros) -> Result<Verdict, Error> {
    owner.metadata.holds_email = true;
    owner.metadata.email_held_by = None;
    owner.metadata.updated_at = now;
    let is_linked = store.link(&owner).await? == Outcome::Written;
    Ok(if is_linked { Verdict::Linked } else { Verdict::Refused })
}
