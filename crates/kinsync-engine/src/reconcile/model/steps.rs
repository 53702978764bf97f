//! The steps of the processes of the model.

use kinsync_core::{Directory, Observation, Source, UserState, Version, What};

use super::{
    FIELDS, History, NOW,
    explore::{Effect, Label, Memos, Shared},
    id,
    world::{Response, Scan, Step, World, Writer},
};
use crate::{
    apply::{ComparedRows, join_into},
    reconcile::{compare::Comparison, deletions::may_be_absent, scan::Scanned},
    scan_watermark::{Recheck, ScanNumber, ScanWatermark, ScanWatermarks},
    store::Row,
};

/// No revision of a row of the model.
const OUTDATED: i64 = -1;

/// Which of the real functions a remembered result is of.
#[derive(Clone, Copy, Hash)]
enum Call {
    Event,
    Classify,
    Page,
    Read,
    Begin,
    Announce,
    Prove,
}

/// Adds the successors of a state.
pub(super) struct Steps<'a> {
    pub(super) history: &'a History,
    pub(super) memos: &'a Memos,
    pub(super) from: &'a World,
    pub(super) to: &'a mut Vec<(Label, World)>,
}

impl Steps<'_> {
    fn add(&mut self, label: Label, step: impl FnOnce(&mut World)) {
        let mut world = *self.from;
        world.may_change = false;
        step(&mut world);
        world.sort_writers();
        self.to.push((label, world));
    }

    pub(super) fn all(mut self) {
        self.kinde();
        for n in 0..self.history.writers {
            self.writer(n);
        }
        self.scan();
        self.checker();
    }

    fn kinde(&mut self) {
        let n = self.from.changes;
        if !self.from.may_change || n == self.history.changes.len() {
            return;
        }
        let user = self.history.changes[n].0;
        self.add(("change without an event", n), |world| {
            world.may_change = true;
            world.changes += 1;
            world.lost[user] = world.changes;
        });
        for copies in 1..=1 + self.from.duplicates {
            let label = if copies == 1 { "change with an event" } else { "change with a repeated event" };
            self.add((label, n), |world| {
                world.may_change = true;
                world.changes += 1;
                world.queued[n] = copies;
                world.duplicates -= copies - 1;
            });
        }
    }

    fn writer(&mut self, n: usize) {
        let writer = self.from.writers[n];
        // The writers are alike.
        if n > 0 && writer == self.from.writers[0] {
            return;
        }
        let Writer::HasLoaded { change, next, must_validate } = writer else {
            for change in 0..self.from.changes {
                if self.from.queued[change] > 0 {
                    self.load(n, change);
                }
            }
            return;
        };
        let (history, memos, user) = (self.history, self.memos, self.history.changes[change].0);
        self.add(("writer writes and validates event", change), |world| {
            world.writers[n] = Writer::Idle;
            world.write(history, user, next);
            let is_stale = || classify(history, &world.watermarks, &next, change);
            if must_validate && memos.stale.get((Call::Classify, change, next, world.watermarks), is_stale) {
                world.request(user);
            }
        });
        if self.from.kills > 0 {
            self.add(("writer writes and is killed with event", change), |world| {
                world.writers[n] = Writer::Idle;
                world.write(history, user, next);
                world.queued[change] += 1;
                world.kills -= 1;
            });
        }
    }

    /// Loads the row and the watermarks, and requests a check if the event is stale.
    fn load(&mut self, n: usize, change: usize) {
        let (history, user) = (self.history, self.history.changes[change].0);
        let (row, watermarks) = (self.from.rows[user], self.from.watermarks);
        let joined = self.memos.effects.get((Call::Event, change, row, watermarks), || {
            joined(&row, vec![history.event(change)], &watermarks, None)
        });
        self.add(("writer loads the row for event", change), |world| {
            world.queued[change] -= 1;
            if joined.is_recheck {
                world.request(user);
            }
            if let Some(next) = joined.next {
                world.writers[n] = Writer::HasLoaded { change, next, must_validate: joined.is_recheck };
            }
        });
    }

    fn scan(&mut self) {
        match self.from.scan.step {
            Step::NotStarted => {
                let begun = self.recorded((Call::Begin, 0), |watermarks| _ = watermarks.begin());
                self.add(("scan starts", 0), |world| {
                    world.record(begun);
                    world.scan.number = begun.comparison;
                    world.scan.step = Step::Next(0);
                });
            }
            Step::Next(user) if user < 2 => self.fetch(user),
            Step::Next(_) => self.pass(),
            Step::HasLoaded { response, comparison, row, is_current } => {
                self.repair(response, comparison, row, is_current);
            }
            Step::Read(response) => {
                let read = self.read(response);
                let history = self.history;
                self.add(("scan decides about user", response.user), |world| {
                    decide(world, history, response, read);
                    world.scan.step = Step::Next(2);
                });
            }
            Step::Ended => {}
        }
    }

    /// Returns the record of the scans after this change.
    fn recorded(
        &self,
        arguments: impl std::hash::Hash,
        change: impl FnOnce(&mut ScanWatermarks),
    ) -> Shared<ScanWatermarks> {
        self.memos.records.get((arguments, self.from.watermarks), || {
            let mut watermarks = (*self.from.watermarks).clone();
            change(&mut watermarks);
            Shared::new(watermarks)
        })
    }

    /// Fetches the page of one user, which the list may leave out, announces the comparison and loads the row.
    fn fetch(&mut self, user: usize) {
        let (history, scan) = (self.history, ScanNumber(self.from.scan.number));
        for response in self.from.pages(user) {
            let first = move |world: &mut World| {
                world.may_change = true;
                world.scan.first.get_or_insert((response.at, response.changes));
            };
            self.add(("scan fetches a page without user", user), |world| {
                first(world);
                world.scan.step = Step::Next(user + 1);
            });
            if history.truth(user, response.changes).is_some() {
                let announced = self.recorded((Call::Announce, response), |scans| {
                    scans.compare(scan, response.at, response.not_after());
                });
                self.add(("scan fetches user", user), |world| {
                    first(world);
                    world.record(announced);
                    let (comparison, row) = (announced.comparison, world.rows[user]);
                    world.scan.last_comparison = comparison;
                    world.scan.listed[user] = Some(history.newest_of(user, response.changes));
                    world.scan.step = Step::HasLoaded { response, comparison, row, is_current: true };
                });
            }
        }
    }

    /// Writes the repair and the mark of the loaded row; into a newer row only the repair.
    fn repair(&mut self, response: Response, comparison: i64, row: Shared<Row>, is_current: bool) {
        let (history, user, world) = (self.history, response.user, self.from);
        let arguments =
            (Call::Page, response, comparison, row, is_current, world.rows[user], world.watermarks);
        let repaired = self.memos.effects.get(arguments, || {
            let stored = Some(&*row).filter(|row| row.revision > 0);
            let seen = response.read(history).expect("listed users exist");
            let found = seen.compare(stored);
            let is_too_recent = stored.is_some_and(|row| seen.lead(row).is_some());
            let is_marked = !is_too_recent && found.is_to_be_marked(stored);
            let revision = if is_current { row.revision } else { OUTDATED };
            let revisions = is_marked.then(|| (id(user), revision)).into_iter().collect();
            let compared = ComparedRows { scan: ScanNumber(world.scan.number), comparison, revisions };
            let repairs = match found {
                Comparison::Differs(_, repairs) => repairs,
                _ => Vec::new(),
            };
            let joined = joined(&world.rows[user], repairs, &world.watermarks, Some(&compared));
            Effect { is_recheck: joined.is_recheck || is_too_recent, is_decided: !is_too_recent, ..joined }
        });
        self.add(("scan writes user", user), |world| {
            if repaired.is_recheck {
                world.request(user);
            }
            if let Some(next) = repaired.next {
                world.write(history, user, next);
            }
            world.scan.is_unproven[user] |= !repaired.is_decided;
            world.scan.step = Step::Next(user + 1);
        });
    }

    /// Reads a live user that is not listed; when there is none left, records the proof.
    fn pass(&mut self) {
        let scan = &self.from.scan;
        let unlisted = (0..2).find(|user| scan.listed[*user].is_none() && !scan.passed[*user]);
        let Some(user) = unlisted else { return self.prove() };
        let row = &self.from.rows[user];
        if row.revision == 0 || !row.state.is_live() {
            return self.add(("scan passes user", user), |world| world.scan.passed[user] = true);
        }
        let (at, _) = scan.first.expect("a page was fetched");
        let scanned = Scanned { sent: Some((at, at)), number: scan.number, ..Scanned::default() };
        let leave = |world: &mut World| {
            world.scan.is_unproven[user] = true;
            world.scan.passed[user] = true;
        };
        if !may_be_absent(row, &scanned) {
            return self.add(("scan leaves user", user), leave);
        }
        let response = self.from.response(user);
        self.add(("scan reads user", user), |world| {
            leave(world);
            world.may_change = true;
            world.scan.step = Step::Read(response);
        });
    }

    fn prove(&mut self) {
        let (history, scan) = (self.history, self.from.scan);
        let ((at, changes), last_comparison) =
            (scan.first.expect("a page was fetched"), scan.last_comparison);
        let unproven = (0..2).filter(|user| scan.is_unproven[*user]).map(id).collect();
        let proof = ScanWatermark { at, last_comparison, fields: FIELDS.to_vec(), unproven };
        let arguments = (Call::Prove, at, last_comparison, scan.is_unproven);
        let proved = self.recorded(arguments, |watermarks| _ = watermarks.prove(&proof));
        self.add(("scan proves", 0), |world| {
            world.record(proved);
            if proved.proof.as_ref() == Some(&proof) {
                world.proved = scan.listed;
            }
            for user in 0..2 {
                // A list that was compared at all shows that a user does not exist.
                let is_absent = last_comparison > 0 && history.truth(user, changes).is_none();
                let compared = scan.listed[user].or(Some(changes).filter(|_| is_absent));
                if let Some(changes) = compared.filter(|_| !scan.is_unproven[user]) {
                    world.compared(user, changes);
                }
            }
            world.scan = Scan { step: Step::Ended, ..Scan::default() };
        });
    }

    fn checker(&mut self) {
        let history = self.history;
        let Some((response, _)) = self.from.checker else {
            for user in (0..2).filter(|user| self.from.checks[*user]) {
                let response = self.from.response(user);
                self.add(("check reads user", user), |world| {
                    world.may_change = true;
                    world.checker = Some((response, false));
                });
            }
            return;
        };
        let read = self.read(response);
        self.add(("check decides about user", response.user), |world| {
            decide(world, history, response, read);
            let is_again = world.checker.is_some_and(|(_, is_again)| is_again);
            // What could not be ordered is checked again.
            world.checks[response.user] = is_again || !read.is_decided;
            world.checker = None;
        });
    }

    /// Compares a single read with the row.
    fn read(&self, response: Response) -> Effect {
        let (row, watermarks) = (self.from.rows[response.user], self.from.watermarks);
        self.memos.effects.get((Call::Read, response, row, watermarks), || {
            let (observations, is_decided) = differences(self.history, response, &row);
            let differs = !observations.is_empty();
            if !differs {
                return Effect { next: None, is_recheck: false, is_decided, differs };
            }
            Effect { is_decided, differs, ..joined(&row, observations, &watermarks, None) }
        })
    }
}

