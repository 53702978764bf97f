//! Read models beside the users: daily figures, derived from the event log.
//!
//! A day is a day of receipt in UTC. Its figures are a record of kinsync, with the number of log entries that they count. They are
//! always computed from all entries of the day: a later run compares this number with that of the index and computes the day again
//! if they differ. Only retention removes entries, so equal numbers mean equal entries, whatever process logged them and when: no
//! order of commits, no mark and no position in the log is needed, and a kill at any point leaves a day to compute again. A rebuild
//! runs the same code for every day.
//!
//! Before retention removes entries of a day it calls `keep`: the figures are brought up to date and kept from then on.

mod day;
mod growth;
mod system;
mod task;

use std::fmt;

use kinsync_core::Micros;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    contention::{self, MAX_ROUNDS, pause},
    log_entry::LogEntry,
    store::{Error, EventFilter, Page, Saved, Store},
};

pub(crate) use self::task::{LEASE, run};
pub use self::{
    day::Day,
    growth::{Growth, OrganizationGrowth},
    system::{Lag, System},
};

/// Entries per read.
const PAGE: usize = 500;

/// Version of the form of a record.
const FORMAT: u32 = 1;

/// A read model: figures of a day. A change of what they count takes effect with the next rebuild.
pub trait Projection: Default + Send {
    /// What is stored and shown. Contains no value of a user.
    type Figures: Serialize + DeserializeOwned + Default + PartialEq + Send;

    /// Name in commands and in the keys of the records.
    const NAME: &'static str;

    /// Counts an entry of the day. The order of the entries does not matter.
    fn add(&mut self, entry: &LogEntry);

    /// Returns the figures of the counted entries.
    fn figures(self) -> Self::Figures;
}

/// The names of all projections.
pub const NAMES: [&str; 2] = [growth::Projector::NAME, system::Projector::NAME];

/// The figures of a day.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record<F> {
    format: u32,
    /// Number of log entries that the figures count, with damaged ones.
    pub entries: u64,
    /// Damaged entries, which have no figures.
    pub damaged: u64,
    /// Whether retention has removed entries of the day. The figures are not computed again.
    pub is_kept: bool,
    /// The figures.
    pub figures: F,
}

/// Which days to compute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Today, yesterday and later days, if their entries have changed.
    Recent,
    /// All days with other entries than before.
    Changed,
    /// All days.
    All,
}

/// Result of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Days with entries in the log.
    pub days: u64,
    /// Days that were computed.
    pub computed: u64,
    /// Entries that were read.
    pub entries: u64,
    /// The newest day that cannot be computed any more, because retention has removed entries of it. Later days can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<Day>,
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.days += other.days;
        self.computed += other.computed;
        self.entries += other.entries;
        self.kept_until = self.kept_until.max(other.kept_until);
    }
}

/// No projection has this name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownName;

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the projections are {}", NAMES.join(" and "))
    }
}

impl std::error::Error for UnknownName {}

/// Brings the figures of all projections up to date. Cancel safe: each day is written at once, and the next call finds the others.
///
/// # Errors
/// Fails when the store fails.
pub async fn advance_all(store: &dyn Store, scope: Scope, now: Micros) -> Result<Report, Error> {
    let mut report = advance::<growth::Projector>(store, scope, now, &mut |_| {}).await?;
    report.add(&advance::<system::Projector>(store, scope, now, &mut |_| {}).await?);
    Ok(report)
}

/// Computes all days of the projection with this name again, newest first. `progress` gets each finished day. Cancel safe.
///
/// # Errors
/// The outer error if no projection has the name, the inner one when the store fails. A repetition is safe.
pub async fn rebuild(
    store: &dyn Store,
    name: &str,
    now: Micros,
    progress: &mut (dyn FnMut(Day) + Send),
) -> Result<Result<Report, Error>, UnknownName> {
    match name {
        growth::Projector::NAME => Ok(advance::<growth::Projector>(store, Scope::All, now, progress).await),
        system::Projector::NAME => Ok(advance::<system::Projector>(store, Scope::All, now, progress).await),
        _ => Err(UnknownName),
    }
}

/// Lists the growth of the days from `since` to `until`, oldest first. Days without entries are left out.
///
/// # Errors
/// Fails when the store fails, or when a newer kinsync wrote a record.
pub async fn growth(store: &dyn Store, days: (Day, Day)) -> Result<Vec<(Day, Record<Growth>)>, Error> {
    list::<growth::Projector>(store, days).await
}

/// Lists the figures of the system of the days from `since` to `until`, oldest first. Days without entries are left out.
///
/// # Errors
/// Fails when the store fails, or when a newer kinsync wrote a record.
pub async fn system(store: &dyn Store, days: (Day, Day)) -> Result<Vec<(Day, Record<System>)>, Error> {
    list::<system::Projector>(store, days).await
}

/// Returns whether the log has entries of these days, with figures or without.
///
/// # Errors
/// Fails when the store fails.
pub async fn has_entries(store: &dyn Store, (since, until): (Day, Day)) -> Result<bool, Error> {
    let (since, until) = (Some(since.start()), Some(until.next().start()));
    let page = store.events(&EventFilter { since, until, limit: 1, ..EventFilter::default() }).await?;
    Ok(!page.items.is_empty() || !page.undecodable.is_empty())
}

