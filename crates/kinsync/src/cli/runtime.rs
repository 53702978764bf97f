//! Where commands run.

use std::mem::ManuallyDrop;

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};

use super::exit::Exit;

/// Runs a command that talks to a server.
///
/// The runtime lives until the process ends. Dropped, it would wait for what still waits for a disk that hangs.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    ManuallyDrop::new(runtime).block_on(work)
}

/// Runs a command that works hard: on all cores.
///
/// The runtime lives until the process ends. Dropped, it would drop the tasks of the MongoDB driver in any order while
/// others still run, and one that gives sessions back panics when the pool is gone (seen with mongodb 3.9).
pub(super) fn block_on_all<T>(work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = ManuallyDrop::new(Runtime::new().context("cannot start the runtime")?);
    runtime.block_on(work)
}
