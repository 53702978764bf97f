//! What a scan found.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use kinsync_core::{Field, Memberships, Micros, UserId};
use tokio::time::Instant;

use crate::{reconcile::record::Tally, scan_watermark, store::Row};

/// Maximum removals per scan, made or held. The next scan finds the rest.
const MOST: usize = 100_000;
/// Maximum organizations of which the codes are kept. With more of them no list of organizations is a proof.
const MOST_ORGANIZATIONS: usize = 10_000;
/// Longest wait until reads can order what a scan could not order. A longer one shows a wrong clock, and there is none.
const LONGEST_LEAD: Duration = Duration::from_secs(10);
/// Resolution of the time of a response.
const DATE_RESOLUTION: Duration = Duration::from_secs(1);
/// Maximum second reads of deleted users per scan. The next scan handles the rest.
pub(super) const MAX_SECOND_READS: usize = 1000;

/// Result of a scan.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct Scanned {
    pub(in crate::reconcile) tally: Tally,
    /// Hashes of the users that were listed.
    pub(in crate::reconcile) listed: Vec<u64>,
    /// Request times of the first and last page, by Kinde's clock.
    pub(in crate::reconcile) sent: Option<(Micros, Micros)>,
    /// Fields present in every user.
    pub(in crate::reconcile) fields: Option<Vec<Field>>,
    /// Users deleted in the store that need a second read.
    pub(in crate::reconcile) second_reads: Vec<UserId>,
    /// Users with a difference from the time of the scan, which cannot be ordered.
    pub(in crate::reconcile) too_recent: TooRecent,
    /// Users with a difference that was not repaired.
    pub(in crate::reconcile) unproven: BTreeSet<UserId>,
    /// Number of the scan.
    pub(in crate::reconcile) number: i64,
    /// Number of the last comparison.
    pub(in crate::reconcile) last_comparison: i64,
    /// Ids of some listed users.
    pub(in crate::reconcile) canaries: Vec<String>,
    /// Memberships that the list lacks.
    pub(in crate::reconcile) removals: Removals,
    /// Hashes of held deletions and removals.
    pub(in crate::reconcile) held: HashSet<u64>,
    /// Codes of the organizations that pages name.
    pub(in crate::reconcile) organizations: HashSet<String>,
    /// Whether each page of all users was looked at. A resumed backfill does not know the earlier ones.
    pub(in crate::reconcile) has_all_pages: bool,
}

impl Scanned {
    pub(super) fn add(&mut self, tally: Tally, fields: Option<Vec<Field>>) {
        self.tally.merge(tally);
        self.fields = match (self.fields.take(), fields) {
            (Some(mut known), Some(fields)) => {
                known.retain(|field| fields.contains(field));
                Some(known)
            }
            (known, fields) => known.or(fields),
        };
    }

    pub(super) fn add_organizations(&mut self, codes: HashSet<String>) {
        if self.organizations.len() <= MOST_ORGANIZATIONS {
            self.organizations.extend(codes);
        }
    }

    /// Returns an organization that a page names and a list lacks, or another reason why the list may lack one.
    pub(in crate::reconcile) fn not_in(&self, listed: &HashSet<String>) -> Option<String> {
        if !self.has_all_pages {
            return Some("the scan resumed at a checkpoint, so the earlier pages are missing".to_owned());
        }
        if self.organizations.len() > MOST_ORGANIZATIONS {
            return Some(format!("users are in more than {MOST_ORGANIZATIONS} organizations"));
        }
        let named = self.organizations.difference(listed).next()?;
        Some(format!("a page of users names organization {named:?}, which the list lacks"))
    }
}

/// Users with a difference that cannot be ordered, because the stored value is from the time of the scan.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct TooRecent {
    pub(in crate::reconcile) users: Vec<UserId>,
    /// Time from which a read can order the differences.
    pub(in crate::reconcile) not_before: Option<Instant>,
}

impl TooRecent {
    pub(super) fn add(&mut self, user: UserId, lead: Duration) {
        self.users.push(user);
        let wait = if lead <= LONGEST_LEAD { lead + DATE_RESOLUTION } else { Duration::ZERO };
        self.not_before = self.not_before.max(Some(Instant::now() + wait));
    }

    pub(super) fn merge(&mut self, mut other: Self) {
        self.users.append(&mut other.users);
        self.users.truncate(MAX_SECOND_READS);
        self.not_before = self.not_before.max(other.not_before);
    }
}

/// Memberships that the list of users lacks, by organization.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct Removals {
    pub(in crate::reconcile) lost: BTreeMap<String, Vec<(UserId, Micros)>>,
    /// Number of entries of `lost`.
    count: usize,
    /// Stored members of each organization.
    members: HashMap<String, u64>,
}

impl Removals {
    /// Adds memberships that a list of this time lacks.
    pub(in crate::reconcile) fn add(&mut self, user: &UserId, codes: Vec<String>, at: Micros) {
        for code in codes.into_iter().take(MOST.saturating_sub(self.count)) {
            self.lost.entry(code).or_default().push((user.clone(), at));
            self.count += 1;
        }
    }

    /// Counts the stored memberships of a listed user.
    pub(in crate::reconcile) fn count_members(&mut self, row: Option<&Row>) {
        let codes = row.and_then(|row| row.state.memberships()).into_iter().flat_map(Memberships::codes);
        for code in codes {
            *self.members.entry(code).or_default() += 1;
        }
    }

    /// Returns the users without one of their memberships.
    pub(in crate::reconcile) fn users(&self) -> impl Iterator<Item = UserId> + '_ {
        self.lost.values().flatten().map(|(user, _)| user.clone()).take(scan_watermark::MAX_UNPROVEN + 1)
    }

    pub(in crate::reconcile) fn merge(&mut self, other: Self) {
        for (code, lost) in other.lost {
            let room = MOST.saturating_sub(self.count);
            self.count += lost.len().min(room);
            self.lost.entry(code).or_default().extend(lost.into_iter().take(room));
        }
        for (code, members) in other.members {
            *self.members.entry(code).or_default() += members;
        }
    }

    /// Returns the stored members of an organization.
    pub(in crate::reconcile) fn members_of(&self, code: &str) -> u64 {
        self.members.get(code).copied().unwrap_or_default()
    }
}
