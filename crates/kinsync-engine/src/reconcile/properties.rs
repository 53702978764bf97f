//! Compares the properties of users with Kinde's.
//!
//! Kinde sends no event when a property changes, and only its search lists the properties of all users. A scan therefore reads that
//! list too, at an interval of its own. A read determines every property of the settings: one that it does not list has no value.
//! Single reads of some users have to confirm the values that a page of the list lacks.

mod single;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use kinde::{Patch, management::SearchedUser};
use kinsync_core::{Field, Micros, Observation, Profile, Properties, Source, UserId, Value, Version, What};

use super::{
    Error, Inner, Progress,
    compare::drift,
    memberships::lacks_scope,
    record::{DriftKind, PropertyTally, Run, RunMode},
    scan::Scanned,
};
use crate::{
    apply::ComparedRows,
    scan_watermark::{ScanNumber, is_compared},
    snapshot,
    state_records::Key,
    store::Row,
};

/// Record of the last comparison.
pub(super) const KEY: Key =
    Key::new("reconcile.properties", "the next scan compares the properties of users");

/// The key that stands for all properties that are not private.
pub const ALL: &str = "*";

/// Which properties are compared, and how often.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PropertyConfig {
    /// Keys of properties, or [`ALL`]. Empty: none. A private property is compared only if its key is among them.
    pub keys: Vec<String>,
    /// Shortest interval between two comparisons. Each is a part of a scan.
    pub every: Duration,
}

impl Default for PropertyConfig {
    fn default() -> Self {
        Self { keys: Vec::new(), every: Duration::from_hours(24) }
    }
}

/// The properties of a user, as listed.
struct Listed {
    user: UserId,
    values: BTreeMap<String, String>,
}

impl Listed {
    /// Decodes a result of the search. `None` without a valid id, or if the result does not contain properties.
    fn new(user: SearchedUser) -> Option<Self> {
        let id = UserId::parse(&user.id).ok()?;
        let values = match user.properties {
            Patch::Absent => return None,
            Patch::Null => BTreeMap::new(),
            Patch::Value(values) => values,
        };
        let values = values.into_iter().filter_map(|(key, value)| Some((key, value.into_value()?)));
        Some(Self { user: id, values: values.collect() })
    }

    /// Returns the keys with a value in the document and none in the list.
    fn lacks(&self, row: Option<&Row>, keys: &BTreeSet<String>) -> Vec<String> {
        let shown = row.and_then(|row| row.state.properties()).into_iter().flat_map(Properties::values);
        let lacking = shown.map(|(key, _)| key).filter(|key| keys.contains(*key));
        lacking.filter(|key| !self.values.contains_key(*key)).map(ToOwned::to_owned).collect()
    }

    /// Returns the observation of the properties that differ; `None` if the join changes nothing, and for a user that is not
    /// stored or deleted: those are left to the scan of users.
    fn compare(&self, row: Option<&Row>, keys: &BTreeSet<String>, at: Micros) -> Option<Observation> {
        let row = row.filter(|row| row.revision > 0 && row.state.is_live())?;
        let known = row.state.properties().cloned().unwrap_or_default();
        // A property that is no longer among the keys has no value any more.
        let former = known.values().map(|(key, _)| key).filter(|key| !keys.contains(*key));
        let wanted = keys.iter().map(String::as_str).map(|key| (key, self.values.get(key)));
        let differing = wanted
            .chain(former.map(|key| (key, None)))
            .filter(|(key, value)| known.value(key) != Some(value.map(String::as_str)));
        let differing: Vec<(String, Option<String>)> =
            differing.map(|(key, value)| (key.to_owned(), value.cloned())).collect();
        if differing.is_empty() {
            return None;
        }
        let profile = |version: &Version| {
            Profile::new()
                .with(Field::Properties, Value::Properties(Properties::read(differing.clone(), version)))
        };
        let version = snapshot::version(at, &profile(&Version::provisional()));
        if known.clone().join(Properties::read(differing.clone(), &version)) == known {
            return None;
        }
        let what = What::Fields(profile(&version));
        Some(Observation { user: self.user.clone(), version, source: Source::Reconcile, what })
    }
}

