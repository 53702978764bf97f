//! Where commands run.

use std::mem::ManuallyDrop;

use anyhow::Context as _;
use tokio::runtime::Builder;

use super::exit::Exit;

/// Runs a command that talks to a server.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    run(&mut Builder::new_current_thread(), work)
}

/// Runs a command that works hard: on all cores.
pub(super) fn block_on_all<T>(work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    run(&mut Builder::new_multi_thread(), work)
}

/// The runtime lives until the process ends. Dropped, it would wait for calls that block, such as a look at a disk that
/// hangs; and it would drop the tasks of the MongoDB driver in any order while others still run, and one that gives
/// sessions back panics when the pool is gone (seen with mongodb 3.9).
fn run<T>(builder: &mut Builder, work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    ManuallyDrop::new(runtime).block_on(work)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    /// As a look at a folder whose file system hangs.
    #[test]
    fn a_command_ends_while_something_of_it_still_waits_for_the_disk() {
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
