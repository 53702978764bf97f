//! The steps of the processes of the model.

use kinsync_core::{Observation, Source, UserState, Version, What};

use super::{FIELDS, History, NOW, Response, Scan, Shared, Step, World, Writer, id};
use crate::{
    apply::{ComparedRows, join_into},
    reconcile::{compare::Comparison, deletions::may_be_absent, scan::Scanned},
    scan_watermark::{Recheck, ScanNumber, ScanWatermark, ScanWatermarks},
    store::Row,
};

/// A step: what happens, and the numbers of the process and of the event or the user.
pub(super) type Label = (&'static str, usize, usize);

/// The successors of a state.
pub(super) struct Steps<'a> {
    pub(super) history: &'a History,
    pub(super) from: &'a World,
    pub(super) to: Vec<(Label, World)>,
}

impl Steps<'_> {
    fn add(&mut self, label: Label, step: impl FnOnce(&mut World)) {
        let mut world = self.from.clone();
        world.may_change = false;
        step(&mut world);
        self.to.push((label, world));
    }

    pub(super) fn all(mut self) -> Vec<(Label, World)> {
        self.kinde();
        for n in 0..self.history.writers {
            self.writer(n);
        }
        self.scan(0);
        self.checker();
        self.to
    }

    fn kinde(&mut self) {
        let n = self.from.changes;
        if self.from.may_change && n < self.history.changes.len() {
            self.add(("change without an event", n, 0), |world| {
                world.may_change = true;
                world.changes += 1;
            });
            for copies in 1..=1 + self.from.duplicates {
                self.add(("change with events", n, usize::from(copies)), |world| {
                    world.may_change = true;
                    world.changes += 1;
                    world.queued[n] = copies;
                    world.duplicates -= copies - 1;
                    world.is_sent[n] = true;
                });
            }
        }
    }

    fn writer(&mut self, n: usize) {
        let history = self.history;
        match self.from.writers[n].clone() {
            // The writers are alike.
            Writer::Idle if n == 1 && self.from.writers[0] == Writer::Idle => {}
            Writer::Idle => {
                for change in 0..self.from.changes {
                    if self.from.queued[change] > 0 {
                        self.load(n, change);
                    }
                }
            }
            Writer::HasLoaded { change, next, known, is_stale } => {
                let user = history.changes[change].0;
                self.add(("writer writes and validates", n, change), |world| {
                    world.writers[n] = Writer::Idle;
                    if !world.write(user, &next) {
                        world.queued[change] += 1;
                    } else if is_stale || world.watermarks.comparison != known {
                        let delta = UserState::of(&history.event(change));
                        let stale = world.watermarks.classify(&world.rows[user], &delta, None, NOW);
                        if stale.recheck > Recheck::No {
                            world.request(user);
                        }
                    }
                });
                if self.from.kills > 0 {
                    self.add(("writer writes and is killed", n, change), |world| {
                        world.writers[n] = Writer::Idle;
                        world.write(user, &next);
                        world.queued[change] += 1;
                        world.kills -= 1;
                    });
                }
            }
        }
    }

    /// Loads the row and the watermarks, and requests a check if the event is stale.
    fn load(&mut self, n: usize, change: usize) {
        let (history, user) = (self.history, self.history.changes[change].0);
        self.add(("writer loads the row for event", n, change), |world| {
            world.queued[change] -= 1;
            let event = vec![history.event(change)];
            let (next, recheck) = join_into(&world.rows[user], event, NOW, &world.watermarks, None);
            let (known, is_stale) = (world.watermarks.comparison, recheck > Recheck::No);
            if is_stale {
                world.request(user);
            }
            world.writers[n] = next.map_or(Writer::Idle, |next| Writer::HasLoaded {
                change,
                next: Shared::new(next),
                known,
                is_stale,
            });
        });
    }

    fn scan(&mut self, n: usize) {
        let scan = self.from.scans[n].clone();
        match scan.step {
            Step::NotStarted => self.add(("scan starts", n, 0), |world| {
                world.scans[n].number = world.record(|watermarks| watermarks.begin().0);
                world.scans[n].step = Step::Next(0);
            }),
            Step::Next(user) if user < 2 => self.fetch(n, user),
            Step::Next(_) => self.pass(n),
            Step::HasLoaded { response, comparison, row } => self.repair(n, response, comparison, &row),
            Step::Read(response) => self.decide(n, response),
            Step::Ended => {}
        }
    }

    /// Fetches the page of one user, which the list may leave out, announces the comparison and loads the row.
    fn fetch(&mut self, n: usize, user: usize) {
        for response in self.from.pages(user) {
            let first = move |world: &mut World| {
                world.may_change = true;
                world.scans[n].first.get_or_insert((response.at, response.changes));
            };
            self.add(("scan fetches a page without", n, user), |world| {
                first(world);
                world.scans[n].step = Step::Next(user + 1);
            });
            if self.history.truth(user, response.changes).is_some() {
                self.add(("scan fetches", n, user), |world| {
                    first(world);
                    let scan = ScanNumber(world.scans[n].number);
                    let announce =
                        |scans: &mut ScanWatermarks| scans.compare(scan, response.at, response.not_after());
                    let comparison = world.record(announce);
                    world.scans[n].last_comparison = comparison;
                    world.scans[n].listed[user] = Some(response.changes);
                    let row = world.rows[user].clone();
                    world.scans[n].step = Step::HasLoaded { response, comparison, row };
                });
            }
        }
    }

    /// Writes the repair and the mark of the loaded row; into a newer row only the repair.
    fn repair(&mut self, n: usize, response: Response, comparison: i64, row: &Row) {
        let (history, user) = (self.history, response.user);
        self.add(("scan writes", n, user), |world| {
            let stored = Some(row).filter(|row| row.revision > 0);
            let seen = response.read(history).expect("listed users exist");
            let found = seen.compare(stored);
            let is_too_recent = stored.is_some_and(|row| seen.lead(row).is_some());
            let is_marked = !is_too_recent && found.is_to_be_marked(stored);
            let revisions = is_marked.then(|| (id(user), row.revision)).into_iter().collect();
            let compared = ComparedRows { scan: ScanNumber(world.scans[n].number), comparison, revisions };
            let repairs = match found {
                Comparison::Differs(_, repairs) => repairs,
                _ => Vec::new(),
            };
            let current = world.rows[user].clone();
            let (next, recheck) = join_into(&current, repairs, NOW, &world.watermarks, Some(&compared));
            if recheck > Recheck::No || is_too_recent {
                world.request(user);
            }
            if let Some(next) = next {
                world.write(user, &next);
            }
            world.scans[n].is_unproven[user] |= is_too_recent;
            world.scans[n].step = Step::Next(user + 1);
        });
    }

    /// Reads a live user that is not listed; when there is none left, records the proof.
    fn pass(&mut self, n: usize) {
        let scan = &self.from.scans[n];
        let unlisted = (0..2).find(|user| scan.listed[*user].is_none() && !scan.passed[*user]);
        let Some(user) = unlisted else { return self.prove(n) };
        let row = &self.from.rows[user];
        let (at, _) = scan.first.expect("a page was fetched");
        let scanned = Scanned { sent: Some((at, at)), number: scan.number, ..Scanned::default() };
        if row.revision == 0 || !row.state.is_live() {
            return self.add(("scan passes", n, user), |world| world.scans[n].passed[user] = true);
        }
        let leave = |world: &mut World| {
            world.scans[n].is_unproven[user] = true;
            world.scans[n].passed[user] = true;
        };
        if !may_be_absent(row, &scanned) {
            return self.add(("scan leaves", n, user), leave);
        }
        let response = self.from.response(user);
        self.add(("scan reads", n, user), |world| {
            leave(world);
            world.may_change = true;
            world.scans[n].step = Step::Read(response);
        });
    }

    fn decide(&mut self, n: usize, response: Response) {
        let history = self.history;
        self.add(("scan decides", n, response.user), |world| {
            decide(world, history, response);
            world.scans[n].step = Step::Next(2);
        });
    }

    fn prove(&mut self, n: usize) {
        let history = self.history;
        self.add(("scan proves", n, 0), |world| {
            let scan = world.scans[n].clone();
            let unproven = (0..2).filter(|user| scan.is_unproven[*user]).map(id).collect();
            let ((at, changes), last_comparison) =
                (scan.first.expect("a page was fetched"), scan.last_comparison);
            let proof = ScanWatermark { at, last_comparison, fields: FIELDS.to_vec(), unproven };
            world.record(|watermarks| watermarks.prove(&proof));
            if world.watermarks.proof.as_ref() == Some(&proof) {
                world.proved = scan.listed;
            }
            for user in 0..2 {
                // A list that was compared at all shows that a user does not exist.
                let is_absent = last_comparison > 0 && history.truth(user, changes).is_none();
                let compared = scan.listed[user].or(Some(changes).filter(|_| is_absent));
                if let Some(changes) = compared.filter(|_| !scan.is_unproven[user]) {
                    world.compared[user] = world.compared[user].max(changes);
                }
            }
            world.scans[n] = Scan { step: Step::Ended, ..Scan::default() };
        });
    }

    fn checker(&mut self) {
        let history = self.history;
        match self.from.checker {
            None => {
                for user in (0..2).filter(|user| self.from.checks[*user]) {
                    let response = self.from.response(user);
                    self.add(("check reads", 0, user), |world| {
                        world.may_change = true;
                        world.checker = Some((response, false));
                    });
                }
            }
            Some((response, _)) => self.add(("check decides", 0, response.user), |world| {
                let is_decided = decide(world, history, response);
                // What could not be ordered is checked again.
                world.checks[response.user] =
                    world.checker.is_some_and(|(_, is_again)| is_again) || !is_decided;
                world.checker = None;
            }),
        }
    }
}

