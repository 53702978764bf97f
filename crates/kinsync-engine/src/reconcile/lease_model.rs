//! A model of the lease, the fences and the deletion budget: every order of the store calls of two processes within the bounds.
//!
//! The processes run the real code: they take the lease, draw deletions on the budget, announce comparisons and record proofs.
//! Only the records of the store and Kinde's answers are modelled.
//!
//! Bounds: a tenant of five users and a budget of half of them, so two deletions; a process that scans, finds two users
//! missing, and checks a third one under the same lease meanwhile; a second process that scans and finds the same two missing.
//! A lease that a process looks at twice without a change in between has expired: a process that is not chosen for that long
//! is a suspended one, and it continues without knowing. At each store call the processes continue in this order, except for up
//! to [`DISTURBANCES`] switches to another task and kills of a process, at most one of them a kill, at any call.
//!
//! Properties, in every state:
//! - no more users are deleted than the budget allows, and each was drawn before;
//! - no two leases have one term, and no record gets an older term;
//! - a process writes no record that a process with a newer lease has written, and draws nothing after that one has its lease.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use kinsync_core::{Micros, UserId};
use serde_json::Value;

use super::{
    budget::{self, Budget, Thresholds},
    lease::{self, Leases},
};
use crate::{
    scan_watermark::{ScanWatermark, ScanWatermarks},
    state_records::Term,
    store::{
        Counts, Error, EventFilter, Holder, LogEntry, OldEntries, OldEntry, Outcome, Page, Row, Saved, Store,
        UserEntries, UserFilter,
    },
};

/// Switches to another task, and kills, per execution.
const DISTURBANCES: usize = 2;

const USERS: u64 = 5;

/// Half of the users is less.
const THRESHOLDS: Thresholds = Thresholds { count: 3, share: 0.0 };

const MOST: usize = 2;

const NOW: Micros = Micros(0);

const ANSWERS: &str = "the store of the model answers";

/// The records of the store, and what the processes did.
#[derive(Debug, Default)]
struct State {
    records: BTreeMap<String, Saved>,
    deleted: BTreeSet<u8>,
    /// The process of the call that runs, and whether it may make one.
    process: usize,
    is_granted: bool,
    terms: [Option<Term>; 2],
    violation: Option<String>,
    events: BTreeSet<&'static str>,
}

impl State {
    fn put(&mut self, key: &str, value: Value, expected: i64) -> bool {
        let term = |value: &Value| value["term"].as_u64().unwrap_or_default();
        let (revision, newest) =
            self.records.get(key).map_or((0, 0), |saved| (saved.revision, term(&saved.value)));
        if revision != expected {
            return false;
        }
        if term(&value) < newest {
            self.violation = Some(format!("{key} gets an older term"));
        }
        // The lease itself fences the budget; any other record is fenced by the first write under the newer lease.
        let fence = match key {
            _ if key == lease::KEY.name => 0,
            _ if key == budget::KEY.name => self.terms.iter().flatten().map(|term| term.0).max().unwrap_or(0),
            _ => newest,
        };
        if self.terms[self.process].is_some_and(|own| own.0 < fence) {
            self.violation = Some(format!("{key} is written under an outdated lease"));
        }
        self.records.insert(key.to_owned(), Saved { value, revision: revision + 1 });
        true
    }

    fn delete(&mut self, users: &[u8]) {
        self.deleted.extend(users);
        let drawn = &self.records[budget::KEY.name].value["value"]["hours"];
        let drawn: u64 =
            drawn.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
        if self.deleted.len() > MOST || self.deleted.len() as u64 > drawn {
            self.violation = Some(format!("{:?} are deleted, {drawn} drawn", self.deleted));
        }
    }

    fn take(&mut self, term: Term) {
        if self.terms.contains(&Some(term)) {
            self.violation = Some(format!("two leases have the term {term:?}"));
        }
        self.terms[self.process] = Some(term);
    }
}

/// The store of the model. A call waits until its task is chosen.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<State>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn step<T>(&self, call: impl FnOnce(&mut State) -> T) -> T {
        let mut call = Some(call);
        poll_fn(|_| {
            let mut state = self.lock();
            if !std::mem::take(&mut state.is_granted) {
                return Poll::Pending;
            }
            let call = call.take().expect("a completed call is not polled");
            Poll::Ready(call(&mut state))
        })
        .await
    }

    fn note(&self, event: &'static str) {
        self.lock().events.insert(event);
    }
}

#[async_trait]
impl Store for Memory {
    async fn state(&self, key: &str) -> Result<Option<Saved>, Error> {
        Ok(self.step(|state| state.records.get(key).cloned()).await)
    }

    async fn put_state(&self, key: &str, value: &Value, expected: i64) -> Result<bool, Error> {
        Ok(self.step(|state| state.put(key, value.clone(), expected)).await)
    }

