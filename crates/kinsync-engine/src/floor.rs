//! What scans make of events that come late.
//!
//! A complete scan proves, without a write for each user: of every user who was stored when it
//! began, the stored fields are what Kinde had at that time or later. So an event older than the
//! scan that arrives after it says nothing new. The proof is written down only then, as what it
//! is: a snapshot of the time of the scan, of the field that the late event speaks of. The state
//! of a user remains the join of observations, in any order.
//!
//! Where there is no proof, because the scan is still running, or the row is younger than it, or the
//! event is from between its first page and its last, a late event is applied as any other, and
//! Kinde is asked about the user.

use std::collections::BTreeSet;

use kinsync_core::{
    Field, Micros, Observation, Profile, Rank, Register, Source, UserId, UserState, Value, Version, What,
};
use serde::{Deserialize, Serialize};

use crate::{
    kept, snapshot,
    store::{Error, Row, Store},
};

/// Where it is kept.
const KEY: &str = "reconcile.scans";

/// What a complete scan proved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Floor {
    /// When its first page was asked for, by Kinde's clock.
    pub at: Micros,
    /// When its last page was asked for, by Kinde's clock.
    #[serde(default)]
    pub until: Micros,
    /// When it began, by our clock: rows that were made later were perhaps not compared.
    pub began: Micros,
    /// The fields that it told of every user.
    pub fields: Vec<Field>,
    /// Users of whom it proved nothing: Kinde gave no clear answer.
    #[serde(default)]
    pub open: BTreeSet<UserId>,
}

/// The newest complete scan, and the one that may be running.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scans {
    /// What the newest complete scan proved.
    pub proved: Option<Floor>,
    /// When the newest scan began, by our clock; it may have been cut.
    pub begun: Option<Micros>,
}

/// What is to be made of late events in a delta.
#[derive(Debug, Default)]
pub struct Late {
    /// What the newest complete scan told of the fields that they speak of.
    pub proved: Option<UserState>,
    /// Whether some speak of what is not proved: Kinde has to be asked.
    pub is_open: bool,
}

impl Scans {
    /// As they are kept.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        kept::load(store, KEY).await
    }

    /// Keeps that a scan begins, before its first page is asked for.
    pub async fn begin(store: &dyn Store, now: Micros) -> Result<(), Error> {
        kept::change(store, KEY, |scans: &mut Self| scans.begun = scans.begun.max(Some(now))).await
    }

    /// Keeps what a complete scan proved, unless a newer one did.
    pub async fn prove(store: &dyn Store, floor: &Floor) -> Result<(), Error> {
        let is_older = |scans: &Self| scans.proved.as_ref().is_none_or(|known| known.at < floor.at);
        kept::change(store, KEY, |scans: &mut Self| {
            if is_older(scans) {
                scans.proved = Some(floor.clone());
            }
        })
        .await
    }

    /// Judges the events in `delta` that are older than a scan and newer than the row.
    pub fn judge(&self, row: &Row, delta: &UserState) -> Late {
        let newest = self.begun.max(self.proved.as_ref().map(|floor| floor.at.max(floor.until)));
        let is_late = |version: &Version| version.rank == Rank::Event && Some(version.at) <= newest;
        let is_news = |field, told: &Register| {
            let known = row.state.fields.get(&field);
            known.is_none_or(|known| known.version < told.version && known.value != told.value)
        };
        let late = delta.fields.iter().filter(|(field, told)| {
            is_late(&told.version) && is_news(**field, told) && snapshot::tells(**field)
        });
        let (mut proved, mut is_open) = (Profile::new(), false);
        let floor = self.proved.as_ref().filter(|floor| floor.covers(row));
        for (field, told) in late {
            match floor.filter(|floor| told.version.at <= floor.at).and_then(|floor| floor.told(*field, row))
            {
                Some((field, value)) => proved.set(field, value),
                None => is_open = true,
            }
        }
        let proved = floor.filter(|_| !proved.is_empty()).map(|floor| floor.snapshot(row, proved));
        Late { proved, is_open }
    }
}

impl Floor {
    fn covers(&self, row: &Row) -> bool {
        row.revision > 0 && row.standing.inserted_at < self.began && !self.open.contains(&row.id)
    }

    /// What the scan told of this field of the row, and as which field.
    fn told(&self, field: Field, row: &Row) -> Option<(Field, Value)> {
        let (scanned, value) = match field {
            // Roles are told by events alone; who is a member, the scan knows.
            Field::Organizations => (Field::OrganizationCodes, codes(&row.state)),
            field => (field, row.state.value(field)?.clone()),
        };
        self.fields.contains(&scanned).then_some((scanned, value))
    }

    fn snapshot(&self, row: &Row, told: Profile) -> UserState {
        UserState::of(&Observation {
            user: row.id.clone(),
            version: Version::snapshot(self.at, ""),
            source: Source::Reconcile,
            what: What::Fields(told),
        })
    }
}

/// The codes of the organizations that a document shows.
pub(crate) fn codes(state: &UserState) -> Value {
    let codes = state.organizations().into_iter().map(|organization| organization.code);
    Value::Codes(codes.collect())
}
