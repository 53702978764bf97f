//! A file that only grows, and whose end is known to be good.

use std::{io, path::Path};

use super::disk::{Disk, DiskFile};

/// Why an append did not happen. Whatever of it is in the file does not count.
#[derive(Debug)]
pub(super) enum Fault {
    /// The file is as it was before: appending may go on.
    Undone(io::Error),
    /// Nothing may be appended to this file any more: its end is unknown, or the system has
    /// dropped writes that it could not sync and would call the next sync a success.
    Broken(io::Error),
}

impl Fault {
    pub(super) fn into_source(self) -> io::Error {
        match self {
            Self::Undone(source) | Self::Broken(source) => source,
        }
    }
}

#[derive(Debug)]
pub(super) struct Tail {
    file: Box<dyn DiskFile>,
    len: u64,
    synced: u64,
}

impl Tail {
    /// Makes the file with these first bytes, durable but for its name.
    pub(super) fn create(disk: &dyn Disk, path: &Path, first: &[u8]) -> io::Result<Self> {
        let mut file = disk.create(path)?;
        file.write(0, first)?;
        file.sync()?;
        let len = first.len() as u64;
        Ok(Self { file, len, synced: len })
    }

    /// Goes on behind the first `len` bytes of an existing file; what follows them is cut off.
    pub(super) fn resume(mut file: Box<dyn DiskFile>, len: u64) -> io::Result<Self> {
        if file.size()? > len {
            file.truncate(len)?;
        }
        Ok(Self { file, len, synced: len })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends without waiting for the disk.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if let Err(error) = self.file.write(self.len, bytes) {
            return Err(match self.file.truncate(self.len) {
                Ok(()) => Fault::Undone(error),
                Err(_) => Fault::Broken(error),
            });
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Makes all that was appended durable.
    pub(super) fn sync(&mut self) -> Result<(), Fault> {
        if let Err(error) = self.file.sync() {
            // The caller must not use this file again either way; what was not synced had better
            // not be found after a restart, though that would do no harm.
            let _ = self.file.truncate(self.synced);
            return Err(Fault::Broken(error));
        }
        self.synced = self.len;
        Ok(())
    }
}
