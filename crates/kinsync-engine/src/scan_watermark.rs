//! Treatment of observations that are older than a comparison by a scan.
//!
//! A scan writes no user that it finds equal to Kinde's. An observation that is older than the comparison and arrives after
//! it contains nothing new, although its version may be newer than that of the stored field. A complete scan therefore
//! records a proof. Only when such an observation arrives, the proof is written: as a snapshot with the time of the scan,
//! for the fields of the observation. The state of a user stays the join of its observations, in any order.
//!
//! A proof covers the rows that its scan compared, and nothing else. Clocks of different machines do not order rows and
//! scans; a counter in the store does. A scan increments it before each load of rows that it compares
//! ([`ScanWatermarks::announce`]), and each write of a row keeps the value of the counter that its writer knew
//! ([`RowMetadata::changed_after`]). A row is covered if a scan compared it before or during the scan of the proof, if no
//! writer that did not know of the last comparison changed it since, and if the scan has not left it undecided.
//!
//! An observation without a proof is applied by its version like any other, and the user is read again.
//!
//! Announcements and proofs carry the term of the lease: after another process has started a scan, a suspended one that
//! continues changes nothing in this record.

use std::collections::BTreeSet;

use kinsync_core::{
    Field, FirstVersions, Memberships, Micros, Observation, Organization, Profile, Register, RowMetadata,
    Source, UserId, UserState, Value, Version, What,
};
use serde::{Deserialize, Serialize};

use crate::{
    snapshot,
    state_records::{self, Key, Term},
    store::{Error, Row, Store},
};

/// Record of the scans.
pub(crate) const KEY: Key =
    Key::new("reconcile.scans", "late events about users request checks until the next complete scan");

/// Maximum undecided users of a scan with a proof. The record is read with each batch of events.
pub const MAX_UNPROVEN: usize = 1000;

/// Proof of a complete scan.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanWatermark {
    /// Time of the request for the first page, by Kinde's clock.
    pub at: Micros,
    /// Number of the last comparison of the scan.
    pub last_comparison: i64,
    /// Fields that the scan observed of every user.
    pub fields: Vec<Field>,
    /// Users without a proof: not listed, or with a difference that the scan could not repair or order.
    pub unproven: BTreeSet<UserId>,
}

/// What scans have compared so far.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScanWatermarks {
    /// Number of the newest comparison, start or end of a scan.
    pub comparison: i64,
    /// The newest scan that has compared rows; it may be running or interrupted.
    pub newest: Option<Comparisons>,
    /// Proof of the newest complete scan.
    pub proof: Option<ScanWatermark>,
}

/// The comparisons of one scan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparisons {
    /// Value of the counter at the start of the scan; identifies the scan.
    pub scan: ScanNumber,
    /// Time before which Kinde made no response that was compared, by Kinde's clock.
    pub from: Micros,
    /// Time after which Kinde made no response that was compared, by Kinde's clock.
    pub until: Micros,
}

/// Identifies a scan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ScanNumber(pub i64);

/// Whether a user must be read again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Recheck {
    /// No.
    #[default]
    No,
    /// If few users wait for a check, else by the next scan: the observation is from the time of the newest scan, and few of
    /// those are older than the comparison of their user.
    IfFew,
    /// Yes.
    Yes,
}

/// Treatment of the stale observations in a delta.
#[derive(Debug, Default)]
pub struct StaleObservations {
    /// Values of the newest complete scan for the fields of the stale observations.
    pub proof: Option<UserState>,
    /// Whether a stale observation contains a field without a proof.
    pub recheck: Recheck,
}

