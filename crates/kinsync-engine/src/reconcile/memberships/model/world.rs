//! The states of the model.

use kinsync_core::{Directory, Entry, Field, Micros, RowMetadata, Version};

use super::{History, NOW, id, kind, memberships, object_id};
use crate::{
    apply::join_into,
    directory::{Kind, Stored},
    reconcile::model::explore::Shared,
    scan_watermark::{Comparisons, ScanNumber, ScanWatermark, ScanWatermarks},
    store::Row,
};

/// Maximum changes of a history.
pub(super) const CHANGES: usize = 3;

/// The process that applies events of the user.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Writer {
    Idle,
    /// The row, the records and the watermarks are loaded, and a check is requested if the event is stale.
    HasLoaded {
        change: usize,
        next: Shared<Row>,
        must_validate: bool,
    },
    /// The row is written. The records and the watermarks are read once more.
    HasWritten {
        change: usize,
        must_validate: bool,
    },
}

/// The scan, by the changes that its responses contain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Step {
    NotStarted,
    Page,
    HasPage { changes: usize, comparison: i64, row: Shared<Row>, is_current: bool },
    List(Kind),
    HasList(Kind, usize),
    Members,
    HasMembers(usize),
    Unread,
    HasUnread(usize),
    Prove,
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Scan {
    pub(super) step: Step,
    pub(super) number: i64,
    pub(super) last_comparison: i64,
    /// Changes that the page contains.
    pub(super) page: usize,
    /// Changes that the list of roles contains.
    pub(super) roles: usize,
    /// Whether everything was read and repaired.
    pub(super) is_whole: bool,
    /// Whether the difference of the user could not be ordered.
    pub(super) is_unproven: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct World {
    pub(super) changes: usize,
    /// Whether a change at Kinde is explored now: it commutes with every step that does not read Kinde.
    pub(super) may_change: bool,
    /// Copies of each event that are queued.
    pub(super) queued: [u8; CHANGES],
    pub(super) row: Shared<Row>,
    /// The records of the organization and the roles.
    pub(super) records: [Option<Shared<Stored>>; 3],
    /// Versions of the complete lists of organizations and roles.
    pub(super) listed: [Option<Micros>; 2],
    pub(super) watermarks: Shared<ScanWatermarks>,
    pub(super) check: bool,
    pub(super) writer: Writer,
    pub(super) scan: Scan,
    /// The changes in the response of a running check, and whether it was requested again.
    pub(super) checker: Option<(usize, bool)>,
    pub(super) kills: u8,
    pub(super) duplicates: u8,
    /// The number of the newest change with a lost event that no complete scan has read; 0: none.
    pub(super) lost: usize,
}

impl World {
    pub(super) fn new(history: &History) -> Self {
        let record = |object| {
            let version = Version::event(Micros(-500), "created");
            let created = history.before.object(object, &version, false)?;
            let listed = Version::snapshot(Micros(-450), "");
            let listed = history.before.object(object, &listed, true).filter(|_| history.is_listed);
            let entry = created.join(listed.unwrap_or_default());
            Some(Shared::new(Stored { kind: kind(object), entry, changes: 1, spread: 1 }))
        };
        let watermarks = ScanWatermarks {
            comparison: 1,
            newest: Some(Comparisons { scan: ScanNumber(1), from: Micros(-1_000), until: Micros(-900) }),
            proof: Some(ScanWatermark {
                at: Micros(-1_000),
                last_comparison: 1,
                fields: vec![Field::OrganizationCodes],
                unproven: [].into(),
            }),
        };
        let scan = Scan {
            step: Step::NotStarted,
            number: 0,
            last_comparison: 0,
            page: 0,
            roles: 0,
            is_whole: true,
            is_unproven: false,
        };
        let mut world = Self {
            changes: 0,
            may_change: true,
            queued: [0; CHANGES],
            row: Shared::new(Row::unknown(id())),
            records: [0, 1, 2].map(record),
            listed: [None; 2],
            watermarks: Shared::new(watermarks),
            check: false,
            writer: Writer::Idle,
            scan,
            checker: None,
            kills: 1,
            duplicates: history.duplicates,
            lost: 0,
        };
        let event = memberships(history.before, Version::event(Micros(-400), "joined"));
        let (row, _) =
            join_into(&world.row, vec![event], NOW, (&ScanWatermarks::default(), None), world.directory());
        let metadata = RowMetadata { compared_since: Some(1), ..RowMetadata::default() };
        world.row = Shared::new(Row { metadata, revision: 1, ..row.expect("a new user") });
        world
    }

    /// Returns what is known of the organization, the roles and the permission.
    pub(super) fn directory(&self) -> Directory {
        let entry = |object: usize| {
            let stored = self.records[object].map(|stored| stored.entry.clone());
            (object_id(object).to_owned(), stored.unwrap_or_default())
        };
        let permission = (super::PERMISSION.to_owned(), Entry::default());
        [0, 1, 2].map(entry).into_iter().chain([permission]).collect()
    }

    pub(super) fn listed(&self, kind: Kind) -> Option<Version> {
        self.listed[usize::from(kind == Kind::Role)].map(|at| Version::snapshot(at, ""))
    }

    pub(super) fn request(&mut self) {
        self.check = true;
        if let Some((_, is_again)) = &mut self.checker {
            *is_again = true;
        }
    }

    /// Replaces the row. A writer that has loaded the former one is refused by compare-and-set: its event is queued at once.
    pub(super) fn write(&mut self, next: Shared<Row>) {
        self.row = next;
        if let Writer::HasLoaded { change, .. } = self.writer {
            self.queued[change] += 1;
            self.writer = Writer::Idle;
        }
        if let Step::HasPage { is_current, .. } = &mut self.scan.step {
            *is_current = false;
        }
    }

    /// Replaces the record of the scans. A writer that knows the former one validates what it writes.
    pub(super) fn record(&mut self, watermarks: Shared<ScanWatermarks>) {
        self.watermarks = watermarks;
        if let Writer::HasLoaded { must_validate, .. } | Writer::HasWritten { must_validate, .. } =
            &mut self.writer
        {
            *must_validate = true;
        }
    }

    /// Returns whether the row may not show a record as it is.
    pub(super) fn is_due(&self) -> bool {
        self.records.iter().flatten().any(|stored| stored.is_due())
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.queued == [0; CHANGES]
            && !self.check
            && self.checker.is_none()
            && self.writer == Writer::Idle
            && !self.is_due()
    }
}
