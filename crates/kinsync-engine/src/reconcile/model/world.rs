//! The states of the model, each in one form: numbers that make no difference to any later step are not kept.

use std::hash::{Hash, Hasher};

use kinsync_core::{Micros, Observation, RowMetadata, Source, UserState, Version, What};

use super::{FIELDS, History, Remote, explore::Shared, id, time};
use crate::{
    reconcile::compare::RemoteUser,
    scan_watermark::{Comparisons, ScanNumber, ScanWatermark, ScanWatermarks},
    store::Row,
};

/// Maximum changes of a history.
pub(super) const CHANGES: usize = 4;

/// The part of a row that a step can change.
impl Hash for Row {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (&self.id, &self.state, &self.metadata, self.revision, &self.pending_emails).hash(hasher);
    }
}

/// A response of Kinde about one user.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Response {
    pub(super) user: usize,
    /// Changes that it contains.
    pub(super) changes: usize,
    pub(super) at: Micros,
}

impl Response {
    pub(super) fn not_after(self) -> Micros {
        time(self.changes, 90)
    }

    pub(super) fn read(self, history: &History) -> Option<RemoteUser> {
        let profile = history.truth(self.user, self.changes)?.profile();
        Some(RemoteUser::of(id(self.user), profile, self.at, self.not_after()))
    }
}

/// A process that applies events.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Writer {
    #[default]
    Idle,
    /// The row and the watermarks are loaded, and a check is requested if the event is stale.
    HasLoaded { change: usize, next: Shared<Row>, must_validate: bool },
}

impl Writer {
    /// The writers are alike: their order is this one.
    fn order(self) -> (usize, u64, bool) {
        match self {
            Self::Idle => (0, 0, false),
            Self::HasLoaded { change, next, must_validate } => (change + 1, next.hash, must_validate),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Step {
    #[default]
    NotStarted,
    /// Fetches the page of this user; after the last user it reads what is not listed.
    Next(usize),
    /// A page is fetched and announced, and the row of its user is loaded.
    HasLoaded {
        response: Response,
        comparison: i64,
        row: Shared<Row>,
        /// Whether the stored row has not been written since.
        is_current: bool,
    },
    /// Read a user that is not listed.
    Read(Response),
    Ended,
}

/// A scan: a page for each user, single reads of the users that are not listed, a proof.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Scan {
    pub(super) step: Step,
    pub(super) number: i64,
    pub(super) last_comparison: i64,
    /// Time of the first page, and the changes that it could contain.
    pub(super) first: Option<(Micros, usize)>,
    /// Changes of each listed user that the list contained.
    pub(super) listed: [Option<usize>; 2],
    pub(super) is_unproven: [bool; 2],
    pub(super) passed: [bool; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct World {
    pub(super) changes: usize,
    /// Whether a change at Kinde is explored now. It commutes with every step that does not read Kinde, so it follows the
    /// start, a read or a change.
    pub(super) may_change: bool,
    /// Copies of each event that are queued.
    pub(super) queued: [u8; CHANGES],
    /// The revision is 1 in every stored row, and 0 in the row of an unknown user.
    pub(super) rows: [Shared<Row>; 2],
    pub(super) watermarks: Shared<ScanWatermarks>,
    pub(super) checks: [bool; 2],
    pub(super) writers: [Writer; 2],
    pub(super) scan: Scan,
    /// The response of a running check, and whether the check was requested again.
    pub(super) checker: Option<(Response, bool)>,
    pub(super) kills: u8,
    pub(super) duplicates: u8,
    /// For each user the number of the newest change with a lost event that neither a check has repaired since nor a scan
    /// with a proof compared; 0: none.
    pub(super) lost: [usize; 2],
    /// Changes of each user that the scan with the proof listed.
    pub(super) proved: [Option<usize>; 2],
}

impl World {
    pub(super) fn new(history: &History) -> Self {
        let watermarks = ScanWatermarks {
            comparison: 1,
            newest: Some(Comparisons { scan: ScanNumber(1), from: Micros(-1_000), until: Micros(-900) }),
            proof: Some(ScanWatermark {
                at: Micros(-1_000),
                last_comparison: 1,
                fields: FIELDS.to_vec(),
                unproven: [].into(),
            }),
        };
        let row = |n: usize| history.before[n].map_or_else(|| Row::unknown(id(n)), |user| stored(n, user));
        Self {
            changes: 0,
            may_change: true,
            queued: [0; CHANGES],
            rows: [0, 1].map(|n| Shared::new(row(n))),
            watermarks: Shared::new(watermarks),
            checks: [false; 2],
            writers: Default::default(),
            scan: Scan::default(),
            checker: None,
            kills: history.kills,
            duplicates: history.duplicates,
            lost: [0; 2],
            proved: history.before.map(|user| user.map(|_| 0)),
        }
    }

    pub(super) fn request(&mut self, user: usize) {
        self.checks[user] = true;
        if let Some((response, is_again)) = &mut self.checker {
            *is_again |= response.user == user;
        }
    }

    /// Replaces a row. A writer that has loaded the former one would be refused by compare-and-set and load again: its event
    /// is queued at once, which permits every later step that a later refusal permits.
    pub(super) fn write(&mut self, history: &History, user: usize, next: Shared<Row>) {
        self.rows[user] = next;
        for writer in &mut self.writers {
            if let Writer::HasLoaded { change, .. } = *writer
                && history.changes[change].0 == user
            {
                self.queued[change] += 1;
                *writer = Writer::Idle;
            }
        }
        if let Step::HasLoaded { response, is_current, .. } = &mut self.scan.step {
            *is_current &= response.user != user;
        }
    }

    /// Replaces the record of the scans. Writers that know the former one validate what they write.
    pub(super) fn record(&mut self, watermarks: Shared<ScanWatermarks>) {
        self.watermarks = watermarks;
        for writer in &mut self.writers {
            if let Writer::HasLoaded { must_validate, .. } = writer {
                *must_validate = true;
            }
        }
    }

    /// Notes that the store has these changes of a user, apart from later ones.
    pub(super) fn compared(&mut self, user: usize, changes: usize) {
        if self.lost[user] <= changes {
            self.lost[user] = 0;
        }
    }

    pub(super) fn sort_writers(&mut self) {
        if self.writers[0].order() > self.writers[1].order() {
            self.writers.swap(0, 1);
        }
    }

    /// Returns Kinde's response about a user.
    pub(super) fn response(&self, user: usize) -> Response {
        Response { user, changes: self.changes, at: time(self.changes, 50) }
    }

    /// Returns Kinde's responses in a page: with the right time and, for the first user, with one before its newest change.
    pub(super) fn pages(&self, user: usize) -> impl Iterator<Item = Response> + use<> {
        let response = self.response(user);
        let early = Response { at: Micros(response.at.0 - 100), ..response };
        [response].into_iter().chain((user == 0).then_some(early))
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.queued == [0; CHANGES]
            && self.checks == [false; 2]
            && self.checker.is_none()
            && self.writers == [Writer::Idle; 2]
    }
}

fn stored(n: usize, user: Remote) -> Row {
    let (version, what) = (Version::event(Micros(-500), "created"), What::Fields(user.profile()));
    let created = Observation { user: id(n), version, source: Source::Webhook, what };
    let metadata = RowMetadata { compared_since: Some(1), ..RowMetadata::default() };
    Row { state: UserState::of(&created), metadata, revision: 1, ..Row::unknown(id(n)) }
}
