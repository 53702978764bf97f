//! The steps of the processes of the model.

mod checker;

use std::hash::Hash;

use kinsync_core::{Entry, Fact, Field, Observation, UserState, Value, Version};

use super::{
    CODE, Event, History, Memos, NOW, OUTDATED, id, kind,
    responses::{listed, read, role_ids},
    time,
    world::{Scan, Step, World, Writer},
};
use crate::{
    apply::{ComparedRows, join_into},
    directory::{Kind, Stored, joined},
    reconcile::{
        compare::{Comparison, RemoteUser},
        memberships::memberships,
        model::explore::Shared,
        record::DriftKind,
    },
    scan_watermark::{Recheck, ScanNumber, ScanWatermark, ScanWatermarks, is_compared},
    store::Row,
};

/// Returns the successors of a state, each with the name of the step.
pub(super) fn successors(history: &History, memos: &Memos, from: &World) -> Vec<(&'static str, World)> {
    let mut steps = Steps { history, memos, from, to: Vec::new() };
    steps.kinde();
    steps.writer();
    steps.objects();
    steps.spreader();
    steps.scan();
    steps.checker();
    steps.to
}

struct Steps<'a> {
    history: &'a History,
    memos: &'a Memos,
    from: &'a World,
    to: Vec<(&'static str, World)>,
}

