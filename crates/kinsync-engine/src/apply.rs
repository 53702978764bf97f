//! The single write path of observations: load, join, write changed rows with compare-and-set.
//!
//! The log contains every observation that changes a state, whatever its source. An entry is stored before the row that it
//! explains.
//!
//! Safe to repeat, to run in any number of processes, and to interrupt at any point: each row is one atomic write of a join,
//! and a lost compare-and-set repeats the join.

mod entries;
mod memberships;
mod next;
mod references;
mod refused;
mod write;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use futures_util::future::BoxFuture;
use kinsync_core::{Directory, Micros, Observation, Source, UserId, UserState, Version};

use self::entries::{Derived, Logging};
use self::memberships::{show_memberships, with_unshown_memberships};
use self::next::{Next, next, with_owner_pending};
use self::references::{references, spread_concurrent_changes};
pub use self::refused::{apply_refused, apply_refused_keys};
use self::write::write;
use crate::{
    contention::{self, MAX_ROUNDS, pause},
    directory,
    email_ownership::resolve,
    erasure::entries::erase_entries,
    log_entry::LogEntry,
    pending_checks::PendingChecks,
    scan_watermark::{Recheck, ScanNumber, ScanWatermarks},
    store::{Error, Outcome, Row, Store},
};

/// Rounds in which a row is refused as stale and loaded again at the same revision. A few are usual:
/// a read returns what a majority has, which may be older than the concurrent write.
const MAX_STUCK: u32 = 16;

const STUCK: &str = "its document is read at one revision and refused at the same one as outdated";

/// Result of a batch of observations.
#[derive(Debug, Default)]
pub struct Applied {
    /// Rows of users with a changed document.
    pub changed: Vec<Row>,
    /// Users without a new observation.
    pub unchanged: usize,
    /// Users with a row that a rule of the store refuses, and the reason. Their state is kept as a record of kinsync, and
    /// [`apply_refused`] writes it when the rule allows it: do not apply their observations again.
    pub refused: Vec<(UserId, String)>,
    /// Users with a write that failed alone, and why. Whether the store will ever accept it is not known:
    /// apply their observations again, later and apart from others.
    pub failed: Vec<(UserId, String)>,
    /// Deleted users with an observation newer than the deletion.
    pub users_to_recheck: Vec<UserId>,
    /// Why the owners of some email addresses are not decided yet. The rows are written with a pending mark for each address,
    /// so a [`Sweep`](crate::email_ownership::Sweep) decides them: do not apply the observations again for this.
    pub unresolved: Option<Error>,
}

/// Joined observations of one user in a batch.
struct Delta {
    state: UserState,
    newest: Version,
    source: Source,
    /// The observations that are not in the log yet.
    unlogged: Vec<Observation>,
    /// What followed from them and was logged, before a write that was refused as stale.
    derived: UserState,
}

/// Rows that a scan compared with Kinde's users.
#[derive(Debug)]
pub(crate) struct ComparedRows {
    pub(crate) scan: ScanNumber,
    /// Number of the comparison.
    pub(crate) comparison: i64,
    /// Revisions of the compared rows.
    pub(crate) revisions: HashMap<UserId, i64>,
}

impl ComparedRows {
    /// Returns the number of the comparison if exactly this row was compared.
    fn comparison_of(&self, row: &Row) -> Option<i64> {
        (self.revisions.get(&row.id) == Some(&row.revision)).then_some(self.comparison)
    }
}

/// What is known of scans while deltas are applied.
struct Scans<'a> {
    watermarks: ScanWatermarks,
    /// The rows and the scan that compared them; `None` for observations of other sources.
    compared: Option<&'a ComparedRows>,
    /// Whether an observation is stale and without a proof.
    is_stale: bool,
    /// What the memberships of the rows refer to.
    directory: Directory,
}

impl Scans<'_> {
    fn reader(&self) -> Option<ScanNumber> {
        self.compared.map(|compared| compared.scan)
    }
}

impl Delta {
    /// No observation: the row is written only if its document or its marks need it.
    fn empty() -> Self {
        Self {
            state: UserState::default(),
            newest: Version::provisional(),
            source: Source::Reconcile,
            unlogged: Vec::new(),
            derived: UserState::default(),
        }
    }

    /// Returns whether the delta is [`Self::empty`]. A token without claims about the user has an empty state too, and it
    /// creates the user.
    fn is_empty(&self) -> bool {
        self.source == Source::Reconcile && self.state == UserState::default()
    }