async fn list<P: Projection>(
    store: &dyn Store,
    (since, until): (Day, Day),
) -> Result<Vec<(Day, Record<P::Figures>)>, Error> {
    let (prefix, after) = (prefix::<P>(), key::<P>(since.previous()));
    let limit = usize::try_from(until.days_since(since) + 1).unwrap_or_default();
    let records = store.list_states(&prefix, Some(&after), limit).await?;
    let day = |key: &str| key.strip_prefix(&prefix).and_then(Day::parse);
    let records = records.iter().filter_map(|(key, saved)| Some((day(key)?, saved)));
    let records = records.filter(|(day, _)| (since..=until).contains(day));
    records.map(|(day, saved)| decode::<P>(day, saved).map(|record| (day, record))).collect()
}

/// Computes the days of the scope, newest first.
async fn advance<P: Projection>(
    store: &dyn Store,
    scope: Scope,
    now: Micros,
    progress: &mut (dyn FnMut(Day) + Send),
) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut newest = newest_before(store, None).await?;
    while let Some(day) = newest {
        if scope == Scope::Recent && day < Day::of(now).previous() {
            break;
        }
        compute::<P>(store, day, scope, &mut report).await?;
        progress(day);
        newest = newest_before(store, Some(day)).await?;
    }
    Ok(report)
}

/// Returns the newest day with a readable entry before this day, by the index of the time of receipt.
async fn newest_before(store: &dyn Store, day: Option<Day>) -> Result<Option<Day>, Error> {
    let mut filter = EventFilter { until: day.map(Day::start), limit: 1, ..EventFilter::default() };
    loop {
        let page = store.events(&filter).await?;
        if let Some(entry) = page.first() {
            return Ok(Some(Day::of(entry.received_at)));
        }
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return Ok(None),
        }
    }
}

/// Computes a day, unless its entries are those of its record. A concurrent computation of the day that read more wins.
async fn compute<P: Projection>(
    store: &dyn Store,
    day: Day,
    scope: Scope,
    report: &mut Report,
) -> Result<(), Error> {
    report.days += 1;
    // Read before the entries, so that a process with older entries writes over no newer record.
    let (known, revision) = load::<P>(store, day).await?;
    if known.is_kept {
        report.kept_until = report.kept_until.max(Some(day));
        return Ok(());
    }
    if scope != Scope::All && store.count_events(&of(day)).await? == known.entries {
        return Ok(());
    }
    let record = read::<P>(store, day).await?;
    report.computed += 1;
    report.entries += record.entries;
    if record != known {
        put::<P>(store, day, &record, revision).await?;
    }
    Ok(())
}

/// Brings the figures of a day up to date for the last time, because entries of the day are removed next.
///
/// # Errors
/// Fails when the store fails, or when a newer kinsync wrote a record. No entry of the day may be removed then.
pub(crate) async fn keep(store: &dyn Store, day: Day) -> Result<(), Error> {
    keep_of::<growth::Projector>(store, day).await?;
    keep_of::<system::Projector>(store, day).await
}

async fn keep_of<P: Projection>(store: &dyn Store, day: Day) -> Result<(), Error> {
    for round in 0..MAX_ROUNDS {
        pause(round).await;
        let (known, revision) = load::<P>(store, day).await?;
        if known.is_kept {
            return Ok(());
        }
        let is_current = revision > 0 && store.count_events(&of(day)).await? == known.entries;
        let record = if is_current { known } else { read::<P>(store, day).await? };
        // A computation that has begun before writes nothing any more: the revision is another one.
        if put::<P>(store, day, &Record { is_kept: true, ..record }, revision).await? {
            return Ok(());
        }
    }
    Err(contention::error("write a projection"))
}

/// Returns the record of a day and its revision; an empty one of revision 0 if there is none.
async fn load<P: Projection>(store: &dyn Store, day: Day) -> Result<(Record<P::Figures>, i64), Error> {
    match store.state(&key::<P>(day)).await? {
        Some(saved) => Ok((decode::<P>(day, &saved)?, saved.revision)),
        None => Ok((Record::default(), 0)),
    }
}

async fn read<P: Projection>(store: &dyn Store, day: Day) -> Result<Record<P::Figures>, Error> {
    let (mut projection, mut filter) = (P::default(), of(day));
    let (mut entries, mut damaged) = (0, 0);
    loop {
        let Page { items, next, undecodable } = store.events(&filter).await?;
        for entry in &items {
            projection.add(entry);
        }
        damaged += undecodable.len() as u64;
        entries += (items.len() + undecodable.len()) as u64;
        match next {
            Some(next) => filter.after = Some(next),
            None => break,
        }
    }
    Ok(Record { format: FORMAT, entries, damaged, is_kept: false, figures: projection.figures() })
}

fn of(day: Day) -> EventFilter {
    let (since, until) = (Some(day.start()), Some(day.next().start()));
    EventFilter { since, until, limit: PAGE, ..EventFilter::default() }
}

fn prefix<P: Projection>() -> String {
    format!("projection/{}/", P::NAME)
}

fn key<P: Projection>(day: Day) -> String {
    format!("{}{day}", prefix::<P>())
}

async fn put<P: Projection>(
    store: &dyn Store,
    day: Day,
    record: &Record<P::Figures>,
    revision: i64,
) -> Result<bool, Error> {
    let record = serde_json::to_value(record).expect("texts and numbers are JSON");
    store.put_state(&key::<P>(day), &record, revision).await
}

fn decode<P: Projection>(day: Day, saved: &Saved) -> Result<Record<P::Figures>, Error> {
    let record =
        Record::deserialize(&saved.value).ok().filter(|record: &Record<P::Figures>| record.format == FORMAT);
    record.ok_or_else(|| Error::Refused {
        doing: "read the figures of a day",
        hint: format!(
            "the record `{}` cannot be decoded: run the version of kinsync that wrote it, or remove the record and run `kinsync \
             rebuild --projection {}`",
            key::<P>(day),
            P::NAME
        ),
        source: None,
    })
}
