//! Child processes that end with the run, and their resource usage.

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
/// Interval in which a monitored process is read.
const LOOK: Duration = Duration::from_millis(10);

/// A running program. Dropping it kills the process and waits for its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `log`. Must be called on the main thread: the kernel kills the child when the
    /// thread that started it ends, so that no server is left over, even after SIGKILL of the bench.
    pub fn start(name: &str, command: &Command, log: &Path) -> anyhow::Result<Self> {
        let mut command = tied(command);
        let out = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its name in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fails with the end of its log if the process has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("{} ended with {status}: {}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Waits until the process ends. Returns its output.
    pub async fn finish(mut self, limit: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(fs::read_to_string(&self.log)?),
                Some(status) => anyhow::bail!("{} ended with {status}: {}", self.name, self.log_tail()),
                None => {
                    anyhow::ensure!(Instant::now() < deadline, "{} did not end in {limit:?}", self.name);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the process ends and monitors it. Returns its output and its resource usage.
    pub async fn watch(mut self, limit: Duration) -> anyhow::Result<(String, Used)> {
        let start = Instant::now();
        let (mut cpu, mut peak) = (Duration::ZERO, 0);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            // A process that is ending has no memory values.
            if let (Ok(memory), Ok(used)) = (self.memory(), self.cpu()) {
                (cpu, peak) = (used, memory.peak);
            }
            anyhow::ensure!(start.elapsed() < limit, "{} did not end in {limit:?}", self.name);
            tokio::time::sleep(LOOK).await;
        };
        let took = start.elapsed();
        anyhow::ensure!(status.success(), "{} ended with {status}: {}", self.name, self.log_tail());
        Ok((fs::read_to_string(&self.log)?, Used { took, cpu, peak }))
    }

    /// Sends SIGTERM, and kills the process after the timeout.
    pub async fn stop(mut self, limit: Duration) -> anyhow::Result<()> {
        kill_process(self.pid(), Signal::TERM)?;
        let deadline = Instant::now() + limit;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                eprintln!("bench: {} did not stop in {limit:?}; killing it", self.name);
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// CPU time.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }

    /// Current and peak resident memory in bytes.
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
        // An error means that the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resource usage of a process until its end. Memory and CPU time are those of the last reading.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Run time.
    pub took: Duration,
    /// CPU time.
    pub cpu: Duration,
    /// Peak resident memory in bytes.
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

/// CPU time of the bench itself.
pub fn own_cpu() -> anyhow::Result<Duration> {
    cpu_of("self")
}

fn cpu_of(pid: &str) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields are counted after the closing bracket of the program name: utime and stime are fields 14 and 15.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).with_context(|| format!("reading /proc/{pid}/stat"))?;
    Ok(Duration::from_secs_f64((user + system) / TICKS_PER_SECOND))
}

/// The same command under `setpriv --pdeathsig` of util-linux, if installed. `setpriv` executes the program in its place.
fn tied(command: &Command) -> Command {
    let Some(setpriv) = on_path("setpriv") else { return copy(command, Command::new(command.get_program())) };
    let mut tied = Command::new(setpriv);
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
    copy(command, tied)
}

/// Arguments and environment of `command`. Of the environment of the bench only PATH is passed on.
fn copy(command: &Command, mut to: Command) -> Command {
    to.args(command.get_args()).env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        to.env("PATH", path);
    }
    to.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    to
}

/// Waits until `ready` succeeds. Fails if the process ends.
pub async fn wait_until<F, R>(process: &mut Process, limit: Duration, mut ready: F) -> anyhow::Result<()>
where
    F: FnMut() -> R,
    R: Future<Output = io::Result<bool>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let answer = ready().await;
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        process.check()?;
        if Instant::now() > deadline {
            let why = answer.err().map_or_else(|| "not ready".to_owned(), |error| error.to_string());
            anyhow::bail!("{} was not ready in {limit:?} ({why}): {}", process.name(), process.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
