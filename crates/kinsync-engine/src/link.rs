//! Links existing documents of an application to Kinde users, and reports why others cannot be linked.
//!
//! [`crate::email_ownership`] links a document automatically as soon as Kinde reports the address as verified. This module
//! checks all documents at once: as a dry run before linking is enabled, and for users that kinsync stored before linking
//! was enabled. [`Store::link`] alone decides whether a document is written.
//!
//! Addresses are compared byte by byte, unless the settings let linking ignore case. A document with an address that differs
//! from a user's in case or surrounding white space only is reported with that user.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kinsync_core::{Micros, UserId, email};
use serde::Serialize;

use crate::store::{
    DocumentKey, Error, Outcome, Row, Store,
    mongo::{KeptKey, KeptTally, MongoStore},
};

/// Documents per read.
const PAGE: usize = 1000;

/// Concurrent links: each is a transaction.
const LINKS: usize = 4;

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
    /// The address differs from the user's in case or in surrounding white space.
    OtherForm,
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
            Self::OtherForm => {
                "correct the address in your document or at Kinde; where only the case differs, \
                 `link_by_email = \"verified-ignore-case\"` links them"
            }
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
    /// Documents among them with an address that no Kinde user has in any form.
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

/// The documents with one address, and the user that they match.
struct Match<'a> {
    address: String,
    documents: BTreeSet<String>,
    user: &'a Row,
    verdict: Verdict,
}

async fn link_page(
    store: &MongoStore,
    now: Micros,
    run: Run,
    rows: BTreeMap<String, BTreeSet<String>>,
    report: &mut LinkReport,
) -> Result<(), Error> {
    let addresses: Vec<String> = rows.keys().cloned().collect();
    let claimants = store.similar_claimants(&addresses).await?;
    let in_any_case = store.count_unlinked_in_any_case(&addresses).await?;
    let claimants = Claimants::of(&claimants);
    let mut matches = Vec::new();
    for (address, documents) in rows {
        let in_any_case = in_any_case.as_ref().filter(|_| claimants.is_of_one_user(&address));
        let count = in_any_case.and_then(|counts| counts.get(&address.to_ascii_lowercase()));
        let count = count.copied().unwrap_or(documents.len());
        match claimants.matching(&address, in_any_case.is_some()) {
            Some((user, verdict)) => {
                let is_ambiguous = verdict == Verdict::Linked && count > 1;
                let verdict = if is_ambiguous { Verdict::SeveralRows } else { verdict };
                matches.push(Match { address, documents, user, verdict });
            }
            None => report.unlinked += documents.len() as u64,
        }
    }
    judge(store, &mut matches).await?;
    let linkable: Vec<(&str, &Row)> = linkable(&matches).map(|one| (&*one.address, one.user)).collect();
    let mut kept = store.kept_if_linked(&linkable).await?;
    if run == Run::Link {
        let links = linkable.iter().map(|(_, row)| link_one(store, (*row).clone(), now));
        let linked: HashMap<UserId, Verdict> =
            stream::iter(links).buffer_unordered(LINKS).try_collect().await?;
        for one in &mut matches {
            one.verdict = linked.get(&one.user.id).copied().unwrap_or(one.verdict);
        }
    }
    let candidates = matches.into_iter().map(|Match { documents, user, verdict, .. }| {
        let row = documents.into_iter().next().unwrap_or_default();
        let kept = kept.remove(&user.id).unwrap_or_default();
        Candidate { row, user: user.id.clone(), verdict, kept }
    });
    report.candidates.extend(candidates);
    Ok(())
}

fn linkable<'a>(matches: &'a [Match<'a>]) -> impl Iterator<Item = &'a Match<'a>> {
    matches.iter().filter(|one| one.verdict == Verdict::Linked)
}

/// Excludes users with own documents that contain fields of the application.
async fn judge(store: &MongoStore, matches: &mut [Match<'_>]) -> Result<(), Error> {
    let users: Vec<UserId> = linkable(matches).map(|one| one.user.id.clone()).collect();
    let with_fields = store.with_fields_of_the_application(&users).await?;
    for one in matches.iter_mut().filter(|one| one.verdict == Verdict::Linked) {
        if with_fields.contains(&one.user.id) {
            one.verdict = Verdict::FieldsInBoth;
        }
    }
    Ok(())
}

/// Live users by address.
struct Claimants<'a> {
    exact: HashMap<String, Vec<&'a Row>>,
    /// By the address in lower case, without surrounding white space.
    similar: HashMap<String, Vec<&'a Row>>,
}

impl<'a> Claimants<'a> {
    fn of(rows: &'a [Row]) -> Self {
        let (mut exact, mut similar) = (HashMap::new(), HashMap::new());
        for row in rows {
            let Some(address) = row.claimed_email() else { continue };
            similar.entry(email::folded(&address)).or_insert_with(Vec::new).push(row);
            exact.entry(address.into_owned()).or_insert_with(Vec::new).push(row);
        }
        Self { exact, similar }
    }

    /// Returns whether one user has the address, in any form.
    fn is_of_one_user(&self, address: &str) -> bool {
        self.similar.get(&email::folded(address)).is_some_and(|rows| rows.len() == 1)
    }

    /// Returns the user that documents with this address match, and whether they can be linked as far as the addresses show.
    fn matching(&self, address: &str, links_in_any_case: bool) -> Option<(&'a Row, Verdict)> {
        let owner = |rows: &[&'a Row]| {
            let id = email::owner(rows.iter().map(|row| (&row.id, &row.state)))?;
            rows.iter().copied().find(|row| row.id == *id)
        };
        let verified = |row: &'a Row| {
            let is_verified = row.state.has_verified_email();
            (row, if is_verified { Verdict::Linked } else { Verdict::NotVerified })
        };
        if let Some(rows) = self.exact.get(address) {
            return owner(rows).map(verified);
        }
        let rows = self.similar.get(&email::folded(address))?;
        match rows.as_slice() {
            [row] if links_in_any_case && is_in_another_case(row, address) => Some(verified(row)),
            rows => owner(rows).map(|row| (row, Verdict::OtherForm)),
        }
    }
}

fn is_in_another_case(row: &Row, address: &str) -> bool {
    row.state.claimed_email().is_some_and(|claimed| claimed.eq_ignore_ascii_case(address))
}

async fn link_one(store: &MongoStore, mut owner: Row, now: Micros) -> Result<(UserId, Verdict), Error> {
    owner.metadata.holds_email = true;
    owner.metadata.email_held_by = None;
    owner.metadata.updated_at = now;
    let is_linked = store.link(&owner).await? == Outcome::Written;
    Ok((owner.id, if is_linked { Verdict::Linked } else { Verdict::Refused }))
}