impl ScanWatermarks {
    /// Loads the record.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        state_records::load(store, &KEY).await
    }

    /// Starts a scan under the lease with this term. From here on a scan under an older lease announces and proves nothing.
    /// Returns `None`, and starts nothing, if a process with a newer lease has started a scan.
    pub async fn start(store: &dyn Store, term: Term) -> Result<Option<ScanNumber>, Error> {
        state_records::change_under(store, &KEY, term, Self::begin).await
    }

    /// Announces that a scan is about to compare rows with responses that Kinde made in this time. Must precede the load of
    /// these rows. Returns the number of the comparison, or `None` under an outdated lease.
    pub async fn announce(
        store: &dyn Store,
        term: Term,
        scan: ScanNumber,
        (from, until): (Micros, Micros),
    ) -> Result<Option<i64>, Error> {
        let announce = |scans: &mut Self| scans.compare(scan, from, until);
        state_records::change_under(store, &KEY, term, announce).await
    }

    /// Ends a complete scan: records its proof, unless a later one is recorded or too many users are undecided. Returns a
    /// number that is greater than those of its comparisons, or `None` under an outdated lease.
    pub async fn record_proof(
        store: &dyn Store,
        term: Term,
        watermark: &ScanWatermark,
    ) -> Result<Option<i64>, Error> {
        state_records::change_under(store, &KEY, term, |scans: &mut Self| scans.prove(watermark)).await
    }

    /// Starts a scan. See [`Self::start`].
    pub(crate) fn begin(&mut self) -> ScanNumber {
        self.comparison += 1;
        ScanNumber(self.comparison)
    }

    /// Counts a comparison. See [`Self::announce`].
    pub(crate) fn compare(&mut self, scan: ScanNumber, from: Micros, until: Micros) -> i64 {
        self.comparison += 1;
        // Replaced by each scan, so that one wrong clock has no effect for longer than until the next scan.
        let known = self.newest.filter(|known| known.scan == scan);
        self.newest = Some(Comparisons {
            scan,
            from: known.map_or(from, |known| known.from.min(from)),
            until: known.map_or(until, |known| known.until.max(until)),
        });
        self.comparison
    }

    /// Adds a proof. See [`Self::record_proof`].
    pub(crate) fn prove(&mut self, watermark: &ScanWatermark) -> i64 {
        self.comparison += 1;
        let is_newest =
            self.proof.as_ref().is_none_or(|known| known.last_comparison < watermark.last_comparison);
        if is_newest && watermark.unproven.len() <= MAX_UNPROVEN {
            self.proof = Some(watermark.clone());
        }
        self.comparison
    }

    /// Classifies the observations in `delta` that are older than a comparison. `reader` is the scan that read them, if one
    /// did: they are not older than its own comparisons.
    pub fn classify(
        &self,
        row: &Row,
        delta: &UserState,
        reader: Option<ScanNumber>,
        now: Micros,
    ) -> StaleObservations {
        let mut stale = StaleObservations::default();
        let Some(newest) = self.newest.filter(|newest| reader != Some(newest.scan)) else { return stale };
        let is_deleted = delta.deleted.is_some() && !row.state.clone().join(delta.clone()).is_live();
        if !row.state.is_live() || is_deleted {
            return stale;
        }
        // A proof with a time in the future comes from a wrong clock.
        let proof = self.proof.as_ref().filter(|proof| proof.covers(row) && proof.at <= now);
        let mut proved = Profile::new();
        for (field, observed) in &delta.fields {
            if !snapshot::can_observe(*field) || !self.may_be_news(row, *field, observed) {
                continue;
            }
            let value = proof
                .filter(|proof| observed.version < proof.version())
                .and_then(|proof| proof.scanned_value(*field, row));
            match value {
                // A proof shows the organizations, not the roles.
                Some((field, value)) => {
                    if self.are_roles_news(row, observed, &value) {
                        stale.recheck = stale.recheck.max(newest.recheck(&observed.version));
                    }
                    proved.set(field, value);
                }
                None => stale.recheck = stale.recheck.max(newest.recheck(&observed.version)),
            }
        }
        if self.may_be_first(row, delta) {
            let FirstVersions { event, read, .. } = &delta.first;
            let first = event.as_ref().or(read.as_ref()).map_or(Recheck::No, |first| newest.recheck(first));
            stale.recheck = stale.recheck.max(first);
        }
        stale.proof =
            proof.filter(|_| !proved.is_empty()).map(|proof| proof.snapshot(row.id.clone(), proved));
        stale
    }

    /// Returns whether the observation changes the shown field, or has changed it in a write that may be stale: such an
    /// observation, repeated after an interruption, must not pass for known.
    fn may_be_news(&self, row: &Row, field: Field, observed: &Register) -> bool {
        if observed.version.is_provisional() {
            return false;
        }
        row.state.fields.get(&field).is_none_or(|known| {
            changes(known, observed) || (is_set_by(known, observed) && self.is_unconfirmed(&row.metadata))
        })
    }

    /// Returns whether the observation contradicts known roles or permissions in organizations that the proof shows.
    fn are_roles_news(&self, row: &Row, observed: &Register, proved: &Value) -> bool {
        let Some(proof) = &self.proof else { return false };
        let known = row.state.value(Field::Organizations);
        let (Some(Value::Memberships(known)), Value::Memberships(observed), Value::Codes(codes)) =
            (known, &observed.value, proved)
        else {
            return false;
        };
        let listed: Vec<Organization> = codes.iter().map(Organization::new).collect();
        let known = known.clone().join(Memberships::listed(&listed, &proof.version()));
        let after = known.clone().join(observed.clone());
        known.organizations().into_iter().flatten().any(|known| {
            let after = after.organization(&known.code).unwrap_or_default();
            (known.roles.is_some() && known.roles != after.roles)
                || (known.permissions.is_some() && known.permissions != after.permissions)
        })
    }

    /// Returns whether the user is stored because of this delta.
    fn may_be_first(&self, row: &Row, delta: &UserState) -> bool {
        row.revision == 0 || (row.state.first == delta.first && self.is_unconfirmed(&row.metadata))
    }

    /// Returns whether the newest change may be stale: its writer did not know of the newest comparison, or took the row out
    /// of every proof.
    fn is_unconfirmed(&self, metadata: &RowMetadata) -> bool {
        metadata.compared_since.is_none()
            || metadata.changed_after.is_some_and(|known| known < self.comparison)
    }

    /// Returns the metadata of a row that a source other than the list of a scan changed.
    pub(crate) fn changed(&self, before: &Row, after: &UserState, recheck: Recheck) -> RowMetadata {
        let mut metadata = before.metadata.clone();
        let is_same = |a: &UserState, b: &UserState| (&a.deleted, &a.confirmed) == (&b.deleted, &b.confirmed);
        if before.revision > 0 && before.state.fields == after.fields && is_same(&before.state, after) {
            return metadata;
        }
        let known = metadata.changed_after.map_or(self.comparison, |known| known.min(self.comparison));
        metadata.changed_after = Some(known);
        if recheck > Recheck::No || !is_same(&before.state, after) {
            metadata.compared_since = None;
        }
        metadata
    }
}

