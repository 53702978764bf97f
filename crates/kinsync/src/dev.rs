//! `kinsync dev`: a local Kinde, kinsync and a demo tenant with generated activity in one process.
//!
//! The emulator listens on a real port, the app runs as `serve` runs it, and deliveries are duplicated, reordered,
//! delayed and lost on purpose. `serve` uses nothing of this.
//!
//! In reading order:
//! - `start`: starts the local Kinde and the app
//! - `activity`: generates users and events, and injects faults
//! - `sampler`: takes each `snapshot`, with `history`, `drift` and `meters`
//! - `view`, `hints`: a snapshot and commands to try, as text
//! - `output`, `screen`: the terminal, a pipe or JSON

mod activity;
mod drift;
mod hints;
mod history;
mod meters;
mod output;
mod sampler;
mod screen;
mod snapshot;
mod start;
mod view;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use kinde_emulator::{Activity, Emulator};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing_subscriber::filter::Targets;

pub use self::{activity::Faults, output::Style};
use self::{output::Output, sampler::Sampler, screen::Input, snapshot::Snapshot, start::Started};

/// Bounds of the pause between two samples, and the pause as a multiple of the time that a sample takes.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(3);
const PAUSE_FACTOR: u32 = 9;
/// Time to wait for pending deliveries at the end: after an interrupt, and otherwise.
const INTERRUPTED_GRACE: Duration = Duration::from_millis(1_800);
const GRACE: Duration = Duration::from_secs(30);

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of users at the start.
    pub users: usize,
    /// Events per second.
    pub rate: f64,
    /// Faults to inject into deliveries.
    pub faults: Faults,
    /// Seed of the generated users and events.
    pub seed: u64,
    /// Port of kinsync; any free port if it is in use.
    pub port: u16,
    /// Port of the local Kinde; any free port if it is in use.
    pub emulator_port: u16,
    /// Data folder; `None` is a temporary folder.
    pub data_dir: Option<PathBuf>,
    /// MongoDB to store users in; `None` is the embedded store.
    pub mongodb_uri: Option<String>,
    /// When to end.
    pub until: Until,
    /// How to show the run.
    pub style: Style,
    /// Log filter; `None` is the default of the style.
    pub log: Option<Targets>,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// At a signal or a key press.
    Interrupted,
    /// After this time.
    Elapsed(Duration),
    /// When the initial users are in the store.
    Delivered,
}

/// Result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every delivered event is in the store.
    Consistent,
    /// A delivered event is missing in the store, or a run that was not interrupted could not finish the comparison.
    Inconsistent,
}

/// Runs until the options, a key press or a signal end it.
///
/// # Errors
/// If the local Kinde or the app cannot start or continue, or the terminal fails.
pub async fn run(options: Options) -> Result<Verdict> {
    let signals = Signals::listen().context("cannot listen for signals")?;
    let started = start::start(&options).await?;
    let output = Output::start(options.style, started.title.clone(), started.addresses.clone());
    let mut run = Run::start(&options, &started, output.context("cannot use the terminal")?, signals);
    let outcome = run.watch(&started, options.until).await;
    let verdict = run.finish(&started, options.until).await;
    started.stop().await;
    outcome.and(verdict)
}

/// The tasks of a run.
struct Run {
    output: Option<Output>,
    latest: watch::Receiver<Option<Arc<Snapshot>>>,
    sampling: tokio::task::JoinHandle<Sampler>,
    inputs: mpsc::UnboundedReceiver<Input>,
    signals: Signals,
    tasks: TaskTracker,
    stop_activity: CancellationToken,
    stop_sampling: CancellationToken,
    stop_keys: CancellationToken,
    activity_ended: CancellationToken,
}

impl Run {
    fn start(options: &Options, started: &Started, output: Output, signals: Signals) -> Self {
        let tasks = TaskTracker::new();
        let (stop_sampling, stop_keys) = (CancellationToken::new(), CancellationToken::new());
        let (stop_activity, activity_ended) = (CancellationToken::new(), CancellationToken::new());
        let plan = activity::Plan {
            users: options.users,
            rate: options.rate,
            initial_only: options.until == Until::Delivered,
        };
        let (activity, emulator) = (Activity::new(started.seed), started.emulator.clone());
        let generate = activity::generate(activity, emulator, plan, stop_activity.clone());
        let ended = activity_ended.clone().drop_guard();
        tasks.spawn(async move {
            generate.await;
            drop(ended);
        });
        let sampler = Sampler::new(started.emulator.clone(), Arc::clone(started.app.state()));
        let (sender, latest) = watch::channel(None);
        let sampling = tasks.spawn(sample(sampler, sender, stop_sampling.clone()));
        let inputs = match options.style {
            Style::Live => screen::listen(&tasks, stop_keys.clone()),
            _ => mpsc::unbounded_channel().1,
        };
        Self {
            output: Some(output),
            latest,
            sampling,
            inputs,
            signals,
            tasks,
            stop_activity,
            stop_sampling,
            stop_keys,
            activity_ended,
        }
    }

