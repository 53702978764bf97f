//! Treatment of events that are older than the last complete scan.
//!
//! A complete scan proves, without a write per user, that the stored fields of every user stored at its start equal Kinde's
//! fields at that time or later. An event older than the scan that arrives after it therefore contains nothing new. Only
//! then the proof is written: as a snapshot with the time of the scan and with the fields of the stale event. The state of
//! a user stays the join of its observations, in any order.
//!
//! Without a proof (the scan is still running, the row was inserted after its start, or the event happened between its first
//! and its last page) the stale event is applied like any other, and a check of the user is requested.

use std::collections::BTreeSet;

use kinsync_core::{
    Field, Micros, Observation, Profile, Rank, Register, Source, UserId, UserState, Value, Version, What,
};
use serde::{Deserialize, Serialize};

use crate::{
    snapshot, state_records,
    store::{Error, Row, Store},
};

/// Key of the record in the store.
const KEY: &str = "reconcile.scans";

/// Proof of a complete scan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanWatermark {
    /// Time of the request for the first page, by Kinde's clock.
    pub at: Micros,
    /// Time of the request for the last page, by Kinde's clock.
    #[serde(default)]
    pub until: Micros,
    /// Start by kinsync's clock. Rows inserted later may not have been compared.
    pub started_at: Micros,
    /// Fields that the scan observed of every user.
    pub fields: Vec<Field>,
    /// Users without a proof, because Kinde's responses about them were inconclusive.
    #[serde(default)]
    pub unproven: BTreeSet<UserId>,
}

/// The newest complete scan and the start of the newest scan.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanWatermarks {
    /// Proof of the newest complete scan.
    pub proof: Option<ScanWatermark>,
    /// Start of the newest scan by kinsync's clock; the scan may be running or interrupted.
    pub started_at: Option<Micros>,
}

/// Treatment of the stale events in a delta.
#[derive(Debug, Default)]
pub struct StaleEvents {
    /// Values of the newest complete scan for the fields of the stale events.
    pub proof: Option<UserState>,
    /// Whether a stale event contains a field without a proof: the user needs a check.
    pub needs_check: bool,
}

impl ScanWatermarks {
    /// Loads the record.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        state_records::load(store, KEY).await
    }

    /// Records the start of a scan. Must precede the request for the first page.
    pub async fn record_start(store: &dyn Store, now: Micros) -> Result<(), Error> {
        state_records::change(store, KEY, |scans: &mut Self| {
            scans.started_at = scans.started_at.max(Some(now));
        })
        .await
    }

    /// Records the proof of a complete scan, unless a newer one is recorded.
    pub async fn record_proof(store: &dyn Store, watermark: &ScanWatermark) -> Result<(), Error> {
        let is_newest = |scans: &Self| scans.proof.as_ref().is_none_or(|known| known.at < watermark.at);
        state_records::change(store, KEY, |scans: &mut Self| {
            if is_newest(scans) {
                scans.proof = Some(watermark.clone());
            }
        })
        .await
    }

    /// Classifies the events in `delta` that are older than a scan and newer than the row.
    pub fn classify(&self, row: &Row, delta: &UserState) -> StaleEvents {
        let newest =
            self.started_at.max(self.proof.as_ref().map(|watermark| watermark.at.max(watermark.until)));
        let is_stale = |version: &Version| version.rank == Rank::Event && Some(version.at) <= newest;
        let is_new = |field, observed: &Register| {
            let known = row.state.fields.get(&field);
            known.is_none_or(|known| known.version < observed.version && known.value != observed.value)
        };
        let stale = delta.fields.iter().filter(|(field, observed)| {
            is_stale(&observed.version) && is_new(**field, observed) && snapshot::can_observe(**field)
        });
        let (mut proof, mut needs_check) = (Profile::new(), false);
        let watermark = self.proof.as_ref().filter(|watermark| watermark.covers(row));
        for (field, observed) in stale {
            match watermark
                .filter(|watermark| observed.version.at <= watermark.at)
                .and_then(|watermark| watermark.scanned_value(*field, row))
            {
                Some((field, value)) => proof.set(field, value),
                None => needs_check = true,
            }
        }
        let proof = watermark.filter(|_| !proof.is_empty()).map(|watermark| watermark.snapshot(row, proof));
        StaleEvents { proof, needs_check }
    }
}

impl ScanWatermark {
    fn covers(&self, row: &Row) -> bool {
        row.revision > 0 && row.metadata.inserted_at < self.started_at && !self.unproven.contains(&row.id)
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

    fn snapshot(&self, row: &Row, observed: Profile) -> UserState {
        UserState::of(&Observation {
            user: row.id.clone(),
            version: Version::snapshot(self.at, ""),
            source: Source::Reconcile,
            what: What::Fields(observed),
        })
    }
}

/// Returns the organization codes that a document shows.
pub(crate) fn codes(state: &UserState) -> Option<Value> {
    let codes = state.organizations()?.into_iter().map(|organization| organization.code);
    Some(Value::Codes(codes.collect()))
}
