//! `kinsync dev`: the whole of it in one process, with a town to live in it.
//!
//! A local Kinde on a real port, kinsync as `serve` runs it, and a seeded town whose deliveries are doubled,
//! reordered, delayed and dropped on purpose on their way over HTTP. Nothing here is on the path of `serve`.
//!
//! In reading order:
//! - `parts`: the local Kinde and the app, started for each other
//! - `town`: what happens at Kinde, and what goes wrong on purpose
//! - `snapshot`: what is so at one moment; with `ledger`, `drift` and `meters`
//! - `view`, `hints`: the same as text
//! - `output`, `screen`: who looks on

mod drift;
mod hints;
mod ledger;
mod meters;
mod output;
mod parts;
mod screen;
mod snapshot;
mod town;
mod view;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use kinde_emulator::{Emulator, Town};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    output::Output,
    parts::Started,
    screen::Input,
    snapshot::{Sampler, Snapshot},
};
pub use self::{output::Style, town::Faults};

/// The pause between two looks: so much longer than the look itself, within bounds.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_SHARE: u32 = 9;
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How long to wait at the end for what is on its way: with a person waiting, and without.
const SHORT_PATIENCE: Duration = Duration::from_millis(1_800);
const LONG_PATIENCE: Duration = Duration::from_secs(30);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Users to begin with.
    pub users: usize,
    /// Events per second.
    pub rate: f64,
    /// What goes wrong on purpose.
    pub faults: Faults,
    /// The dice of the town.
    pub seed: u64,
    /// kinsync's port; another one when it is taken.
    pub port: u16,
    /// The local Kinde's port; another one when it is taken.
    pub emulator_port: u16,
    /// Where files are kept; `None`: in a folder that is removed at the end.
    pub data_dir: Option<PathBuf>,
    /// Keeps users in this MongoDB instead of a file.
    pub mongodb_uri: Option<String>,
    /// When to end.
    pub until: Until,
    /// Who looks on.
    pub style: Style,
    /// What is logged; `None`: what suits the style.
    pub log: Option<String>,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When it is told to.
    Told,
    /// After this time.
    Over(Duration),
    /// When the town has its users and all of them have arrived.
    Settled,
}

/// How a run came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was delivered is in the store.
    True,
    /// Something that was delivered is not in the store; or nobody can tell, at the end that was asked for.
    Drifted,
}

/// Runs until the options, a key or a signal say that it is enough.
pub async fn run(options: Options) -> Result<Verdict> {
    let signals = Signals::listen().context("cannot listen for signals")?;
    let started = parts::start(&options).await?;
    let output = Output::begin(options.style, started.title.clone(), started.addresses.clone());
    let mut run = Run::begin(&options, &started, output.context("cannot use the terminal")?, signals);
    let outcome = run.watch(&started, options.until).await;
    let verdict = run.end(&started, options.until).await;
    started.stop().await;
    outcome.and(verdict)
}

/// A run that is on.
struct Run {
    output: Option<Output>,
    latest: watch::Receiver<Option<Arc<Snapshot>>>,
    sampling: tokio::task::JoinHandle<Sampler>,
    inputs: mpsc::UnboundedReceiver<Input>,
    signals: Signals,
    tasks: TaskTracker,
    stop_town: CancellationToken,
    stop_looking: CancellationToken,
    stop_keys: CancellationToken,
    town_is_grown: CancellationToken,
}