    async fn load(&self, _: &[UserId]) -> Result<Vec<Option<Row>>, Error> {
        unreachable!()
    }

    async fn write(&self, _: &[Row]) -> Result<Vec<Outcome>, Error> {
        unreachable!()
    }

    async fn replace_entries(&self, _: &[LogEntry]) -> Result<(), Error> {
        unreachable!()
    }

    async fn old_entries(&self, _: &OldEntries, _: usize) -> Result<Vec<OldEntry>, Error> {
        unreachable!()
    }

    async fn remove_entries(&self, _: &[String]) -> Result<(), Error> {
        unreachable!()
    }

    async fn deleted_before(&self, _: Micros, _: Option<&UserId>, _: usize) -> Result<Vec<UserId>, Error> {
        unreachable!()
    }

    async fn count_members(&self, _: &[String]) -> Result<HashMap<String, u64>, Error> {
        unreachable!()
    }

    async fn claimants(&self, _: &[String]) -> Result<Vec<Row>, Error> {
        unreachable!()
    }

    async fn email_holders(&self, _: &[String]) -> Result<HashMap<String, Holder>, Error> {
        unreachable!()
    }

    async fn conflicted(&self, _: Option<&UserId>, _: usize) -> Result<Vec<Row>, Error> {
        unreachable!()
    }

    async fn link(&self, _: &Row) -> Result<Outcome, Error> {
        unreachable!()
    }

    async fn pending_emails(&self, _: Option<&UserId>, _: usize) -> Result<Vec<Row>, Error> {
        unreachable!()
    }

    async fn log(&self, _: &[LogEntry]) -> Result<Vec<usize>, Error> {
        unreachable!()
    }

    async fn events(&self, _: &EventFilter) -> Result<Page<LogEntry>, Error> {
        unreachable!()
    }

    async fn user_entries(&self, _: &str, _: Option<&str>, _: usize) -> Result<UserEntries, Error> {
        unreachable!()
    }

    async fn count_user_entries(&self, _: &str) -> Result<u64, Error> {
        unreachable!()
    }

    async fn event(&self, _: &str) -> Result<Option<LogEntry>, Error> {
        unreachable!()
    }

    async fn users(&self, _: &UserFilter) -> Result<Page<Row>, Error> {
        unreachable!()
    }

    async fn ids(&self, _: Option<&UserId>, _: usize) -> Result<Vec<UserId>, Error> {
        unreachable!()
    }

    async fn referring(&self, _: &[String], _: Option<&UserId>, _: usize) -> Result<Vec<UserId>, Error> {
        unreachable!()
    }

    async fn states(&self, _: &[String]) -> Result<Vec<Option<Saved>>, Error> {
        unreachable!()
    }

    async fn list_states(&self, _: &str, _: Option<&str>, _: usize) -> Result<Vec<(String, Saved)>, Error> {
        unreachable!()
    }

    async fn due_states(&self, _: Option<&str>, _: usize) -> Result<Vec<(String, Saved)>, Error> {
        unreachable!()
    }

    async fn count_states(&self, _: &str) -> Result<u64, Error> {
        unreachable!()
    }

    async fn remove_states(&self, _: &[(String, i64)]) -> Result<(), Error> {
        unreachable!()
    }

    async fn counts(&self) -> Result<Counts, Error> {
        unreachable!()
    }

    async fn ping(&self) -> Result<(), Error> {
        unreachable!()
    }
}

/// Takes the lease, after it has expired if another process has it, and scans.
async fn scan(memory: Memory, name: &'static str) {
    // Expires as soon as it is seen twice.
    let leases = Leases::new(Arc::new(memory.clone()), name.into(), Duration::ZERO);
    for _ in 0..3 {
        let Ok(lease) = leases.take().await.expect(ANSWERS) else { continue };
        memory.lock().take(lease.term());
        match compare_and_delete(&memory, lease.term()).await {
            Some(()) => lease.release().await,
            None => memory.note("a process with an outdated lease ends"),
        }
        return;
    }
}

/// Scans under a lease. `None`: the lease is outdated.
async fn compare_and_delete(memory: &Memory, term: Term) -> Option<()> {
    let scan = ScanWatermarks::start(memory, term).await.expect(ANSWERS)?;
    let announced = ScanWatermarks::announce(memory, term, scan, (NOW, NOW)).await.expect(ANSWERS);
    let last_comparison = announced?;
    delete(memory, term, &[0, 1]).await?;
    let proof = ScanWatermark { at: NOW, last_comparison, fields: Vec::new(), unproven: [].into() };
    ScanWatermarks::record_proof(memory, term, &proof).await.expect(ANSWERS).map(|_| ())
}

/// Checks a user beside the scan of the first process, once it has the lease.
async fn check(memory: Memory) {
    let term = memory.step(|state| state.terms[0]).await.expect("chosen after the lease is taken");
    delete(&memory, term, &[2]).await;
}

