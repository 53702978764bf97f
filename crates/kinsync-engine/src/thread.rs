//! A thread that works as long as its owner, and the report of its panic. [`crate::supervisor`] decides what follows.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
};

use tokio::sync::watch;

use crate::supervisor::panic_message;

/// The panic of a thread.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the thread `{thread}` ended: {cause}; what it confirmed is on disk, and a new process continues")]
pub(crate) struct Panicked {
    thread: &'static str,
    cause: String,
}

/// A thread. Dropping it waits for its end, so what makes it end is dropped before.
#[derive(Debug)]
pub(crate) struct Thread {
    handle: Option<JoinHandle<()>>,
    panicked: watch::Receiver<Option<Panicked>>,
}

impl Thread {
    /// Starts a thread.
    pub(crate) fn start(name: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (report, panicked) = watch::channel(None);
        let run = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                report.send_replace(Some(Panicked { thread: name, cause: panic_message(&*panic) }));
            }
        };
        let handle = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { handle: Some(handle), panicked })
    }

    /// Waits for the end of the thread. Returns its panic, or `None` if it ended as intended.
    pub(crate) fn panicked(&self) -> impl Future<Output = Option<Panicked>> + Send + use<> {
        let mut panicked = self.panicked.clone();
        async move { panicked.wait_for(Option::is_some).await.ok().and_then(|panicked| panicked.clone()) }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            // A panic of the work was caught.
            _ = handle.join();
        }
    }
}