/// Marks a row that this comparison found equal or repaired.
pub(crate) fn mark_compared(metadata: &mut RowMetadata, comparison: i64) {
    metadata.compared_since.get_or_insert(comparison);
    metadata.changed_after = None;
}

/// Returns whether [`mark_compared`] has nothing to do.
pub(crate) fn is_compared(metadata: &RowMetadata) -> bool {
    metadata.compared_since.is_some() && metadata.changed_after.is_none()
}

impl Comparisons {
    fn recheck(&self, version: &Version) -> Recheck {
        match version.at {
            _ if version.is_provisional() => Recheck::No,
            at if at <= self.from => Recheck::Yes,
            at if at <= self.until => Recheck::IfFew,
            _ => Recheck::No,
        }
    }
}

impl ScanWatermark {
    /// Returns whether the scan compared this row.
    pub(crate) fn covers(&self, row: &Row) -> bool {
        let last = self.last_comparison;
        row.metadata.compared_since.is_some_and(|since| since <= last)
            && row.metadata.changed_after.is_none_or(|known| known >= last)
            && !self.unproven.contains(&row.id)
    }

    fn version(&self) -> Version {
        Version::snapshot(self.at, "")
    }

    /// Returns the field and the value that the scan observed for a field of the row.
    fn scanned_value(&self, field: Field, row: &Row) -> Option<(Field, Value)> {
        let (scanned, value) = match field {
            // A scan observes the codes of organizations, not the roles in them.
            Field::Organizations => (Field::OrganizationCodes, codes(&row.state)?),
            field => (field, row.state.value(field)?.clone()),
        };
        self.fields.contains(&scanned).then_some((scanned, value))
    }