    /// Shows snapshots until the run should end.
    ///
    /// # Errors
    /// If the app cannot continue or the terminal fails.
    async fn watch(&mut self, started: &Started, until: Until) -> Result<()> {
        let output = self.output.as_mut().expect("only `finish` takes it, after this");
        let end = end_of(until, &started.emulator, &self.activity_ended);
        tokio::pin!(end);
        loop {
            tokio::select! {
                Ok(()) = self.latest.changed() => {}
                Some(input) = self.inputs.recv() => {
                    if output.handle(input)? {
                        return Ok(());
                    }
                }
                () = self.signals.next() => return Ok(()),
                () = &mut end => return Ok(()),
                error = started.app.failed() => return Err(error.into()),
            }
            let latest = self.latest.borrow_and_update().clone();
            if let Some(latest) = latest {
                output.show(&latest)?;
            }
        }
    }

    /// Stops the activity, waits for pending deliveries, compares a last time and prints the summary.
    async fn finish(&mut self, started: &Started, until: Until) -> Result<Verdict> {
        let mut output = self.output.take().expect("a run finishes once");
        self.stop_activity.cancel();
        output.ending();
        if let Some(latest) = self.latest.borrow().clone() {
            _ = output.show(&latest);
        }
        self.stop_sampling.cancel();
        let mut sampler = (&mut self.sampling).await.context("the sampler ended unexpectedly")?;
        let grace = if until == Until::Interrupted { INTERRUPTED_GRACE } else { GRACE };
        let last = tokio::select! {
            last = wait_for_deliveries(&mut sampler, &started.emulator, grace) => last,
            () = second_interrupt(&mut self.inputs, &mut self.signals) => sampler.sample_without_store().await,
        };
        self.stop_keys.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        output.finish(&last);
        Ok(verdict(&last, until))
    }
}

/// An interrupted run may end with pending deliveries.
fn verdict(last: &Snapshot, until: Until) -> Verdict {
    let is_finished = last.drift.in_flight == 0 && last.store_error.is_none();
    if last.drift.unexplained == 0 && (is_finished || until == Until::Interrupted) {
        Verdict::Consistent
    } else {
        Verdict::Inconsistent
    }
}

/// Takes snapshots until `stop` is cancelled.
async fn sample(
    mut sampler: Sampler,
    latest: watch::Sender<Option<Arc<Snapshot>>>,
    stop: CancellationToken,
) -> Sampler {
    loop {
        let began = Instant::now();
        let Some(now) = stop.run_until_cancelled(sampler.sample()).await else { return sampler };
        latest.send_replace(Some(Arc::new(now)));
        let pause = (began.elapsed() * PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE);
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return sampler;
        }
    }
}

/// Completes when a run that ends by itself should end.
async fn end_of(until: Until, emulator: &Emulator, activity_ended: &CancellationToken) {
    match until {
        Until::Interrupted => std::future::pending().await,
        Until::Elapsed(time) => sleep(time).await,
        Until::Delivered => {
            activity_ended.cancelled().await;
            // The last comparison counts what is still pending after this time.
            _ = emulator.quiesce(GRACE).await;
        }
    }
}

/// Waits until all deliveries are stored, at most for `grace`, and returns the last snapshot.
async fn wait_for_deliveries(sampler: &mut Sampler, emulator: &Emulator, grace: Duration) -> Snapshot {
    let deadline = Instant::now() + grace;
    _ = emulator.quiesce(grace).await;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(300));
        let Ok(now) = timeout(left, sampler.sample()).await else {
            return sampler.sample_without_store().await;
        };
        let is_finished = now.drift.in_flight == 0 && now.queue.depth == 0 && now.store_error.is_none();
        if is_finished || Instant::now() >= deadline {
            return now;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Completes at the next quit key or signal.
async fn second_interrupt(inputs: &mut mpsc::UnboundedReceiver<Input>, signals: &mut Signals) {
    loop {
        tokio::select! {
            Some(input) = inputs.recv() => {
                if input == Input::Quit {
                    return;
                }
            }
            () = signals.next() => return,
        }
    }
}

/// The signals that end a run.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        #[cfg(unix)]
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            #[cfg(unix)]
            terminate: signal(SignalKind::terminate())?,
            #[cfg(unix)]
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        _ = tokio::signal::ctrl_c().await;
    }
}
