//! The runtime of commands.

use std::mem::ManuallyDrop;

use anyhow::Context as _;
use tokio::runtime::Builder;

use super::exit::Exit;

/// Runs a command that only sends requests, on one thread.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    run(&mut Builder::new_current_thread(), work)
}

/// Runs a command on all cores.
pub(super) fn block_on_all<T>(work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    run(&mut Builder::new_multi_thread(), work)
}

/// The runtime is never dropped. Dropping it would wait for blocking calls, such as a check of a disk that hangs. It would
/// also drop the tasks of the MongoDB driver in any order while others run, and a task that returns sessions panics when
/// their pool is dropped first (seen with mongodb 3.9).
fn run<T>(builder: &mut Builder, work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    ManuallyDrop::new(runtime).block_on(work)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    /// The blocking call simulates a check of a folder on a file system that hangs.
    #[test]
    fn a_command_ends_while_a_blocking_call_still_runs() {
        let (release, released) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            let (began, has_begun) = tokio::sync::oneshot::channel();
            let done = block_on(async move {
                drop(tokio::task::spawn_blocking(move || (began.send(()), released.recv())));
                has_begun.await.map_err(|error| Exit::Failed(error.into()))
            });
            _ = ended.send(done.is_ok());
        });
        assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(true));
        drop(release);
    }
}