/// Joins observations into a row.
fn joined(
    row: &Row,
    observations: Vec<Observation>,
    watermarks: &ScanWatermarks,
    compared: Option<&ComparedRows>,
) -> Effect {
    let (next, recheck) = join_into(row, observations, NOW, (watermarks, compared), Directory::default());
    let next = next.map(|next| Shared::new(Row { revision: 1, ..next }));
    Effect { next, is_recheck: recheck > Recheck::No, is_decided: true, differs: true }
}

/// Returns whether a written event is stale by these watermarks.
fn classify(history: &History, watermarks: &ScanWatermarks, row: &Row, change: usize) -> bool {
    let delta = UserState::of(&history.event(change));
    watermarks.classify(row, &delta, None, NOW).recheck > Recheck::No
}

/// Returns the observations of a single read that change the row, and whether the read decides.
fn differences(history: &History, response: Response, row: &Row) -> (Vec<Observation>, bool) {
    let stored = Some(row).filter(|row| row.revision > 0);
    if let Some(seen) = response.read(history) {
        let is_decided = stored.is_none_or(|row| seen.lead(row).is_none());
        return match seen.compare(stored) {
            Comparison::Differs(_, repairs) => (repairs, is_decided),
            _ => (Vec::new(), is_decided),
        };
    }
    let newest = row.state.fields.values().map(|register| register.version.at).max();
    let is_absent = row.state.is_live() && newest < Some(response.at);
    let version = Version::snapshot(response.at, "gone");
    let (user, what) = (id(response.user), What::Deleted);
    let deletion = Observation { user, version, source: Source::Reconcile, what };
    let is_decided = is_absent || stored.is_none_or(|row| !row.state.is_live());
    (Some(deletion).filter(|_| is_absent && stored.is_some()).into_iter().collect(), is_decided)
}

/// Writes the difference that a single read found.
fn decide(world: &mut World, history: &History, response: Response, read: Effect) {
    let user = response.user;
    if read.is_recheck {
        world.request(user);
    }
    if let Some(next) = read.next {
        world.write(history, user, next);
    }
    // A read that finds the user equal leaves no trace: the next late event is applied as before it.
    if read.is_decided && read.differs {
        world.compared(user, response.changes);
    }
}