    /// Returns the entries of a row that becomes `next`. What they contain besides the observations is joined in the next round too: the
    /// row that it meets may not lead to it.
    fn entries(
        &mut self,
        row: &Row,
        next: &Row,
        derived: Derived,
        is_compared: bool,
        now: Micros,
    ) -> Vec<LogEntry> {
        let entries = entries::of(row, next, self, &derived, is_compared, now);
        if !entries.is_empty() {
            let known = std::mem::take(&mut self.derived);
            self.derived = known.join(derived.proof.unwrap_or_default()).join(derived.ended);
        }
        entries
    }

    /// Returns whether the delta contains an observation, and not only an erasure.
    fn is_observation(&self) -> bool {
        !self.is_empty() && self.state.erased.is_none()
    }
}

/// Joins observations into the stored users, and logs those that change one. Several observations of one user cost one write.
///
/// # Errors
/// Fails when the store fails. Any subset of the users may have been written; a repetition is safe.
pub async fn apply(
    store: &dyn Store,
    observations: impl IntoIterator<Item = Observation>,
    now: Micros,
) -> Result<Applied, Error> {
    apply_deltas(store, fold(observations, Logging::Due), now, None).await
}

/// Joins observations like [`apply`]. The caller has logged what they come from.
///
/// # Errors
/// Fails when the store fails. Any subset of the users may have been written; a repetition is safe.
pub async fn apply_logged(
    store: &dyn Store,
    observations: impl IntoIterator<Item = Observation>,
    now: Micros,
) -> Result<Applied, Error> {
    apply_deltas(store, fold(observations, Logging::Done), now, None).await
}

/// Joins states that entries of the log lead to, with the version and the source of the newest entry of each user.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub(crate) async fn apply_states(
    store: &dyn Store,
    states: HashMap<UserId, (UserState, Version, Source)>,
    now: Micros,
) -> Result<Applied, Error> {
    let delta = |(state, newest, source)| Delta { state, newest, source, ..Delta::empty() };
    let deltas = states.into_iter().map(|(user, logged)| (user, delta(logged))).collect();
    apply_deltas(store, deltas, now, None).await
}

/// Joins the observations of a scan like [`apply`], and marks the rows that the scan compared.
pub(crate) async fn apply_compared(
    store: &dyn Store,
    observations: impl IntoIterator<Item = Observation>,
    now: Micros,
    compared: &ComparedRows,
) -> Result<Applied, Error> {
    let mut deltas = fold(observations, Logging::Due);
    for user in compared.revisions.keys() {
        deltas.entry(user.clone()).or_insert_with(Delta::empty);
    }
    apply_deltas(store, deltas, now, Some(compared)).await
}

/// Writes those rows of these users that have to be written without a new observation.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub(crate) fn rewrite<'a>(
    store: &'a dyn Store,
    users: &'a [UserId],
    now: Micros,
) -> BoxFuture<'a, Result<Applied, Error>> {
    let deltas = users.iter().map(|user| (user.clone(), Delta::empty())).collect();
    // A pointer, because `apply_deltas` calls this.
    Box::pin(apply_deltas(store, deltas, now, None))
}

/// Replaces the state of a deleted user by the deletion alone. The caller has logged it.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub(crate) async fn erase(
    store: &dyn Store,
    user: &UserId,
    deletion: Version,
    now: Micros,
) -> Result<Applied, Error> {
    let state = UserState::erased(deletion.clone());
    let delta = Delta { state, newest: deletion, ..Delta::empty() };
    apply_deltas(store, HashMap::from([(user.clone(), delta)]), now, None).await
}

/// Replaces the states of rows by these, which the log explains, with the sources of their newest observations. Their addresses get
/// their owners decided anew, and no proof of a scan covers them.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub(crate) async fn restore(
    store: &dyn Store,
    rows: Vec<(Row, UserState, Option<Source>)>,
    now: Micros,
) -> Result<HashMap<UserId, Outcome>, Error> {
    let restored = |(row, state, source): (Row, UserState, Option<Source>)| {
        let mut next = Row { state, ..row.clone() };
        next.metadata.updated_at = now;
        next.metadata.source = row.metadata.source.or(source);
        next.metadata.compared_since = None;
        if row.revision == 0 {
            next.metadata.inserted_at = now;
        }
        let mut next = with_undecided_email(store, &row, with_owner_pending(&row, next));
        // The state may have lost what decided the owner. The insertion of a missing row decides as for any new user.
        if row.revision > 0 {
            let claimed = next.claimed_email().map(Cow::into_owned);
            next.pending_emails.extend(claimed);
        }
        with_unshown_memberships(store, &row, next)
    };
    let done = write(store, rows.into_iter().map(restored).collect(), now).await?;
    let is_written = |(_, outcome): &&(Row, Outcome)| *outcome == Outcome::Written;
    let written: Vec<Row> = done.iter().filter(is_written).map(|(row, _)| row.clone()).collect();
    show_memberships(store, &written).await;
    resolve(store, written, now).await?;
    Ok(done.into_iter().map(|(row, outcome)| (row.id, outcome)).collect())
}

