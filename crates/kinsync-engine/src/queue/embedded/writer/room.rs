//! The disk space of the file: acks on a full disk, and what an empty or searched queue gives back.

use super::{Command, Writer};
use crate::queue::{
    Error,
    embedded::{
        file::{self, PAGE},
        reserve,
    },
};

/// Size above which the file of an empty queue is made small again: 64 MiB, and as much more as dead letters may need.
const LARGE: u64 = 64 << 20;

impl Writer {
    /// Frees the reserve, so that acks can be written to a full disk.
    pub(super) fn make_room(&mut self) {
        self.reserve.release();
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let done = self.file.sqlite().query_row(checkpoint, [], |_| Ok(()));
        tracing::debug!(
            error = done.err().map(tracing::field::display),
            "the disk is full: acks use the reserve"
        );
        // The next command deletes what is acked.
        let acked = self.shared.state().take_acked();
        if self.transact(&[Command::Acked], &acked).is_err() {
            self.shared.state().restore_acked(acked);
        }
    }

    /// Whether the disk has no more room than the reserve takes. A page may fit all the same: into what the log has written before, or what
    /// the queue gave up.
    #[cfg(unix)]
    pub(super) fn is_disk_full(&self) -> bool {
        // A file system that does not count fails when it is written.
        rustix::fs::statvfs(self.file.dir()).is_ok_and(|disk| {
            disk.f_blocks > 0 && disk.f_bavail.saturating_mul(disk.f_frsize) < reserve::SIZE
        })
    }

    #[cfg(not(unix))]
    pub(super) fn is_disk_full(&self) -> bool {
        false
    }

    pub(super) fn no_room(&self) -> Error {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        file::unavailable(self.file.path(), full)
    }

    /// Frees the disk space of an empty queue.
    pub(super) fn shrink(&mut self) {
        if self.shared.state().depth() > 0 {
            return;
        }
        let pages = self.file.sqlite().pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0));
        if pages.is_ok_and(|pages| {
            pages.unsigned_abs() * u64::from(PAGE) > LARGE + self.config.dead_letters.max_bytes
        }) && let Err(error) = self.file.sqlite().execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")
        {
            tracing::debug!(%error, "the file of the empty queue stays large");
        }
    }

    /// Rewrites the file, so that it contains nothing that was removed. A large one stays as it is: its free pages may contain
    /// removed entries until it is empty or the search is repeated.
    pub(super) fn scrub(&mut self) {
        let pages = self.file.sqlite().pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0));
        let is_small = pages.is_ok_and(|pages| {
            pages.unsigned_abs() * u64::from(PAGE) <= LARGE + self.config.dead_letters.max_bytes
        });
        let rewrite = if is_small {
            "VACUUM; PRAGMA wal_checkpoint(TRUNCATE)"
        } else {
            "PRAGMA wal_checkpoint(TRUNCATE)"
        };
        if let Err(error) = self.file.sqlite().execute_batch(rewrite) {
            tracing::warn!(%error, "the queue's file may still contain removed entries in free pages");
        }
    }
}