    fn snapshot(&self, user: UserId, observed: Profile) -> UserState {
        let proof = UserState::of(&Observation {
            user,
            version: self.version(),
            source: Source::Reconcile,
            what: What::Fields(observed),
        });
        // A proof shows nothing about the age of the user.
        UserState { first: FirstVersions::default(), ..proof }
    }
}

/// Returns whether an observation of the field changes what the document shows. Memberships have versions of their own, and
/// the version of the register orders none of them.
fn changes(known: &Register, observed: &Register) -> bool {
    match (&known.value, &observed.value) {
        (Value::Memberships(known), Value::Memberships(observed)) => {
            known.clone().join(observed.clone()).organizations() != known.organizations()
        }
        _ => known.version < observed.version && known.value != observed.value,
    }
}

/// Returns whether the observation determines the stored value, or a part of the memberships.
fn is_set_by(known: &Register, observed: &Register) -> bool {
    match &known.value {
        Value::Memberships(known) => known.contains(&observed.version),
        _ => known == observed,
    }
}

/// Returns the organization codes that a document shows.
pub(crate) fn codes(state: &UserState) -> Option<Value> {
    let codes = state.organizations()?.into_iter().map(|organization| organization.code);
    Some(Value::Codes(codes.collect()))
}

#[cfg(test)]
mod tests {
    use kinsync_core::Directory;

    use super::*;
    use crate::apply::join_into;

    const NOW: Micros = Micros(1_000);

    fn ada(version: Version, what: What) -> Observation {
        let user = UserId::parse("kp_ada").expect("an id");
        Observation { user, version, source: Source::Webhook, what }
    }

    fn named(name: &str) -> Profile {
        Profile::new().with(Field::FirstName, name)
    }

    /// A user that was deleted at 10 and restored at 15. A complete scan at 30 read the name A.
    fn restored() -> (Row, ScanWatermarks) {
        let mut watermarks = ScanWatermarks::default();
        let scan = watermarks.begin();
        let last_comparison = watermarks.compare(scan, Micros(29), Micros(31));
        let unproven = BTreeSet::new();
        watermarks.prove(&ScanWatermark {
            at: Micros(30),
            last_comparison,
            fields: vec![Field::FirstName],
            unproven,
        });
        let history = [
            ada(Version::event(Micros(10), "deletion"), What::Deleted),
            ada(Version::snapshot(Micros(15), "read"), What::Exists(named("A"))),
        ];
        let row = Row::unknown(history[0].user.clone());
        let state = history.iter().fold(UserState::default(), UserState::observe);
        let mut row = Row { state, revision: 1, ..row };
        mark_compared(&mut row.metadata, last_comparison);
        (row, watermarks)
    }

    #[test]
    fn a_repeated_deletion_in_a_batch_leaves_the_proof_of_a_restored_user() {
        let (row, watermarks) = restored();
        let late = ada(Version::event(Micros(22), "late"), What::Fields(named("B")));
        let deletion = ada(Version::event(Micros(10), "deletion"), What::Deleted);
        let (next, _) = join_into(&row, vec![deletion, late], NOW, (&watermarks, None), Directory::default());
        let state = next.expect("the late event is new").state;
        assert!(state.is_live());
        assert_eq!(state.text(Field::FirstName), Some("A"), "the scan read A later than B was set");
    }
}