/// Deletes these users if the budget allows it. `None`: the lease is outdated.
async fn delete(memory: &Memory, term: Term, users: &[u8]) -> Option<()> {
    let id = |user: &u8| UserId::parse(&format!("kp_{user}")).expect("an id");
    let ids: Vec<UserId> = users.iter().map(id).collect();
    let live = memory.step(|state| USERS - state.deleted.len() as u64).await;
    let budget = Budget::load(memory, THRESHOLDS, live, NOW).await.expect(ANSWERS);
    if budget.is_exceeded_by(ids.len(), ids.iter()) {
        memory.note("deletions are held at once");
        return Some(());
    }
    if budget.draw(memory, term, ids.iter(), NOW).await.expect(ANSWERS)? {
        memory.step(|state| state.delete(users)).await;
        memory.note("users are deleted");
    } else {
        memory.note("a draw is refused");
    }
    Some(())
}

type Work = Pin<Box<dyn Future<Output = ()>>>;

/// A task of a process.
struct Task {
    process: usize,
    /// `None` after its end and after a kill of the process.
    work: Option<Work>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Run(usize),
    Kill(usize),
}

/// One execution.
struct Execution {
    memory: Memory,
    tasks: [Task; 3],
    current: usize,
    disturbances: usize,
    kills: usize,
    path: Vec<Action>,
}

impl Execution {
    fn new() -> Self {
        let memory = Memory::default();
        let task = |process, work| Task { process, work: Some(work) };
        let tasks = [
            task(0, Box::pin(scan(memory.clone(), "first")) as Work),
            task(0, Box::pin(check(memory.clone()))),
            task(1, Box::pin(scan(memory.clone(), "second"))),
        ];
        Self { memory, tasks, current: 0, disturbances: DISTURBANCES, kills: 1, path: Vec::new() }
    }

    /// Returns whether a task can continue. The check waits for the lease.
    fn can_run(&self, n: usize) -> bool {
        self.tasks[n].work.is_some() && (n != 1 || self.memory.lock().terms[0].is_some())
    }

    /// Returns what may happen next, first what happens without a disturbance.
    fn actions(&self) -> Vec<Action> {
        let tasks = [self.current, 0, 1, 2].into_iter().filter(|n| self.can_run(*n));
        let mut actions: Vec<Action> = Vec::new();
        for n in tasks {
            if !actions.contains(&Action::Run(n)) {
                actions.push(Action::Run(n));
            }
        }
        if self.disturbances == 0 {
            actions.truncate(1);
        } else if self.kills > 0 && !actions.is_empty() {
            let is_alive = |process: &usize| {
                self.tasks.iter().any(|task| task.process == *process && task.work.is_some())
            };
            actions.extend((0..2).filter(is_alive).map(Action::Kill));
        }
        actions
    }

    fn act(&mut self, action: Action) {
        self.path.push(action);
        match action {
            Action::Run(n) => {
                self.disturbances -= usize::from(n != self.current && self.can_run(self.current));
                self.current = n;
                self.run(n);
            }
            Action::Kill(process) => {
                (self.disturbances, self.kills) = (self.disturbances - 1, self.kills - 1);
                self.memory.note("a process is killed");
                for task in self.tasks.iter_mut().filter(|task| task.process == process) {
                    task.work = None;
                }
            }
        }
    }

    /// Lets a task make one call.
    fn run(&mut self, n: usize) {
        let Task { process, work } = &mut self.tasks[n];
        {
            let mut state = self.memory.lock();
            (state.process, state.is_granted) = (*process, true);
        }
        let future = work.as_mut().expect("it can run");
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            *work = None;
        }
        let mut state = self.memory.lock();
        // A task that waits for something else than the store would have to be modelled.
        assert!(!std::mem::take(&mut state.is_granted) || work.is_none(), "task {n} waits: {:?}", self.path);
        assert_eq!(state.violation, None, "{:?}", self.path);
    }
}

#[test]
fn no_order_of_two_processes_exceeds_the_budget_or_passes_a_fence() {
    let (mut executions, mut events) = (0, BTreeSet::new());
    // For each choice of the last execution: what was chosen, and of how many.
    let mut choices: Vec<(usize, usize)> = Vec::new();
    loop {
        let mut execution = Execution::new();
        for depth in 0.. {
            let actions = execution.actions();
            if actions.is_empty() {
                break;
            }
            if depth == choices.len() {
                choices.push((0, actions.len()));
            }
            execution.act(actions[choices[depth].0]);
        }
        executions += 1;
        events.append(&mut execution.memory.lock().events);
        while choices.pop_if(|(chosen, of)| *chosen + 1 == *of).is_some() {}
        let Some((chosen, _)) = choices.last_mut() else { break };
        *chosen += 1;
    }
    eprintln!("{executions} executions: {events:?}");
    assert_eq!(events.len(), 5, "{events:?}");
}
