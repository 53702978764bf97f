//! The number of users that may be deleted because Kinde no longer has them, per 24 hours and without an operator.
//!
//! Scans and checks of single users draw on one record in the store, each under its lease. Wrong answers of Kinde can
//! therefore delete no more users in many small rounds than in one scan.
//!
//! Times are those of Kinde's responses, bounded by the local clock: a local clock that is ahead frees nothing, and an
//! entry that is later than a response counts until the clocks have passed it by 24 hours.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA256, digest};
use kinsync_core::{Micros, UserId};
use serde::{Deserialize, Serialize};

use crate::{
    state_records::{self, Key, Term},
    store::{self, Store},
};

pub(super) const KEY: Key =
    Key::new("reconcile.deletions", "as many users may be deleted again as in the last 24 hours");

/// Record of the removals of memberships and roles by organization, and of permissions of roles.
pub(super) const REMOVALS: Key = Key::new(
    "reconcile.removals",
    "as many members may lose their membership or a role again as in the last 24 hours",
);

/// Removals in an organization that are allowed although they are more than half of its members.
const FEW: u64 = 5;

/// Hours that an entry counts. One more than a day: an entry may be from the end of its hour.
const HOURS: i64 = 25;

const MICROS_PER_HOUR: i64 = 3_600_000_000;

/// Limits of deletions without an operator's approval, per 24 hours.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Thresholds {
    /// Number of deletions.
    pub count: usize,
    /// Share of the live users, 0 to 1.
    pub share: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { count: 20, share: 0.05 }
    }
}

impl Thresholds {
    /// Returns how many deletions are allowed: as many as the larger limit, and at most half of the live users.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of users is a number of users, and need not be exact"
    )]
    fn most(self, live: u64) -> u64 {
        let by_share = (self.share * live as f64) as u64;
        by_share.max(self.count as u64).min(live / 2)
    }
}

/// Value of the record.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Deletions {
    /// Deletions by the hour of Kinde's clock.
    hours: BTreeMap<i64, u64>,
    /// Hashes of the users of the newest draw. A crash may have prevented their deletion, so they can be drawn again.
    newest: BTreeSet<u64>,
}

impl Deletions {
    /// Returns the deletions in the 24 hours before this instant. Later entries count.
    fn before(&self, now: Micros) -> u64 {
        self.hours.iter().filter(|(hour, _)| !is_over(**hour, now)).map(|(_, users)| users).sum()
    }

    /// Adds a draw if no more than `most` result. Returns whether it was added.
    fn draw(&mut self, users: &BTreeSet<u64>, most: u64, now: Micros) -> bool {
        let new = users.difference(&self.newest).count() as u64;
        if new == 0 {
            return true;
        }
        if self.before(now).saturating_add(new) > most {
            return false;
        }
        self.hours.retain(|hour, _| !is_over(*hour, now));
        *self.hours.entry(now.0.div_euclid(MICROS_PER_HOUR)).or_default() += new;
        self.newest.clone_from(users);
        true
    }
}

fn is_over(hour: i64, now: Micros) -> bool {
    hour.saturating_add(HOURS) <= now.0.div_euclid(MICROS_PER_HOUR)
}

/// What a run may delete.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// Deletions in 24 hours.
    most: u64,
    /// The record when the run began.
    known: Deletions,
    /// Deletions in the last 24 hours.
    spent: u64,
}

impl Budget {
    /// Reads what is left of a budget for this number of live users. Users deleted before do not count, so that a draw that was
    /// not carried out counts no user twice.
    pub(super) async fn load(
        store: &dyn Store,
        thresholds: Thresholds,
        live: u64,
        now: Micros,
    ) -> Result<Self, store::Error> {
        let known: Deletions = state_records::load(store, &KEY).await?;
        let spent = known.before(now);
        Ok(Self { most: thresholds.most(live), known, spent })
    }

    /// Returns whether `count` deletions, `users` among them, are more than what is left.
    pub(super) fn is_exceeded_by<'a>(&self, count: usize, users: impl Iterator<Item = &'a UserId>) -> bool {
        let again = users.filter(|user| self.known.newest.contains(&hash(user))).count();
        let new = count.saturating_sub(again) as u64;
        new > 0 && self.spent.saturating_add(new) > self.most
    }

    /// Draws deletions before they are carried out. Returns `None` under an outdated lease, and `false` if fewer are left;
    /// none is drawn then. A repetition with the same users draws nothing more.
    pub(super) async fn draw<'a>(
        &self,
        store: &dyn Store,
        term: Term,
        users: impl Iterator<Item = &'a UserId>,
        now: Micros,
    ) -> Result<Option<bool>, store::Error> {
        let users: BTreeSet<u64> = users.map(hash).collect();
        let draw = |deletions: &mut Deletions| deletions.draw(&users, self.most, now);
        state_records::change_under(store, &KEY, term, draw).await
    }
}

/// How many of some objects, such as the members of one organization, a scan may remove.
#[derive(Clone, Debug)]
pub(super) struct RemovalBudget<'a> {
    /// Name of the objects in the record.
    pub(super) of: &'a str,
    /// Number of the objects.
    pub(super) count: u64,
    pub(super) thresholds: Thresholds,
}

