//! The folder of one run: logs, files of MongoDB, queues. It is removed at the end, or at the next start after a kill.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::options::Options;

/// The work folder and the paths of the measured programs.
#[derive(Debug)]
pub struct Work {
    root: PathBuf,
    folder: PathBuf,
    kinsync: PathBuf,
    emulator: PathBuf,
    keep: bool,
    // Held during the run.
    _lock: File,
}

impl Work {
    /// Takes the lock and creates an empty folder on the disk of the project.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = bench.parent().context("bench/ has a folder above it")?.to_owned();
        let target = bench.join("target");
        fs::create_dir_all(&target)?;
        let lock = File::create(target.join("work.lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another bench is running"),
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

    /// Root of the project.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of this run.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Folder of keys and tokens, which are kept between runs.
    pub fn cache(&self) -> PathBuf {
        self.root.join("bench/target")
    }

    /// Creates a new folder with a unique name.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        fs::create_dir(&path).with_context(|| format!("making `{}`", path.display()))?;
        Ok(path)
    }

    /// The kinsync binary to measure.
    pub fn kinsync(&self) -> anyhow::Result<&Path> {
        built(&self.kinsync)
    }

    /// The emulator binary in the same folder.
    pub fn emulator(&self) -> anyhow::Result<&Path> {
        built(&self.emulator)
    }

    /// The mongod of the tests: from PATH, else from `.ci/install`.
    pub fn mongod(&self) -> anyhow::Result<PathBuf> {
        on_path("mongod")
            .or_else(|| Some(self.root.join(".tools/bin/mongod")).filter(|path| path.is_file()))
            .context("mongod is not installed: run .ci/install")
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

/// Finds a program in PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Returns a free port of 127.0.0.1.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
