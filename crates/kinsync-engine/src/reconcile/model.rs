//! A model of convergence, explored in full: every interleaving of the steps of two writers, a scan and a checker with the
//! changes at Kinde. The model calls the real join, classifier, comparison and marks of rows; only Kinde, the store and the
//! order of the steps are modelled.
//!
//! Bounds: two users; three changes at Kinde, each with an event that is lost or late and, after a kill, repeated, and in one
//! history one event that Kinde sends twice; two writers, each of which loads, requests a check, writes with compare-and-set
//! and validates; one scan of two pages; a list that leaves out any user; a page of the first user with a time before the
//! newest change that it contains; checks of single users; one kill of a writer between its write and its validation, and a
//! kill of the scan at any step: a killed scan is one without a further step, and nothing that must hold waits for it.
//!
//! Properties, in every state:
//! - a proof covers only rows that its scan compared, and would restore only values of that comparison;
//! - a deleted user stays deleted, and no user is deleted that exists at Kinde;
//! - a suspended user stays suspended until Kinde has ended the suspension;
//! - when nothing is in flight, a user is stored as Kinde has it, unless an event was lost, and neither a scan compared the
//!   user afterwards nor a single read repaired it.
//!
//! What is not explored, because it adds no behaviour:
//! - A change at Kinde commutes with every step that does not read Kinde. It follows the start, a read or a change.
//! - A refused compare-and-set changes nothing, and its event is queued again. It is queued as soon as the row changes: the
//!   writer can then take every step that it could take after the refusal, and no property depends on when that is. So no
//!   more of a revision is kept than whether a loaded row is still the stored one.
//! - The two writers are alike and are sorted. The users are not: their histories differ, and the scan has an order.
//! - Of the newest comparison that a writer knows, only whether another one followed is used; of a lost event, only the
//!   newest one that nothing has repaired; of a list, only the newest change of each user in it.
//!
//! Time: a debug build explores half a million states per core and second. The real code runs once for each combination of
//! a row, a record of scans and an event or a response, and its results are kept. Of a state that was explored only
//! a hash of 64 bits is kept: among five million, two have one hash in one of a million explorations.

use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, Version, What};

use self::explore::explore;

pub(super) mod explore;
mod properties;
mod steps;
mod world;

/// Later than every instant of the model.
const NOW: Micros = Micros(1_000_000);

const FIELDS: [Field; 2] = [Field::FirstName, Field::IsSuspended];

/// A user at Kinde.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Remote {
    name: &'static str,
    is_suspended: bool,
}

impl Remote {
    fn profile(self) -> Profile {
        Profile::new().with(Field::FirstName, self.name).with(Field::IsSuspended, self.is_suspended)
    }
}

const fn user(name: &'static str, is_suspended: bool) -> Remote {
    Remote { name, is_suspended }
}

/// What is explored: the users before, and the changes in order, each with the user after it.
#[derive(Clone, Copy, Debug)]
struct History {
    before: [Option<Remote>; 2],
    changes: &'static [(usize, Option<Remote>)],
    writers: usize,
    kills: u8,
    duplicates: u8,
}

impl History {
    /// Returns the user after this many changes.
    fn truth(&self, user: usize, changes: usize) -> Option<Remote> {
        let last = self.changes[..changes].iter().rfind(|(changed, _)| *changed == user);
        last.map_or(self.before[user], |(_, after)| *after)
    }

    /// Returns the number of changes until the newest one of this user among this many.
    fn newest_of(&self, user: usize, changes: usize) -> usize {
        self.changes[..changes].iter().rposition(|(changed, _)| *changed == user).map_or(0, |n| n + 1)
    }

    fn event(&self, change: usize) -> Observation {
        let (user, after) = self.changes[change];
        Observation {
            user: id(user),
            version: Version::event(time(change + 1, 0), format!("event_{change}")),
            source: Source::Webhook,
            what: after.map_or(What::Deleted, |after| What::Fields(after.profile())),
        }
    }
}

fn id(user: usize) -> UserId {
    UserId::parse(["kp_a", "kp_b"][user]).expect("an id")
}

/// Returns a time after this many changes: a change happens at each hundred.
fn time(changes: usize, rest: i64) -> Micros {
    Micros(100 * i64::try_from(changes).expect("few changes") + rest)
}

const ADA: Option<Remote> = Some(user("Ada", false));
const EVE: Option<Remote> = Some(user("Eve", false));
const SUSPENDED: Option<Remote> = Some(user("Ada", true));
const SUSPENDED_EVE: Option<Remote> = Some(user("Eve", true));

/// A history with two writers, one scan and one kill.
const fn history(before: [Option<Remote>; 2], changes: &'static [(usize, Option<Remote>)]) -> History {
    History { before, changes, writers: 2, kills: 1, duplicates: 0 }
}

/// Explores a history. Fewer states than `at_least` show that the model no longer explores what it did.
fn check(history: &History, at_least: usize) {
    let states = explore(history);
    assert!(states >= at_least, "{states} states of {history:?}");
}

#[test]
fn a_value_that_changes_and_changes_back_is_shown_as_kinde_has_it() {
    check(&history([ADA, EVE], &[(0, EVE), (0, ADA), (1, None)]), 860_000);
}

#[test]
fn a_suspension_is_never_undone() {
    check(&history([ADA, EVE], &[(0, SUSPENDED), (1, ADA), (0, SUSPENDED_EVE)]), 4_600_000);
}

#[test]
fn a_suspension_that_kinde_ends_is_ended() {
    check(&history([ADA, EVE], &[(0, SUSPENDED), (0, ADA), (1, ADA)]), 2_700_000);
}

#[test]
fn a_deleted_user_stays_deleted_and_no_other_user_is_deleted() {
    let history = history([ADA, EVE], &[(0, EVE), (1, None), (0, None)]);
    check(&History { duplicates: 1, ..history }, 1_300_000);
}

#[test]
fn a_new_user_is_stored_and_deleted() {
    check(&history([None, EVE], &[(0, ADA), (1, ADA), (0, None)]), 3_300_000);
}

#[test]
#[ignore = "takes minutes: `.ci/nightly` runs it"]
fn four_changes_of_two_users_converge() {
    let four = history([ADA, EVE], &[(0, SUSPENDED), (1, ADA), (0, SUSPENDED_EVE), (1, None)]);
    check(&History { writers: 1, ..four }, 20_000_000);
}

#[test]
#[ignore = "takes minutes: `.ci/nightly` runs it"]
fn two_kills_and_a_repeated_event_change_nothing() {
    let three = history([ADA, EVE], &[(0, SUSPENDED), (0, ADA), (1, None)]);
    check(&History { kills: 2, duplicates: 1, ..three }, 6_000_000);
}