impl Run {
    fn begin(options: &Options, started: &Started, output: Output, signals: Signals) -> Self {
        let tasks = TaskTracker::new();
        let (stop_looking, stop_keys) = (CancellationToken::new(), CancellationToken::new());
        let (stop_town, town_is_grown) = (CancellationToken::new(), CancellationToken::new());
        let plan = town::Plan {
            users: options.users,
            rate: options.rate,
            then_rest: options.until == Until::Settled,
        };
        let life = town::live(Town::new(started.seed), started.emulator.clone(), plan, stop_town.clone());
        let grown = town_is_grown.clone().drop_guard();
        tasks.spawn(async move {
            life.await;
            drop(grown);
        });
        let sampler = Sampler::new(started.emulator.clone(), Arc::clone(started.app.state()));
        let (sender, latest) = watch::channel(None);
        let sampling = tasks.spawn(look(sampler, sender, stop_looking.clone()));
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
            stop_town,
            stop_looking,
            stop_keys,
            town_is_grown,
        }
    }

    /// Shows what happens until it is enough. `Err`: kinsync cannot go on, or the terminal is gone.
    async fn watch(&mut self, started: &Started, until: Until) -> Result<()> {
        let output = self.output.as_mut().expect("it is taken at the end alone");
        let over = enough(until, &started.emulator, &self.town_is_grown);
        tokio::pin!(over);
        loop {
            tokio::select! {
                Ok(()) = self.latest.changed() => {}
                Some(input) = self.inputs.recv() => {
                    if output.react(input)? {
                        return Ok(());
                    }
                }
                () = self.signals.next() => return Ok(()),
                () = &mut over => return Ok(()),
                error = started.app.failed() => return Err(error.into()),
            }
            let latest = self.latest.borrow_and_update().clone();
            if let Some(latest) = latest {
                output.show(&latest)?;
            }
        }
    }

    /// Quiets the town, waits for what is on its way, compares once more and says how it came out.
    async fn end(&mut self, started: &Started, until: Until) -> Result<Verdict> {
        let mut output = self.output.take().expect("it ends once");
        self.stop_town.cancel();
        output.ending();
        if let Some(latest) = self.latest.borrow().clone() {
            _ = output.show(&latest);
        }
        self.stop_looking.cancel();
        let mut sampler = (&mut self.sampling).await.context("looking on ended unexpectedly")?;
        let patience = if until == Until::Told { SHORT_PATIENCE } else { LONG_PATIENCE };
        let last = tokio::select! {
            last = settle(&mut sampler, &started.emulator, patience) => last,
            () = again(&mut self.inputs, &mut self.signals) => sampler.sample_without_store(),
        };
        self.stop_keys.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        output.end(&last);
        Ok(verdict(&last, until))
    }
}

/// Who is interrupted need not have finished.
fn verdict(last: &Snapshot, until: Until) -> Verdict {
    let is_done = last.drift.on_the_way == 0 && last.store_error.is_none();
    if last.drift.unexplained == 0 && (is_done || until == Until::Told) {
        Verdict::True
    } else {
        Verdict::Drifted
    }
}

/// Looks again and again until told to stop.
async fn look(
    mut sampler: Sampler,
    latest: watch::Sender<Option<Arc<Snapshot>>>,
    stop: CancellationToken,
) -> Sampler {
    loop {
        let began = Instant::now();
        let Some(now) = stop.run_until_cancelled(sampler.sample()).await else { return sampler };
        latest.send_replace(Some(Arc::new(now)));
        let pause = (began.elapsed() * LOOK_SHARE).clamp(LOOK, LONGEST_PAUSE);
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return sampler;
        }
    }
}

/// Ends when a run that ends by itself should.
async fn enough(until: Until, emulator: &Emulator, town_is_grown: &CancellationToken) {
    match until {
        Until::Told => std::future::pending().await,
        Until::Over(time) => sleep(time).await,
        Until::Settled => {
            town_is_grown.cancelled().await;
            // Who is not there by then is counted at the end.
            _ = emulator.quiesce(LONG_PATIENCE).await;
        }
    }
}

/// Waits until all deliveries are settled and stored, or the patience is over; answers the last look.
async fn settle(sampler: &mut Sampler, emulator: &Emulator, patience: Duration) -> Snapshot {
    let deadline = Instant::now() + patience;
    _ = emulator.quiesce(patience).await;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(300));
        let Ok(now) = timeout(left, sampler.sample()).await else { return sampler.sample_without_store() };
        let at_rest = now.drift.on_the_way == 0 && now.queue.depth == 0 && now.store_error.is_none();
        if at_rest || Instant::now() >= deadline {
            return now;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Ends when the person is out of patience.
async fn again(inputs: &mut mpsc::UnboundedReceiver<Input>, signals: &mut Signals) {
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

/// What tells a process to stop.
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