impl RemovalBudget<'_> {
    /// Returns how many removals are allowed in 24 hours.
    pub(super) fn most(&self) -> u64 {
        // Few members often leave together, and a second read confirms it.
        self.thresholds.most(self.count).max(FEW.min(self.thresholds.count as u64))
    }

    /// Draws removals before they are carried out; without a term it only compares. Returns `None` under an outdated lease, and
    /// `false` if fewer are left; none is drawn then. A repetition of the newest draw draws nothing more.
    pub(super) async fn draw(
        &self,
        store: &dyn Store,
        term: Option<Term>,
        removals: &BTreeSet<u64>,
        now: Micros,
    ) -> Result<Option<bool>, store::Error> {
        let draw = |all: &mut BTreeMap<String, Deletions>| {
            all.retain(|_, drawn| drawn.hours.keys().any(|hour| !is_over(*hour, now)));
            all.entry(self.of.to_owned()).or_default().draw(removals, self.most(), now)
        };
        match term {
            Some(term) => state_records::change_under(store, &REMOVALS, term, draw).await,
            None => Ok(Some(draw(&mut state_records::load(store, &REMOVALS).await?))),
        }
    }
}

/// Refuses draws under an older lease from here on, and returns `false` if a process has
/// a newer one.
pub(super) async fn seal(store: &dyn Store, term: Term) -> Result<bool, store::Error> {
    let sealed = state_records::change_under(store, &KEY, term, |_: &mut Deletions| ());
    Ok(sealed.await?.is_some())
}

/// Returns the first eight bytes of the SHA-256 of the id. Stable across versions, because it is stored.
pub(super) fn hash(user: &UserId) -> u64 {
    hash_of(user.as_str())
}

/// Returns the hash of a removal, such as that of a user from an organization.
pub(super) fn hash_of_removal(what: &str, from: &str) -> u64 {
    hash_of(&format!("{what} {from}"))
}

fn hash_of(text: &str) -> u64 {
    let digest = digest(&SHA256, text.as_bytes());
    digest.as_ref()[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::EmbeddedStore;

    #[test]
    fn the_larger_limit_counts_and_never_more_than_half() {
        let thresholds = Thresholds::default();
        for (live, most) in [(0, 0), (1, 0), (2, 1), (21, 10), (40, 20), (100, 20), (400, 20), (1000, 50)] {
            assert_eq!(thresholds.most(live), most, "of {live}");
        }
        assert_eq!(Thresholds { count: 0, share: 1.0 }.most(10), 5);
    }

    fn users(from: usize, until: usize) -> Vec<UserId> {
        (from..until).filter_map(|n| UserId::parse(&format!("kp_{n}")).ok()).collect()
    }

    /// Draws at this hour, of at most 20.
    async fn draw(store: &EmbeddedStore, term: u64, users: &[UserId], hour: i64) -> Option<bool> {
        let budget = Budget { most: 20, known: Deletions::default(), spent: 0 };
        let drawn = budget.draw(store, Term(term), users.iter(), Micros(hour * MICROS_PER_HOUR)).await;
        drawn.expect("the store answers")
    }

    fn store() -> (tempfile::TempDir, EmbeddedStore) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = EmbeddedStore::open(dir.path()).expect("an empty folder opens");
        (dir, store)
    }

    #[tokio::test]
    async fn deletions_are_free_again_after_24_hours_and_no_clock_frees_them_earlier() {
        let (_dir, store) = store();
        let mut from = 0;
        // The hour, the number of users, and whether they may be deleted. A clock that is behind frees nothing.
        for (hour, count, is_free) in [
            (1000, 12, true),
            (1010, 8, true),
            (1010, 1, false),
            (400, 1, false),
            (1020, 1, false),
            (1024, 1, false),
            (1025, 12, true),
            (1034, 1, false),
            (1035, 8, true),
        ] {
            let drawn = draw(&store, 1, &users(from, from + count), hour).await;
            assert_eq!(drawn, Some(is_free), "{count} at hour {hour}");
            from += count;
        }
    }

    #[tokio::test]
    async fn the_users_of_the_newest_draw_are_drawn_once() {
        let (_dir, store) = store();
        for _ in 0..3 {
            assert_eq!(draw(&store, 1, &users(0, 15), 0).await, Some(true));
        }
        assert_eq!(draw(&store, 1, &users(0, 21), 0).await, Some(false));
        assert_eq!(draw(&store, 1, &users(5, 20), 0).await, Some(true));
        assert_eq!(draw(&store, 1, &users(20, 21), 0).await, Some(false));
    }

    #[tokio::test]
    async fn an_older_lease_draws_nothing() {
        let (_dir, store) = store();
        assert_eq!(draw(&store, 1, &users(0, 1), 0).await, Some(true));
        assert!(seal(&store, Term(2)).await.expect("the store answers"));
        assert_eq!(draw(&store, 1, &users(0, 1), 0).await, None, "not even what it has drawn before");
        assert!(!seal(&store, Term(1)).await.expect("the store answers"));
        assert_eq!(draw(&store, 2, &users(1, 20), 0).await, Some(true), "nothing else was drawn");
    }
}
