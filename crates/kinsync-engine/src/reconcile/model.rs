//! A model of convergence, explored in full: every interleaving of the steps of two writers, a scan and a checker with the
//! changes at Kinde. The model calls the real join, classifier, comparison and marks of rows; only Kinde, the store and the
//! order of the steps are modelled.
//!
//! Bounds: two users; two changes at Kinde, each with an event that is lost or late and, after a kill, repeated; two writers,
//! each of which loads, requests a check, writes with compare-and-set and validates; one scan of two pages;
//! a list that leaves out any user; a page of the first user with a time before the newest change
//! that it contains; checks of single users; one kill of a writer between its write and its validation, and a kill of the
//! scan at any step: a killed scan is one without a further step, and nothing that must hold waits for it.
//!
//! Steps that commute with all others are not separate, and a copy of an event is queued at once.
//!
//! Properties, in every state:
//! - a proof covers only rows that its scan compared, and would restore only values of that comparison;
//! - a deleted user stays deleted, and no user is deleted that exists at Kinde;
//! - a suspended user stays suspended until Kinde has ended the suspension;
//! - when nothing is in flight, a user is stored as Kinde has it, unless an event was lost, and neither a scan compared the
//!   user afterwards nor a single read repaired it.

use std::{
    collections::HashSet,
    fmt::Write as _,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

use kinsync_core::{
    Field, Micros, Observation, Profile, RowMetadata, Source, UserId, UserState, Value, Version, What,
};

use self::steps::{Label, Steps};
use super::compare::RemoteUser;
use crate::{
    scan_watermark::{Comparisons, ScanNumber, ScanWatermark, ScanWatermarks},
    store::Row,
};

mod steps;

/// The part of a row that a step can change.
impl Hash for Row {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (&self.id, &self.state, &self.metadata, self.revision, &self.pending_emails).hash(hasher);
    }
}

/// A value that many states share, with its hash: most steps change none of them.
#[derive(Debug)]
struct Shared<T> {
    value: Arc<T>,
    hash: u64,
}

impl<T: Hash> Shared<T> {
    fn new(value: T) -> Self {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&value);
        Self { value: Arc::new(value), hash }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), hash: self.hash }
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl<T> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

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

/// A response of Kinde about one user.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Response {
    user: usize,
    /// Changes that it contains.
    changes: usize,
    at: Micros,
}

impl Response {
    fn not_after(self) -> Micros {
        time(self.changes, 90)
    }

    fn read(self, history: &History) -> Option<RemoteUser> {
        let profile = history.truth(self.user, self.changes)?.profile();
        Some(RemoteUser::of(id(self.user), profile, self.at, self.not_after()))
    }
}

/// A process that applies events.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
enum Writer {
    #[default]
    Idle,
    /// The row and the watermarks are loaded, and a check is requested if the event is stale.
    HasLoaded { change: usize, next: Shared<Row>, known: i64, is_stale: bool },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
enum Step {
    #[default]
    NotStarted,
    /// Fetches the page of this user; after the last user it reads what is not listed.
    Next(usize),
    /// A page is fetched and announced, and the row of its user is loaded.
    HasLoaded {
        response: Response,
        comparison: i64,
        row: Shared<Row>,
    },
    /// Read a user that is not listed.
    Read(Response),
    Ended,
}

/// A scan: a page for each user, single reads of the users that are not listed, a proof.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Scan {
    step: Step,
    number: i64,
    last_comparison: i64,
    /// Time of the first page, and the changes that it could contain.
    first: Option<(Micros, usize)>,
    /// Changes that the list contained, for each listed user.
    listed: [Option<usize>; 2],
    is_unproven: [bool; 2],
    passed: [bool; 2],
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    changes: usize,
    /// Whether a change at Kinde is explored now. It commutes with every step that does not read Kinde, so it follows the
    /// start, a read or a change.
    may_change: bool,
    /// Copies of each event that are queued, and whether it was sent.
    queued: [u8; 3],
    is_sent: [bool; 3],
    rows: [Shared<Row>; 2],
    watermarks: Shared<ScanWatermarks>,
    checks: [bool; 2],
    writers: [Writer; 2],
    scans: [Scan; 1],
    /// The response of a running check, and whether the check was requested again.
    checker: Option<(Response, bool)>,
    kills: u8,
    duplicates: u8,
    /// Changes that the newest comparison of each user contained, by a check or by a scan with a proof.
    compared: [usize; 2],
    /// Changes that the scan with the proof listed for each user.
    proved: [Option<usize>; 2],
}