/// Compares a single read with the row and writes the difference. Returns whether the read decides.
fn decide(world: &mut World, history: &History, response: Response) -> bool {
    let user = response.user;
    let row = (*world.rows[user]).clone();
    let stored = Some(&row).filter(|row| row.revision > 0);
    let (observations, is_decided) = if let Some(seen) = response.read(history) {
        let is_decided = stored.is_none_or(|row| seen.lead(row).is_none());
        let Comparison::Differs(_, repairs) = seen.compare(stored) else { return is_decided };
        (repairs, is_decided)
    } else {
        let newest = row.state.fields.values().map(|register| register.version.at).max();
        let is_absent = row.state.is_live() && newest < Some(response.at);
        let version = Version::snapshot(response.at, "gone");
        let what = What::Deleted;
        let deletion = Observation { user: id(user), version, source: Source::Reconcile, what };
        let is_decided = is_absent || stored.is_none_or(|row| !row.state.is_live());
        (Some(deletion).filter(|_| is_absent && stored.is_some()).into_iter().collect(), is_decided)
    };
    let is_written = !observations.is_empty();
    if is_written {
        let (next, recheck) = join_into(&row, observations, NOW, &world.watermarks, None);
        if recheck > Recheck::No {
            world.request(user);
        }
        if let Some(next) = next {
            world.write(user, &next);
        }
    }
    // A read that finds the user equal leaves no trace: the next late event is applied as before it.
    if is_decided && is_written {
        world.compared[user] = world.compared[user].max(response.changes);
    }
    is_decided
}
