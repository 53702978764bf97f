//! Runs the long-running tasks of a process and restarts those that end.
//!
//! A panic or an unexpected end of a task is decided here and nowhere else: it is logged as an error, the component is
//! reported as failed, and the task starts again after a back-off. What cannot start again, a thread for example, ends the
//! process ([`Supervisor::end_process_after`]), as does a task that cannot do its work without a change by an operator
//! ([`Supervisor::fail`]).

use std::{
    any::Any,
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::random;

/// Pause before the first restart. Doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_mins(1);
/// Time after a failure, or after the restart that followed it, in which a component counts as healthy again.
const HEALTHY_AFTER: Duration = Duration::from_mins(1);

/// State of one supervised component.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ComponentStatus {
    /// Restarts since the process started.
    pub restarts: u64,
    /// Why it failed last; `None` before its first failure, and again after a minute or two without one.
    pub failure: Option<String>,
}

#[derive(Debug, Default)]
struct Component {
    status: ComponentStatus,
    failed_at: Option<Instant>,
}

/// Owns the long-running tasks of a process. Clones share everything.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tasks: TaskTracker,
    stop: CancellationToken,
    components: Mutex<BTreeMap<&'static str, Component>>,
    fatal: watch::Sender<Option<Arc<dyn std::error::Error + Send + Sync>>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self(Arc::new(Inner {
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            components: Mutex::default(),
            fatal: watch::Sender::new(None),
        }))
    }
}

impl Supervisor {
    /// Starts a component that runs until its token is cancelled.
    ///
    /// `task` is called again after each panic or unexpected end. What it shares between calls must be consistent after
    /// a panic: locks of this workspace recover from poisoning, and queues and stores are transactional.
    pub fn spawn<F>(&self, component: &'static str, task: impl Fn(CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_until(component, self.0.stop.clone(), task);
    }

    /// Starts a component as [`Self::spawn`] does, for a part that may be closed before the process stops: the task ends, and
    /// is not restarted, when `stop` is cancelled. `stop` is a [`Self::child_token`].
    pub(crate) fn spawn_until<F>(
        &self,
        component: &'static str,
        stop: CancellationToken,
        task: impl Fn(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        self.components().entry(component).or_default();
        restarts(component, 0);
        let supervisor = self.clone();
        let task = move |stop| task(stop).boxed();
        self.0.tasks.spawn(async move { supervisor.supervise(component, stop, Box::new(task)).await });
    }

    /// Returns a token that is cancelled when the tasks are stopped.
    #[cfg(any(feature = "redis", feature = "rabbitmq"))]
    pub(crate) fn child_token(&self) -> CancellationToken {
        self.0.stop.child_token()
    }

    /// Starts a task that may end by itself, for example one that waits for something once. A panic is logged and
    /// reported; the task is not started again.
    pub fn spawn_once(&self, component: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.components().entry(component).or_default();
        let (supervisor, stop) = (self.clone(), self.0.stop.clone());
        self.0.tasks.spawn(async move {
            if let Some(Err(panic)) = stop.run_until_cancelled(AssertUnwindSafe(task).catch_unwind()).await {
                supervisor.failed(component, panic_message(&*panic), "it is not restarted");
            }
        });
    }

    /// Ends the process when this future returns an error: what it waits for cannot be restarted. `None` is an intended end.
    pub(crate) fn end_process_after<E>(
        &self,
        component: &'static str,
        failure: impl Future<Output = Option<E>> + Send + 'static,
    ) where
        E: std::error::Error + Send + Sync + 'static,
    {
        self.components().entry(component).or_default();
        let (supervisor, stop) = (self.clone(), self.0.stop.clone());
        self.0.tasks.spawn(async move {
            if let Some(Some(error)) = stop.run_until_cancelled(failure).await {
                supervisor.failed(component, error.to_string(), "the process ends");
                supervisor.fail(Arc::new(error));
            }
        });
    }

    /// `task` is boxed, so that this loop is compiled once.
    async fn supervise(
        &self,
        component: &'static str,
        stop: CancellationToken,
        task: Box<dyn Fn(CancellationToken) -> BoxFuture<'static, ()> + Send>,
    ) {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut run = AssertUnwindSafe(task(stop.clone())).catch_unwind();
            let outcome = loop {
                tokio::select! {
                    outcome = &mut run => break outcome,
                    () = tokio::time::sleep(HEALTHY_AFTER) => {
                        self.recovered(component);
                        pause = FIRST_PAUSE;
                    }
                }
            };
            let cause = match outcome {
                Ok(()) if stop.is_cancelled() => return,
                Ok(()) => "it ended unexpectedly".to_owned(),
                Err(panic) => panic_message(&*panic),
            };
            self.failed(component, cause, "it is restarted");
            let sleep = tokio::time::sleep(random::jitter(pause, 0.5..=1.0));
            if stop.run_until_cancelled(sleep).await.is_none() {
                return;
            }
            self.components().entry(component).or_default().status.restarts += 1;
            restarts(component, 1);
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn failed(&self, component: &'static str, cause: String, consequence: &str) {
        tracing::error!(component, cause, "a component failed; {consequence}");
        let mut components = self.components();
        let failed = components.entry(component).or_default();
        (failed.status.failure, failed.failed_at) = (Some(cause), Some(Instant::now()));
    }

    /// Reports a panic in a part of a component that continues without it.
    #[cfg(any(feature = "redis", feature = "rabbitmq"))]
    pub(crate) fn panicked(&self, component: &'static str, panic: &(dyn Any + Send)) {
        self.failed(component, panic_message(panic), "it continues");
    }

    fn recovered(&self, component: &'static str) {
        let mut components = self.components();
        let failed = components.entry(component).or_default();
        if failed.failed_at.take_if(|at| at.elapsed() >= HEALTHY_AFTER).is_some() {
            failed.status.failure = None;
            tracing::info!(component, "the component runs again");
        }
    }

    /// Reports an error that only an operator can fix: [`Supervisor::fatal`] returns it, and the process should end.
    pub fn fail(&self, error: Arc<dyn std::error::Error + Send + Sync>) {
        // Only the first one: the others may follow from it.
        self.0.fatal.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(error);
            is_first
        });
    }

