//! Child processes that never outlive the run, and what the kernel says of them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::work::on_path;

/// Kernel ticks per second in /proc; 100 on every Linux that this runs on (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;
/// How often a process that is watched is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A running program. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `log`. To be called on the main thread: the kernel kills the child when the
    /// thread that started it ends, so that not even SIGKILL of the bench leaves a server behind.
    pub fn start(name: &str, command: &Command, log: &Path) -> anyhow::Result<Self> {
        let mut command = tied(command);
        let out = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// What it is called in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fails with the end of its log when it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("{} ended with {status}: {}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Waits until it ends by itself. Returns what it printed.
    pub async fn finish(mut self, patience: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(fs::read_to_string(&self.log)?),
                Some(status) => anyhow::bail!("{} ended with {status}: {}", self.name, self.log_tail()),
                None => {
                    anyhow::ensure!(Instant::now() < deadline, "{} did not end in {patience:?}", self.name);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it ends by itself, and looks at it meanwhile. Returns what it printed and what it used.
    pub async fn watch(mut self, patience: Duration) -> anyhow::Result<(String, Used)> {
        let start = Instant::now();
        let (mut cpu, mut peak) = (Duration::ZERO, 0);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            // One that is just ending has no memory to tell of.
            if let (Ok(memory), Ok(used)) = (self.memory(), self.cpu()) {
                (cpu, peak) = (used, memory.peak);
            }
            anyhow::ensure!(start.elapsed() < patience, "{} did not end in {patience:?}", self.name);
            tokio::time::sleep(LOOK).await;
        };
        let took = start.elapsed();
        anyhow::ensure!(status.success(), "{} ended with {status}: {}", self.name, self.log_tail());
        Ok((fs::read_to_string(&self.log)?, Used { took, cpu, peak }))
    }

    /// Asks it to stop, and kills it if it has not by then.
    pub async fn stop(mut self, patience: Duration) -> anyhow::Result<()> {
        kill_process(self.pid(), Signal::TERM)?;
        let deadline = Instant::now() + patience;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                eprintln!("bench: {} did not stop in {patience:?} and is killed", self.name);
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Processor time used so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }

    /// Resident memory now and at most, in bytes.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|text| text.parse::<u64>().ok());
            kib.map(|kib| kib * 1024).with_context(|| format!("no `{name}` in /proc/PID/status"))
        };
        Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process used from when it was first looked at to its end; all but the time as of the last look before it.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Until it was seen to have ended.
    pub took: Duration,
    /// Processor time.
    pub cpu: Duration,
    /// Most resident memory, in bytes.
    pub peak: u64,
}

/// Resident memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// `VmRSS`.
    pub now: u64,
    /// `VmHWM`.
    pub peak: u64,
}

/// Processor time of the bench itself.
pub fn own_cpu() -> anyhow::Result<Duration> {
    cpu_of("self")
}

fn cpu_of(pid: &str) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program may hold anything, so count from its closing bracket: utime and stime are 14 and 15.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).with_context(|| format!("reading /proc/{pid}/stat"))?;
    Ok(Duration::from_secs_f64((user + system) / TICKS_PER_SECOND))
}

/// The same command under `setpriv --pdeathsig`, where there is one (util-linux). It replaces itself by the program.
fn tied(command: &Command) -> Command {
    let Some(setpriv) = on_path("setpriv") else { return copy(command, Command::new(command.get_program())) };
    let mut tied = Command::new(setpriv);
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
    copy(command, tied)
}

/// Arguments and environment of `command`; nothing of the environment of the bench but the PATH.
fn copy(command: &Command, mut to: Command) -> Command {
    to.args(command.get_args()).env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        to.env("PATH", path);
    }
    to.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    to
}

/// Waits until `ready` says so, while watching that the process lives.
pub async fn wait_until<F, R>(process: &mut Process, patience: Duration, mut ready: F) -> anyhow::Result<()>
where
    F: FnMut() -> R,
    R: Future<Output = io::Result<bool>>,
{
    let deadline = Instant::now() + patience;
    loop {
        let answer = ready().await;
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        process.check()?;
        if Instant::now() > deadline {
            let why =
                answer.err().map_or_else(|| "it says that it is not".to_owned(), |error| error.to_string());
            anyhow::bail!("{} was not ready in {patience:?} ({why}): {}", process.name(), process.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