impl Inner {
    /// Compares the properties if that is due, and repairs what differs. `None` if it is not. A failure of Kinde here is no failure of
    /// the run, which has compared all users: the result names the reason, and the next scan tries again.
    pub(super) async fn compare_properties(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        progress: Progress<'_>,
    ) -> Result<Option<PropertyTally>, Error> {
        let config = &self.config.properties;
        let last = self.last_comparison(&KEY).await?;
        let is_due = last.is_due(&config.keys, config.every, run.started_at) || run.mode == RunMode::DryRun;
        // Keys that were named before are removed once, also when none is left.
        let has_keys = !config.keys.is_empty() || !last.keys.is_empty();
        if !has_keys || !is_due {
            return Ok(None);
        }
        let mut found = PropertyTally::default();
        match self.compare_all_properties(run, &mut found, scanned, progress).await {
            Err(Error::Kinde(error)) => {
                let reason = format!("properties are not compared: {}", crate::breaker::error_chain(&error));
                tracing::warn!(reason, "the properties of users are not all compared");
                found.not_compared = Some(reason);
                return Ok(Some(found));
            }
            outcome => outcome?,
        }
        if found.not_compared.is_none() {
            self.ended_comparison(&KEY, &config.keys, run).await?;
        }
        Ok(Some(found))
    }

    async fn compare_all_properties(
        &self,
        run: &Run,
        found: &mut PropertyTally,
        scanned: &mut Scanned,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let keys = self.keys_of_properties().await?;
        let mut pages = self.kinde.users_with_properties();
        while let Some(page) = pages.next().await? {
            let at = snapshot::sent_at(&page.timing);
            let listed: Vec<Listed> = page.items.into_iter().filter_map(Listed::new).collect();
            found.users += listed.len() as u64;
            let users: Vec<UserId> = listed.iter().map(|listed| listed.user.clone()).collect();
            let rows = self.retry_store(|| self.store.load(&users)).await?;
            let (mut repairs, mut drifts, mut revisions) = (Vec::new(), Vec::new(), HashMap::new());
            let lacks = |(listed, row): (&Listed, &Option<Row>)| {
                let lacking = listed.lacks(row.as_ref(), &keys);
                (!lacking.is_empty()).then(|| (listed.user.clone(), lacking))
            };
            let lacking: BTreeMap<UserId, Vec<String>> = listed.iter().zip(&rows).filter_map(lacks).collect();
            let problem =
                if lacking.is_empty() { None } else { self.sample_values(&lacking).await?.problem() };
            if let Some(problem) = problem {
                let reason = format!("Kinde's search lacks values of properties, and they stay: {problem}");
                tracing::warn!(users = lacking.len(), reason, "the properties of users are not all compared");
                found.not_compared = Some(reason);
            }
            let is_confirmed = |listed: &Listed| problem.is_none() || !lacking.contains_key(&listed.user);
            for (listed, row) in listed.iter().zip(&rows).filter(|(listed, _)| is_confirmed(listed)) {
                let Some(repair) = listed.compare(row.as_ref(), &keys, at) else { continue };
                repairs.push(repair);
                // The row stays compared: otherwise the next scan would mark it again.
                let is_marked = |row: &&Row| is_compared(&row.metadata);
                revisions.extend(row.as_ref().filter(is_marked).map(|row| (row.id.clone(), row.revision)));
                let fields = vec![Field::Properties];
                drifts.push(drift(listed.user.clone(), DriftKind::FilledIn, fields, row.as_ref()));
            }
            found.changed += repairs.len() as u64;
            let compared = run.writes().map(|_| ComparedRows {
                scan: ScanNumber(scanned.number),
                comparison: scanned.last_comparison,
                revisions,
            });
            self.repair_compared(repairs, drifts, compared.as_ref(), &mut scanned.tally).await?;
            progress(&scanned.tally);
        }
        Ok(())
    }

    /// Returns the keys to compare: those of the settings, and for [`ALL`] those of all user properties that are not private.
    async fn keys_of_properties(&self) -> Result<BTreeSet<String>, Error> {
        let (all, named): (Vec<String>, Vec<String>) =
            self.config.properties.keys.iter().cloned().partition(|key| key == ALL);
        let mut keys: BTreeSet<String> = named.into_iter().collect();
        if !all.is_empty() {
            let defined = self.kinde.user_property_definitions().all().await?.value;
            let public = defined.into_iter().filter(|one| one.is_private.value() == Some(&false));
            keys.extend(public.map(|one| one.key));
        }
        Ok(keys)
    }
}
