//! Disk space that lets acks succeed on a full disk.
//!
//! Deleting rows needs room in the write-ahead log, and moving the log into the file may need room
//! there. So a file of that size is kept and given up when the disk is full. Until it can be written
//! again the queue accepts no entry.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::file::{PAGE, WAL_PAGES, private_file};

/// The log at its largest, twice; half of it will do.
pub(super) const SIZE: u64 = 2 * WAL_PAGES as u64 * PAGE as u64;
/// Shortest time between two attempts to write it.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    is_there: bool,
    tried: Option<Instant>,
}

impl Reserve {
    pub(super) fn new(dir: &Path) -> Self {
        let path = dir.join("reserve");
        let is_there = fs::metadata(&path).is_ok_and(|found| found.len() >= SIZE / 2);
        Self { path, is_there, tried: None }
    }

    /// Writes the file if it is not there. False while the disk is too full for it.
    pub(super) fn restore(&mut self) -> bool {
        let is_early = self.tried.is_some_and(|at| at.elapsed() < PAUSE);
        if !self.is_there && !is_early {
            self.tried = Some(Instant::now());
            match self.write(SIZE).or_else(|_| self.write(SIZE / 2)) {
                Ok(()) => self.is_there = true,
                Err(error) => {
                    tracing::debug!(%error, path = %self.path.display(), "no room for the queue's reserve");
                    self.release();
                }
            }
        }
        self.is_there
    }

    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }

    /// Frees the space.
    pub(super) fn release(&mut self) {
        let _ = fs::remove_file(&self.path);
        self.is_there = false;
    }

    fn write(&self, size: u64) -> io::Result<()> {
        let mut file = private_file().open(&self.path)?;
        #[cfg(target_os = "linux")]
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
            Ok(()) => return Ok(()),
            // Writing would take the rest of the disk from others for a moment.
            Err(rustix::io::Errno::NOSPC) => return Err(rustix::io::Errno::NOSPC.into()),
            Err(_) => {}
        }
        file.set_len(0)?;
        let block = vec![0; 1 << 20];
        for _ in 0..size >> 20 {
            file.write_all(&block)?;
        }
        file.sync_all()
    }
}