impl World {
    fn new(history: &History) -> Self {
        let watermarks = ScanWatermarks {
            comparison: 1,
            newest: Some(Comparisons { scan: ScanNumber(1), from: Micros(-1_000), until: Micros(-900) }),
            proof: Some(ScanWatermark {
                at: Micros(-1_000),
                last_comparison: 1,
                fields: FIELDS.to_vec(),
                unproven: [].into(),
            }),
        };
        let stored = |n: usize, user: Remote| {
            let (version, what) = (Version::event(Micros(-500), "created"), What::Fields(user.profile()));
            let created = Observation { user: id(n), version, source: Source::Webhook, what };
            let metadata = RowMetadata { compared_since: Some(1), ..RowMetadata::default() };
            Row { state: UserState::of(&created), metadata, revision: 1, ..Row::unknown(id(n)) }
        };
        Self {
            changes: 0,
            may_change: true,
            queued: [0; 3],
            is_sent: [false; 3],
            rows: [0, 1].map(|n| {
                Shared::new(history.before[n].map_or_else(|| Row::unknown(id(n)), |user| stored(n, user)))
            }),
            watermarks: Shared::new(watermarks),
            checks: [false; 2],
            writers: Default::default(),
            scans: Default::default(),
            checker: None,
            kills: history.kills,
            duplicates: history.duplicates,
            compared: [0; 2],
            proved: [0, 1].map(|n| history.before[n].map(|_| 0)),
        }
    }

    fn request(&mut self, user: usize) {
        self.checks[user] = true;
        if let Some((response, is_again)) = &mut self.checker {
            *is_again |= response.user == user;
        }
    }

    /// Writes a row with compare-and-set.
    fn write(&mut self, user: usize, next: &Row) -> bool {
        let is_current = self.rows[user].revision == next.revision;
        if is_current {
            self.rows[user] = Shared::new(Row { revision: next.revision + 1, ..next.clone() });
        }
        is_current
    }

    /// Changes the record of the scans.
    fn record<T>(&mut self, change: impl FnOnce(&mut ScanWatermarks) -> T) -> T {
        let mut watermarks = (*self.watermarks).clone();
        let done = change(&mut watermarks);
        self.watermarks = Shared::new(watermarks);
        done
    }

    /// Returns Kinde's response about a user.
    fn response(&self, user: usize) -> Response {
        Response { user, changes: self.changes, at: time(self.changes, 50) }
    }

    /// Returns Kinde's responses in a page: with the right time and, for the first user, with one before its newest change.
    fn pages(&self, user: usize) -> Vec<Response> {
        let response = self.response(user);
        let early = Response { at: Micros(response.at.0 - 100), ..response };
        if user == 0 { vec![response, early] } else { vec![response] }
    }
}

/// Returns the property that this state violates.
fn violation(history: &History, before: &World, world: &World) -> Option<String> {
    for n in 0..2 {
        let (row, truth) = (&world.rows[n], history.truth(n, world.changes));
        if !before.rows[n].state.is_live() && row.state.is_live() {
            return Some(format!("user {n} is live again"));
        }
        if !row.state.is_live() && truth.is_some() {
            return Some(format!("user {n} is deleted and exists at Kinde"));
        }
        if is_undone(history, before, world, n) {
            return Some(format!("the suspension of user {n} is undone"));
        }
        let is_same = (row, &world.watermarks) == (&before.rows[n], &before.watermarks);
        if let Some(problem) = (!is_same).then(|| unproved(history, world, n)).flatten() {
            return Some(format!("user {n}: {problem}"));
        }
        if let Some(problem) = is_quiet(world).then(|| untrue(history, world, n)).flatten() {
            return Some(format!("user {n}: {problem}"));
        }
    }
    None
}

/// Returns whether a shown suspension disappeared although Kinde has not ended it.
fn is_undone(history: &History, before: &World, world: &World, user: usize) -> bool {
    let is_shown = |world: &World| {
        let state = &world.rows[user].state;
        state.is_live() && state.value(Field::IsSuspended) == Some(&Value::Flag(true))
    };
    let is_suspended = |changes: &usize| history.truth(user, *changes).is_some_and(|user| user.is_suspended);
    let mut until_now = 0..=world.changes;
    let was_ended =
        until_now.find(is_suspended).is_some() && until_now.any(|changes| !is_suspended(&changes));
    is_shown(before) && !is_shown(world) && world.rows[user].state.is_live() && !was_ended
}