impl Steps<'_> {
    fn add(&mut self, label: &'static str, step: impl FnOnce(&mut World)) {
        let mut world = *self.from;
        world.may_change = false;
        step(&mut world);
        self.to.push((label, world));
    }

    fn kinde(&mut self) {
        let n = self.from.changes;
        if n < self.history.changes.len() && self.from.may_change {
            let happen = |world: &mut World| {
                world.may_change = true;
                world.changes += 1;
            };
            self.add("Kinde changes, and no event arrives", |world| {
                happen(world);
                world.lost = n + 1;
            });
            if !matches!(self.history.changes[n].0, Event::None) {
                self.add("Kinde changes", |world| {
                    happen(world);
                    world.queued[n] = 1;
                });
            }
        }
        for change in 0..n {
            if self.from.queued[change] == 1 && self.from.duplicates > 0 {
                self.add("an event arrives twice", |world| {
                    world.queued[change] += 1;
                    world.duplicates -= 1;
                });
            }
        }
    }

    fn queued(&self) -> impl Iterator<Item = (usize, Event)> + use<> {
        let (queued, history) = (self.from.queued, *self.history);
        (0..self.from.changes).filter(move |n| queued[*n] > 0).map(move |n| (n, history.changes[n].0))
    }

    /// The process that applies events of the user.
    fn writer(&mut self) {
        match self.from.writer {
            Writer::Idle => {
                for (change, event) in self.queued() {
                    if matches!(event, Event::User) {
                        self.load(change);
                    }
                }
            }
            Writer::HasLoaded { change, next, must_validate } => {
                let written = Writer::HasWritten { change, must_validate };
                self.add("writer writes the row", |world| {
                    world.writer = Writer::Idle;
                    world.write(next);
                    world.writer = written;
                });
                self.kill("writer is killed before its write", |world| {
                    world.writer = Writer::Idle;
                    world.queued[change] += 1;
                });
            }
            Writer::HasWritten { change, must_validate } => {
                self.validate(change, must_validate);
                self.kill("writer is killed after its write", |world| {
                    world.writer = Writer::Idle;
                    world.queued[change] += 1;
                });
            }
        }
    }

    fn kill(&mut self, label: &'static str, step: impl FnOnce(&mut World)) {
        if self.from.kills > 0 {
            self.add(label, |world| {
                step(world);
                world.kills -= 1;
            });
        }
    }

    /// Stores the keys in the event, loads the row, the records and the watermarks, and requests a check if the event is stale.
    fn load(&mut self, change: usize) {
        let tenant = self.history.changes[change].1;
        let mut named = *self.from;
        for role in tenant.member.unwrap_or_default() {
            let Some((key, _)) = tenant.roles[*role] else { continue };
            self.observe(&mut named, role + 1, (0, change), || {
                Entry::observed([(Fact::Key, Value::from(key))], &Version::provisional())
            });
        }
        let version = History::version(change);
        let objects =
            tenant.member.into_iter().flat_map(|roles| roles.iter().map(|role| role + 1).chain([0]));
        for object in objects {
            let known = named.records[object];
            let known = known.as_ref().map(|stored| &stored.entry);
            let listed = named.listed(kind(object));
            if let Some(entry) = Entry::unlisted(known, &version, listed.as_ref()) {
                self.memos.unlisted.set(self.memos.unlisted.get() + 1);
                self.observe(&mut named, object, (4, change), || entry);
            }
        }
        let event = || vec![self.history.user_event(change)];
        let (next, is_recheck) = self.join(&named, (0, change), || (event(), None));
        self.add("writer loads the row", |world| {
            world.records = named.records;
            world.queued[change] -= 1;
            if is_recheck {
                world.request();
            }
            world.writer = match next {
                Some(next) => Writer::HasLoaded { change, next, must_validate: is_recheck },
                None => Writer::HasWritten { change, must_validate: false },
            };
        });
    }

    /// Reads the records and the watermarks once more.
    fn validate(&mut self, change: usize, must_validate: bool) {
        let (history, row, watermarks) = (self.history, self.from.row, self.from.watermarks);
        let is_stale = must_validate
            && self.memos.stale.get((0, change, row, watermarks), || {
                let delta = UserState::of(&history.user_event(change));
                watermarks.classify(&row, &delta, None, NOW).recheck > Recheck::No
            });
        let (next, _) = self.join(self.from, (1, 0), || (Vec::new(), None));
        self.add("writer reads the records once more", |world| {
            world.writer = Writer::Idle;
            if let Some(next) = next {
                world.write(next);
            }
            if is_stale {
                world.request();
            }
        });
    }

    /// The process that applies events of organizations and roles.
    fn objects(&mut self) {
        for (change, event) in self.queued() {
            let Event::Object(object) = event else { continue };
            let mut observed = *self.from;
            self.observe(&mut observed, object, (1, change), || self.history.object_event(change, object));
            self.add("an event changes a record", |world| {
                world.records = observed.records;
                world.queued[change] -= 1;
            });
            self.kill("a process is killed after a change of a record", |world| {
                world.records = observed.records;
            });
        }
    }

    /// The task that writes the row with what the records contain, and marks them.
    fn spreader(&mut self) {
        if !self.from.is_due() {
            return;
        }
        let (next, _) = self.join(self.from, (1, 0), || (Vec::new(), None));
        let write = |world: &mut World| {
            if let Some(next) = next {
                world.write(next);
            }
        };
        self.add("the task spreads the records", |world| {
            write(world);
            for stored in world.records.iter_mut().flatten().filter(|stored| stored.is_due()) {
                *stored = Shared::new(Stored { spread: stored.changes, ..(**stored).clone() });
            }
        });
        self.kill("the task is killed after its write", write);
    }

    /// Joins an observation into a record.
    fn observe(&self, world: &mut World, object: usize, of: (u8, usize), entry: impl FnOnce() -> Entry) {
        let known = world.records[object];
        let next = self.memos.records.get((object, known, of, world.listed), || {
            let (known, kind) = (known.map(|known| (*known).clone()), kind(object));
            Shared::new(joined(known, kind, &entry(), world.listed(kind).as_ref()))
        });
        world.records[object] = Some(next);
    }

    /// Joins observations into the row. Returns the next row, and whether a check is requested.
    fn join(
        &self,
        world: &World,
        arguments: impl Hash,
        observed: impl FnOnce() -> (Vec<Observation>, Option<ComparedRows>),
    ) -> (Option<Shared<Row>>, bool) {
        let key = (arguments, world.row, world.records, world.listed, world.watermarks);
        self.memos.rows.get(key, || {
            let (observations, compared) = observed();
            let scans = (&*world.watermarks, compared.as_ref());
            let (next, recheck) = join_into(&world.row, observations, NOW, scans, world.directory());
            let next = next.map(|next| Shared::new(Row { revision: 1, ..next }));
            (next, recheck > Recheck::No)
        })
    }

    fn recorded(
        &self,
        arguments: impl Hash,
        change: impl FnOnce(&mut ScanWatermarks),
    ) -> Shared<ScanWatermarks> {
        self.memos.watermarks.get((arguments, self.from.watermarks), || {
            let mut watermarks = (*self.from.watermarks).clone();
            change(&mut watermarks);
            Shared::new(watermarks)
        })
    }

    fn scan(&mut self) {
        let now = self.from.changes;
        let read = |step: fn(usize) -> Step| {
            move |world: &mut World| {
                world.may_change = true;
                world.scan.step = step(now);
            }
        };
        match self.from.scan.step {
            Step::NotStarted => {
                let begun = self.recorded(0, |watermarks| _ = watermarks.begin());
                self.add("scan starts", |world| {
                    world.record(begun);
                    world.scan.number = begun.comparison;
                    world.scan.step = Step::Page;
                });
            }
            Step::Page => self.fetch(),
            Step::HasPage { changes, comparison, row, is_current } => {
                self.repair(changes, comparison, row, is_current);
            }
            Step::List(Kind::Organization) => {
                self.add("scan lists organizations", read(|now| Step::HasList(Kind::Organization, now)));
            }
            Step::List(_) => self.add("scan lists roles", read(|now| Step::HasList(Kind::Role, now))),
            Step::HasList(kind, changes) => self.compare_list(kind, changes),
            // What the row contains of the records counts in the comparison.
            Step::Members if self.from.is_due() => {}
            Step::Members => self.add("scan lists members", read(Step::HasMembers)),
            Step::HasMembers(changes) => self.compare_member(changes),
            Step::Unread => self.add("scan reads permissions", read(Step::HasUnread)),
            Step::HasUnread(changes) => self.store_permissions(changes),
            Step::Prove => self.prove(),
            Step::Ended => {}
        }
    }

    fn fetch(&mut self) {
        let (changes, scan) = (self.from.changes, ScanNumber(self.from.scan.number));
        let announced = self.recorded((1, changes), |scans| {
            scans.compare(scan, time(changes, 50), time(changes, 90));
        });
        self.add("scan fetches the user", |world| {
            world.may_change = true;
            world.record(announced);
            let comparison = announced.comparison;
            world.scan.page = changes;
            world.scan.last_comparison = comparison;
            world.scan.step = Step::HasPage { changes, comparison, row: world.row, is_current: true };
        });
    }

    fn remote(&self, changes: usize) -> RemoteUser {
        let codes = self.history.tenant(changes).codes();
        RemoteUser::of(id(), codes, time(changes, 50), time(changes, 90))
    }

    /// Writes the repair and the mark of the loaded row; into a newer row only the repair.
    fn repair(&mut self, changes: usize, comparison: i64, row: Shared<Row>, is_current: bool) {
        let is_too_recent =
            self.memos.stale.get((1, changes, row), || self.remote(changes).lead(&row).is_some());
        let number = self.from.scan.number;
        let (next, is_recheck) = self.join(self.from, (2, changes, comparison, row, is_current), || {
            let found = self.remote(changes).compare(Some(&row));
            let is_marked = !is_too_recent && found.is_to_be_marked(Some(&row));
            let revision = if is_current { row.revision } else { OUTDATED };
            let revisions = is_marked.then(|| (id(), revision)).into_iter().collect();
            let compared = ComparedRows { scan: ScanNumber(number), comparison, revisions };
            let Comparison::Differs(_, repairs) = found else { return (Vec::new(), Some(compared)) };
            (repairs, Some(compared))
        });
        self.add("scan writes the user", |world| {
            if is_recheck || is_too_recent {
                world.request();
            }
            if let Some(next) = next {
                world.write(next);
            }
            world.scan.is_unproven |= is_too_recent;
            world.scan.step = Step::List(Kind::Organization);
        });
    }

    /// Stores what differs from a complete list, and records the proof.
    fn compare_list(&mut self, listed: Kind, changes: usize) {
        let (tenant, now) = (self.history.tenant(changes), self.history.tenant(self.from.changes));
        let version = Version::snapshot(time(changes, 50), "");
        let mut world = *self.from;
        let from_page = self.from.scan.page;
        let objects: Vec<usize> = (0..3).filter(|object| kind(*object) == listed).collect();
        let list = |object: &usize| tenant.object(*object, &version, true);
        let has_others = listed == Kind::Organization && self.history.has_others;
        let is_empty = !has_others && objects.iter().all(|object| list(object).is_none());
        let is_unlisted = |object: &&usize| {
            list(object).is_none() && self.from.records[**object].is_some_and(|known| known.entry.is_live())
        };
        let unlisted: Vec<usize> = objects.iter().filter(is_unlisted).copied().collect();
        // What the list lacks is read again.
        let exists = |object: &usize| now.object(*object, &version, false).is_some();
        let is_whole = unlisted.is_empty() || (!is_empty && !unlisted.iter().any(exists));
        // A second list confirms a proof, and so does the page of the user.
        let lacks = |object: &usize| list(object).is_none();
        let is_named = |object: &usize| *object == 0 && self.history.tenant(from_page).member.is_some();
        let is_confirmed = |object: &usize| !lacks(object) || !(exists(object) || is_named(object));
        let is_proof = is_whole && !is_empty && objects.iter().all(is_confirmed);
        for object in &objects {
            let Some(entry) = list(object) else { continue };
            if self.from.records[*object].is_none_or(|known| known.entry.differs(&entry)) {
                self.observe(&mut world, *object, (2, changes), || entry);
            }
        }
        for object in unlisted.iter().filter(|_| is_whole) {
            self.observe(&mut world, *object, (3, self.from.changes), || {
                Entry::deleted(&Version::snapshot(time(self.from.changes, 50), ""))
            });
        }
        self.kill("scan is killed before the proof of a list", |next| {
            next.records = world.records;
            next.scan.step = Step::Ended;
        });
        self.add("scan compares a list", |next| {
            next.records = world.records;
            let proof = &mut next.listed[usize::from(listed == Kind::Role)];
            *proof = (*proof).max(is_proof.then_some(version.at));
            if listed == Kind::Role {
                next.scan.roles = changes;
                // An empty list of organizations deletes nothing. The memberships come from the page of the user.
                next.scan.is_whole &= is_whole;
            }
            next.scan.step = if listed == Kind::Role { Step::Members } else { Step::List(Kind::Role) };
        });
    }

    /// Compares the member, and again after a second list of the roles.
    fn compare_member(&mut self, changes: usize) {
        let (from, scan) = (self.from, self.from.scan);
        let tenant = self.history.tenant(changes);
        if tenant.member.is_none() {
            return self.add("scan finds no member", |world| world.scan.step = Step::Prove);
        }
        let compare = || {
            let seen = listed(tenant, time(changes, 50));
            let at = time(scan.roles, 50);
            let before = role_ids(self.history.tenant(scan.roles), at);
            let mut after = role_ids(self.history.tenant(from.changes), at);
            after.ids.retain(|key, id| before.ids.get(key) == Some(id));
            let differs = seen.clone().resolved(&before).compare(Some(&from.row)).is_some();
            seen.resolved(&after).compare(Some(&from.row)).filter(|_| differs)
        };
        let arguments = (changes, scan.roles, from.changes, from.row);
        let must_read = self.memos.stale.get((4, arguments), || {
            memberships(&from.row.state).needs_read_of_permissions(CODE, &from.row.state.directory)
        });
        // With changed roles, the permissions are read before the write.
        let permissions = || {
            let known = memberships(&from.row.state).organization(CODE);
            known.filter(|known| known.permissions.is_some()).and_then(|_| {
                let at = time(from.changes.max(scan.roles).max(changes), 50);
                read(self.history.tenant(from.changes), at)
            })
        };
        let (next, is_recheck) = self.join(from, (3, arguments, scan.number, scan.last_comparison), || {
            let is_marked = is_compared(&from.row.metadata);
            let compared = ComparedRows {
                scan: ScanNumber(scan.number),
                comparison: scan.last_comparison,
                revisions: is_marked.then(|| (id(), from.row.revision)).into_iter().collect(),
            };
            let Some((kind, repair)) = compare() else { return (Vec::new(), Some(compared)) };
            let read = (kind == DriftKind::Changed).then(permissions).flatten();
            let read = read.map(|seen| seen.observe(seen.membership.clone()));
            (std::iter::once(repair).chain(read).collect(), Some(compared))
        });
        self.add("scan compares the member", |world| {
            if is_recheck {
                world.request();
            }
            if let Some(next) = next {
                world.write(next);
            }
            world.scan.step = if must_read { Step::Unread } else { Step::Prove };
            // Kinde has other roles than the list: the next scan compares the member.
            world.scan.is_whole &= scan.roles == changes;
        });
    }

    fn store_permissions(&mut self, changes: usize) {
        let lists = time(self.from.scan.roles.max(changes), 50);
        let at = time(changes, 50).max(lists);
        let (next, is_recheck) = self.join(self.from, (4, changes, self.from.scan.roles), || {
            let read = read(self.history.tenant(changes), at);
            (read.iter().map(|seen| seen.observe(seen.membership.clone())).collect(), None)
        });
        self.add("scan writes permissions", |world| {
            if is_recheck {
                world.request();
            }
            if let Some(next) = next {
                world.write(next);
            }
            world.scan.step = Step::Prove;
        });
    }

    fn prove(&mut self) {
        let scan = self.from.scan;
        let unproven = scan.is_unproven.then(id).into_iter().collect();
        let fields = vec![Field::OrganizationCodes];
        let proof = ScanWatermark {
            at: time(scan.page, 50),
            last_comparison: scan.last_comparison,
            fields,
            unproven,
        };
        let arguments = (2, scan.page, scan.last_comparison, scan.is_unproven);
        let proved = self.recorded(arguments, |watermarks| _ = watermarks.prove(&proof));
        self.add("scan proves", |world| {
            world.record(proved);
            if scan.is_whole && !scan.is_unproven && world.lost <= scan.page {
                world.lost = 0;
            }
            world.scan = Scan { step: Step::Ended, is_whole: true, is_unproven: false, ..scan };
        });
    }
}