async fn apply_deltas(
    store: &dyn Store,
    mut deltas: HashMap<UserId, Delta>,
    now: Micros,
    compared: Option<&ComparedRows>,
) -> Result<Applied, Error> {
    let mut is_dated = deltas.values().any(|delta| !delta.state.is_provisional());
    let mut scans = Scans {
        watermarks: ScanWatermarks::default(),
        compared,
        is_stale: false,
        directory: Directory::default(),
    };
    let mut applied = Applied::default();
    let mut written = Vec::new();
    let mut referring = HashSet::new();
    let mut first_read = Directory::default();
    let mut to_resolve = Vec::new();
    let mut erased = HashSet::new();
    let mut stuck = Stuck::default();
    for round in 0..MAX_ROUNDS {
        if deltas.is_empty() {
            break;
        }
        pause(round).await;
        let ids: Vec<UserId> = deltas.keys().cloned().collect();
        let rows = store.load_to_write(&ids).await?;
        // A request that only updates `last_seen` needs no watermarks.
        is_dated |= rows.iter().any(|row| row.revision == 0);
        if is_dated && round == 0 {
            scans.watermarks = ScanWatermarks::load(store).await?;
        }
        scans.directory = directory::load(store, references(&rows, &deltas)).await?.shown();
        if round == 0 {
            first_read = scans.directory.clone();
        }
        let mut writes = Vec::with_capacity(ids.len());
        let mut entries = Vec::new();
        let mut rechecks = Vec::new();
        for row in rows {
            let Some(delta) = deltas.get_mut(&row.id) else { continue };
            if row.state.erased.is_some() && delta.is_observation() {
                erased.insert(row.id.clone());
            }
            let Next { row: next, recheck, derived } = next(&row, delta, now, &scans);
            if let Some(next) = &next {
                entries.extend(delta.entries(&row, next, derived, scans.compared.is_some(), now));
            }
            let next = next.map(|next| with_undecided_email(store, &row, next));
            let next = next.map(|next| with_unshown_memberships(store, &row, next));
            rechecks.push((row.id.clone(), recheck));
            scans.is_stale |= recheck > Recheck::No;
            if let Some(next) = next {
                if !row.state.directory.has_all(&next.state.references()) {
                    referring.insert(next.id.clone());
                }
                writes.push(next);
            } else {
                deltas.remove(&row.id);
                applied.unchanged += 1;
                to_resolve.extend(Some(row).filter(|row| !row.pending_emails.is_empty()));
            }
        }
        // Requested before the write: after an interruption, a repetition would find nothing new and request no check.
        request_checks(store, &rechecks).await?;
        if !entries.is_empty() {
            store.log(&entries).await?;
        }
        for (row, outcome) in write(store, writes, now).await? {
            match outcome {
                Outcome::Stale | Outcome::EmailTaken if stuck.is_so(&row) => {
                    applied.failed.push((row.id.clone(), STUCK.into()));
                }
                Outcome::Stale | Outcome::EmailTaken => continue,
                Outcome::Failed(reason) => applied.failed.push((row.id.clone(), reason)),
                Outcome::Refused(rule) => applied.refused.push((row.id.clone(), rule.reason)),
                Outcome::Written => {
                    // Not counted as changed: only `last_seen` is new.
                    if row.metadata.updated_at == now {
                        count(row.metadata.source);
                    }
                    applied.users_to_recheck.extend(row.state.needs_check().then(|| row.id.clone()));
                    to_resolve.extend(Some(&row).filter(|row| !row.pending_emails.is_empty()).cloned());
                    applied.changed.push(row.clone());
                    written.extend(deltas.remove(&row.id).map(|delta| (row, delta.state)));
                    continue;
                }
            }
            deltas.remove(&row.id);
        }
    }
    // What these observations say may have been logged before the user was erased.
    for user in erased {
        Box::pin(erase_entries(store, &user, now)).await?;
    }
    show_memberships(store, &applied.changed).await;
    if is_dated {
        recheck_written(store, &written, now, &scans).await?;
    }
    if !referring.is_empty() {
        spread_concurrent_changes(store, &written, &referring, &first_read, now).await?;
    }
    applied.failed.extend(deltas.into_keys().map(|user| (user, contention::REASON.into())));
    applied.unresolved = resolve(store, to_resolve, now).await.err();
    Ok(applied)
}

