//! The folder of one run: logs, MongoDB's files, queues. Gone at the end, and at the next start if this one was killed.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::cli::Options;

/// Where a run keeps its files, and where the things are that it measures.
#[derive(Debug)]
pub struct Work {
    root: PathBuf,
    folder: PathBuf,
    kinsync: PathBuf,
    emulator: PathBuf,
    keep: bool,
    // Held for as long as the run lasts.
    _lock: File,
}

impl Work {
    /// Takes the lock and an empty folder, on the disk that holds the project.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = bench.parent().context("bench/ has a folder above it")?.to_owned();
        let target = bench.join("target");
        fs::create_dir_all(&target)?;
        let lock = File::create(target.join("work.lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another bench is running, which would falsify both"),
            Err(TryLockError::Error(error)) => return Err(error).context("locking `bench/target/work.lock`"),
        }
        let folder = target.join("work");
        if folder.exists() {
            fs::remove_dir_all(&folder).context("removing the files of the last run")?;
        }
        fs::create_dir_all(&folder)?;
        let kinsync = options.kinsync.clone().unwrap_or_else(|| root.join("target/release/kinsync"));
        let emulator = kinsync.with_file_name("kinde-emulator");
        Ok(Self { root, folder, kinsync, emulator, keep: options.keep, _lock: lock })
    }

    /// The project.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of this run.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// What outlives a run: keys and tokens.
    pub fn cache(&self) -> PathBuf {
        self.root.join("bench/target")
    }

    /// A new folder under a name that was not used in this run.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        fs::create_dir(&path).with_context(|| format!("making `{}`", path.display()))?;
        Ok(path)
    }

    /// The kinsync to measure.
    pub fn kinsync(&self) -> anyhow::Result<&Path> {
        built(&self.kinsync)
    }

    /// The Kinde of its own that lies beside it.
    pub fn emulator(&self) -> anyhow::Result<&Path> {
        built(&self.emulator)
    }

    /// The mongod that the tests use too: the one on the PATH, else the one that `.ci/install` fetched.
    pub fn mongod(&self) -> anyhow::Result<PathBuf> {
        on_path("mongod")
            .or_else(|| Some(self.root.join(".tools/bin/mongod")).filter(|path| path.is_file()))
            .context("no mongod: run .ci/install")
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("bench: logs are in {}", self.folder.display());
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("bench: `{}` could not be removed: {error}", self.folder.display());
        }
    }
}

fn built(path: &Path) -> anyhow::Result<&Path> {
    anyhow::ensure!(path.is_file(), "no program at `{}`: build it, or run bench/run", path.display());
    Ok(path)
}

/// A program on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
