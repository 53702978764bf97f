//! What scans make of events that come stale.
//!
//! A complete scan proves, without a write for each user: of every user who was stored when it
//! began, the stored fields are what Kinde had at that time or later. So an event older than the
//! scan that arrives after it says nothing new. The proof is written down only then, as what it
//! is: a snapshot of the time of the scan, of the field that the stale event speaks of. The state
//! of a user remains the join of observations, in any order.
//!
//! Where there is no proof, because the scan is still running, or the row is younger than it, or the
//! event is from between its first page and its last, a stale event is applied as any other, and
//! Kinde is asked about the user.

use std::collections::BTreeSet;

use kinsync_core::{
    Field, Micros, Observation, Profile, Rank, Register, Source, UserId, UserState, Value, Version, What,
};
use serde::{Deserialize, Serialize};

use crate::{
    snapshot, state_records,
    store::{Error, Row, Store},
};

/// Where it is kept.
const KEY: &str = "reconcile.scans";

/// What a complete scan proof.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanWatermark {
    /// When its first page was asked for, by Kinde's clock.
    pub at: Micros,
    /// When its last page was asked for, by Kinde's clock.
    #[serde(default)]
    pub until: Micros,
    /// When it began, by our clock: rows that were made later were perhaps not compared.
    pub started_at: Micros,
    /// The fields that it observed of every user.
    pub fields: Vec<Field>,
    /// Users of whom it proof nothing: Kinde gave no clear answer.
    #[serde(default)]
    pub unproven: BTreeSet<UserId>,
}

/// The newest complete scan, and the one that may be running.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanWatermarks {
    /// What the newest complete scan proof.
    pub proof: Option<ScanWatermark>,
    /// When the newest scan began, by our clock; it may have been cut.
    pub started_at: Option<Micros>,
}

/// What is to be made of stale events in a delta.
#[derive(Debug, Default)]
pub struct StaleEvents {
    /// What the newest complete scan observed of the fields that they speak of.
    pub proof: Option<UserState>,
    /// Whether some speak of what is not proof: Kinde has to be asked.
    pub needs_check: bool,
}

impl ScanWatermarks {
    /// As they are kept.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        state_records::load(store, KEY).await
    }

    /// Keeps that a scan begins, before its first page is asked for.
    pub async fn record_start(store: &dyn Store, now: Micros) -> Result<(), Error> {
        state_records::change(store, KEY, |scans: &mut Self| {
            scans.started_at = scans.started_at.max(Some(now));
        })
        .await
    }

    /// Keeps what a complete scan proof, unless a newer one did.
    pub async fn record_proof(store: &dyn Store, watermark: &ScanWatermark) -> Result<(), Error> {
        let is_older = |scans: &Self| scans.proof.as_ref().is_none_or(|known| known.at < watermark.at);
        state_records::change(store, KEY, |scans: &mut Self| {
            if is_older(scans) {
                scans.proof = Some(watermark.clone());
            }
        })
        .await
    }

    /// Judges the events in `delta` that are older than a scan and newer than the row.
    pub fn classify(&self, row: &Row, delta: &UserState) -> StaleEvents {
        let newest =
            self.started_at.max(self.proof.as_ref().map(|watermark| watermark.at.max(watermark.until)));
        let is_late = |version: &Version| version.rank == Rank::Event && Some(version.at) <= newest;
        let is_new = |field, observed: &Register| {
            let known = row.state.fields.get(&field);
            known.is_none_or(|known| known.version < observed.version && known.value != observed.value)
        };
        let stale = delta.fields.iter().filter(|(field, observed)| {
            is_late(&observed.version) && is_new(**field, observed) && snapshot::can_observe(**field)
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

    /// What the scan observed of this field of the row, and as which field.
    fn scanned_value(&self, field: Field, row: &Row) -> Option<(Field, Value)> {
        let (scanned, value) = match field {
            // Roles are observed by events alone; who is a member, the scan knows.
            Field::Organizations => (Field::OrganizationCodes, codes(&row.state)),
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

/// The codes of the organizations that a document shows.
pub(crate) fn codes(state: &UserState) -> Value {
    let codes = state.organizations().into_iter().map(|organization| organization.code);
    Value::Codes(codes.collect())
}