/// Requests checks of rows that a scan may have compared after the watermarks were loaded and before the rows were written,
/// and once more of rows with a stale observation: a check may have ended before the write. After an interruption before
/// this, the repetition of the observations requests them.
async fn recheck_written(
    store: &dyn Store,
    written: &[(Row, UserState)],
    now: Micros,
    scans: &Scans<'_>,
) -> Result<(), Error> {
    if written.is_empty() {
        return Ok(());
    }
    let newer = ScanWatermarks::load(store).await?;
    if newer.comparison == scans.watermarks.comparison && !scans.is_stale {
        return Ok(());
    }
    let recheck = |(row, delta): &(Row, UserState)| {
        (row.id.clone(), newer.classify(row, delta, scans.reader(), now).recheck)
    };
    request_checks(store, &written.iter().map(recheck).collect::<Vec<_>>()).await
}

async fn request_checks(store: &dyn Store, rechecks: &[(UserId, Recheck)]) -> Result<(), Error> {
    let of = |kind| {
        let users = rechecks.iter().filter(move |(_, recheck)| *recheck == kind);
        users.map(|(user, _)| user.clone()).collect::<Vec<_>>()
    };
    PendingChecks::request(store, &of(Recheck::Yes)).await?;
    PendingChecks::request_if_few(store, &of(Recheck::IfFew)).await
}

/// Rows with a write refused as stale although no concurrent write occurred.
#[derive(Default)]
struct Stuck(HashMap<UserId, (i64, u32)>);

impl Stuck {
    /// Whether this row was refused too often at the revision that it has.
    fn is_so(&mut self, row: &Row) -> bool {
        let (revision, rounds) = self.0.entry(row.id.clone()).or_insert((row.revision, 0));
        *rounds = if *revision == row.revision { *rounds + 1 } else { 1 };
        *revision = row.revision;
        *rounds >= MAX_STUCK
    }
}

/// Counts changes by source.
fn count(source: Option<Source>) {
    let source = source.map_or("unknown", Source::as_str);
    metrics::counter!("kinsync_user_changes_total", "source" => source).increment(1);
}

/// Marks an address if no failed write reveals its owner. In a store without a unique index that is one that the row claims since
/// this change, which is hidden until its owner is decided, and one that the document shows in another form since this change.
/// Where linking ignores case it is one that Kinde verified now.
fn with_undecided_email(store: &dyn Store, before: &Row, mut next: Row) -> Row {
    let is_new = next.claimed_email() != before.claimed_email();
    let is_verified_now = next.state.has_verified_email() && (is_new || !before.state.has_verified_email());
    let is_shown_anew = before.is_outdated() && !store.enforces_unique_emails();
    if (store.links_in_any_case() && is_verified_now) || is_shown_anew {
        let claimed = next.claimed_email().map(Cow::into_owned);
        next.pending_emails.extend(claimed);
    }
    if is_new && next.metadata.holds_email && !store.enforces_unique_emails() {
        return without_email(next);
    }
    next
}

fn without_email(mut row: Row) -> Row {
    row.metadata.holds_email = false;
    let claimed = row.claimed_email().map(Cow::into_owned);
    row.pending_emails.extend(claimed);
    row
}

fn fold(observations: impl IntoIterator<Item = Observation>, logging: Logging) -> HashMap<UserId, Delta> {
    let mut deltas: HashMap<UserId, Delta> = HashMap::new();
    for observation in observations {
        let state = UserState::of(&observation);
        let delta = match deltas.get_mut(&observation.user) {
            None => {
                let Observation { user, version: newest, source, .. } = observation.clone();
                deltas.entry(user).or_insert(Delta { state, newest, source, ..Delta::empty() })
            }
            Some(delta) => {
                delta.state = std::mem::take(&mut delta.state).join(state);
                if observation.version >= delta.newest {
                    delta.newest = observation.version.clone();
                    delta.source = observation.source;
                }
                delta
            }
        };
        if logging == Logging::Due {
            delta.unlogged.push(observation);
        }
    }
    deltas
}

/// Joins observations of one user into a row, as [`apply`] does. For the models.
#[cfg(test)]
pub(crate) fn join_into(
    row: &Row,
    observations: Vec<Observation>,
    now: Micros,
    scans: (&ScanWatermarks, Option<&ComparedRows>),
    directory: Directory,
) -> (Option<Row>, Recheck) {
    let delta = fold(observations, Logging::Done).remove(&row.id).unwrap_or_else(Delta::empty);
    let (watermarks, compared) = (scans.0.clone(), scans.1);
    let next = next(row, &delta, now, &Scans { watermarks, compared, is_stale: false, directory });
    (next.row, next.recheck)
}