/// Returns what the proof would claim without a comparison.
fn unproved(history: &History, world: &World, user: usize) -> Option<String> {
    let (proof, row) = (world.watermarks.proof.as_ref()?, &world.rows[user]);
    if row.revision == 0 || !row.state.is_live() || !proof.covers(row) {
        return None;
    }
    let Some(changes) = world.proved[user] else { return Some("covered and not compared".into()) };
    let compared = history.truth(user, changes)?.profile();
    let is_wrong = |field: &Field| {
        row.state.fields.get(field).is_some_and(|register| {
            register.version.at < proof.at && Some(&register.value) != compared.value(*field)
        })
    };
    FIELDS
        .iter()
        .find(|field| is_wrong(field))
        .map(|field| format!("{field:?} is covered with another value"))
}

fn is_quiet(world: &World) -> bool {
    world.queued == [0; 3]
        && world.checks == [false; 2]
        && world.checker.is_none()
        && world.writers.iter().all(|writer| *writer == Writer::Idle)
}

/// Returns how the stored user differs from Kinde's, if it must not.
fn untrue(history: &History, world: &World, user: usize) -> Option<String> {
    let of_user = |change: &usize| history.changes[*change].0 == user;
    let is_lost = |change: usize| !world.is_sent[change] && change >= world.compared[user];
    if (0..world.changes).filter(of_user).any(is_lost) {
        return None;
    }
    let row = &world.rows[user];
    let Some(truth) = history.truth(user, world.changes) else {
        return (row.revision > 0 && row.state.is_live()).then(|| "deleted at Kinde and live".into());
    };
    let profile = truth.profile();
    let is_wrong = |field: &Field| row.state.value(*field) != profile.value(*field);
    let wrong: Vec<&Field> = FIELDS.iter().filter(|field| is_wrong(field)).collect();
    (!wrong.is_empty()).then(|| format!("{wrong:?} differ from Kinde's: {:?}", row.state.fields))
}

/// Explores every reachable state. Panics with the steps to a violation.
fn explore(history: &History) {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut known: HashSet<u64> = HashSet::new();
    let mut steps: Vec<(usize, Label)> = vec![(0, ("start", 0, 0))];
    let start = World::new(history);
    known.insert(hasher.hash_one(&start));
    let mut frontier = vec![(0, start)];
    while let Some((at, world)) = frontier.pop() {
        for (label, next) in (Steps { history, from: &world, to: Vec::new() }).all() {
            if !known.insert(hasher.hash_one(&next)) {
                continue;
            }
            steps.push((at, label));
            if let Some(problem) = violation(history, &world, &next) {
                panic!("{problem}{}", path(&steps));
            }
            frontier.push((steps.len() - 1, next));
        }
    }
    eprintln!("{} states of {history:?}", known.len());
}

fn path(steps: &[(usize, Label)]) -> String {
    let (mut at, mut labels) = (steps.len() - 1, Vec::new());
    while at > 0 {
        labels.push(steps[at].1);
        at = steps[at].0;
    }
    labels.iter().rev().fold(String::new(), |mut text, label| {
        _ = write!(text, "\n  {label:?}");
        text
    })
}

const ADA: Option<Remote> = Some(user("Ada", false));
const EVE: Option<Remote> = Some(user("Eve", false));

/// A history with one scan and one kill.
const fn history(before: [Option<Remote>; 2], changes: &'static [(usize, Option<Remote>)]) -> History {
    History { before, changes, writers: 2, kills: 1, duplicates: 0 }
}

#[test]
fn a_value_that_changes_and_changes_back_is_shown_as_kinde_has_it() {
    explore(&history([ADA, EVE], &[(0, EVE), (0, ADA)]));
}

const SUSPENDED: Option<Remote> = Some(user("Ada", true));
const SUSPENDED_EVE: Option<Remote> = Some(user("Eve", true));

#[test]
fn a_suspension_is_never_undone() {
    explore(&history([ADA, EVE], &[(0, SUSPENDED), (0, SUSPENDED_EVE)]));
}

#[test]
#[ignore = "takes minutes: `.ci/nightly` runs it"]
fn three_events_about_two_users_converge() {
    let three = history([ADA, EVE], &[(0, SUSPENDED), (1, ADA), (0, SUSPENDED_EVE)]);
    explore(&History { writers: 1, ..three });
}

#[test]
fn a_deleted_user_stays_deleted_and_no_other_user_is_deleted() {
    explore(&history([ADA, EVE], &[(0, EVE), (0, None)]));
}