    /// Waits for the first error that was reported with [`Supervisor::fail`]. Cancel safe.
    pub async fn fatal(&self) -> Arc<dyn std::error::Error + Send + Sync> {
        let mut fatal = self.0.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await.map(|error| error.clone()) {
            Ok(Some(error)) => error,
            // The sender lives as long as `self`.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// The state of each component, by name.
    #[doc(hidden)]
    pub fn status(&self) -> BTreeMap<&'static str, ComponentStatus> {
        let components = self.components();
        components.iter().map(|(name, component)| (*name, component.status.clone())).collect()
    }

    /// Cancels every task and waits until all have ended. Cancel safe; the tasks stay cancelled.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn components(&self) -> MutexGuard<'_, BTreeMap<&'static str, Component>> {
        self.0.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts restarts. Called with 0 at the start so that the series exists before the first restart.
fn restarts(component: &'static str, count: u64) {
    metrics::counter!("kinsync_component_restarts_total", "component" => component).increment(count);
}

/// Returns the message of a panic, as a sentence about what panicked.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A component that fails on its first runs by `fail`, and then runs until it is stopped.
    async fn supervised(failures: u32, fail: fn()) -> (Supervisor, Arc<AtomicU32>) {
        let (supervisor, runs) = (Supervisor::default(), Arc::new(AtomicU32::new(0)));
        let counter = Arc::clone(&runs);
        supervisor.spawn("component", move |stop| {
            let run = counter.fetch_add(1, Ordering::SeqCst);
            async move {
                if run < failures {
                    return fail();
                }
                stop.cancelled().await;
            }
        });
        while runs.load(Ordering::SeqCst) <= failures {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (supervisor, runs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_that_panics_is_restarted_and_reported() {
        let (supervisor, _) = supervised(2, || panic!("out of range")).await;
        let status = supervisor.status()["component"].clone();
        assert_eq!(status.restarts, 2);
        assert_eq!(status.failure.as_deref(), Some("it panicked: out of range"));
        tokio::time::sleep(HEALTHY_AFTER * 2).await;
        assert_eq!(supervisor.status()["component"].failure, None, "healthy again");
        supervisor.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_that_ends_is_restarted() {
        let (supervisor, runs) = supervised(1, || {}).await;
        assert_eq!(supervisor.status()["component"].failure.as_deref(), Some("it ended unexpectedly"));
        supervisor.stop().await;
        assert_eq!(runs.load(Ordering::SeqCst), 2, "no restart after the stop");
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_back_off() {
        let started = tokio::time::Instant::now();
        let (supervisor, _) = supervised(6, || {}).await;
        assert!(started.elapsed() > Duration::from_secs(20), "{:?}", started.elapsed());
        supervisor.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_done_once_is_reported_and_not_restarted() {
        let supervisor = Supervisor::default();
        supervisor.spawn_once("once", async { panic!("out of range") });
        tokio::time::sleep(MAX_PAUSE).await;
        let status = supervisor.status()["once"].clone();
        assert_eq!((status.restarts, status.failure.as_deref()), (0, Some("it panicked: out of range")));
        supervisor.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_is_closed_before_the_process_stops_is_not_restarted() {
        let (supervisor, runs) = (Supervisor::default(), Arc::new(AtomicU32::new(0)));
        let (part, counter) = (supervisor.0.stop.child_token(), Arc::clone(&runs));
        supervisor.spawn_until("part", part.clone(), move |stop| {
            counter.fetch_add(1, Ordering::SeqCst);
            async move { stop.cancelled().await }
        });
        part.cancel();
        tokio::time::sleep(MAX_PAUSE).await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(supervisor.status()["part"], ComponentStatus::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_failure_of_what_cannot_be_restarted_ends_the_process() {
        let supervisor = Supervisor::default();
        supervisor.end_process_after("closed", async { None::<std::io::Error> });
        tokio::time::sleep(MAX_PAUSE).await;
        assert!(supervisor.0.fatal.borrow().is_none(), "an intended end");
        supervisor.end_process_after("thread", async { Some(std::io::Error::other("it panicked")) });
        assert_eq!(supervisor.fatal().await.to_string(), "it panicked");
        assert_eq!(supervisor.status()["thread"].failure.as_deref(), Some("it panicked"));
    }

    #[tokio::test]
    async fn the_first_fatal_error_is_returned() {
        let supervisor = Supervisor::default();
        for error in ["no permission", "a consequence"] {
            supervisor.fail(Arc::new(std::io::Error::other(error)));
        }
        assert_eq!(supervisor.fatal().await.to_string(), "no permission");
    }
}
