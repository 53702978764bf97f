//! Memory and descriptors of a process that is never killed.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;

use crate::checks::Verdicts;

const EVERY: Duration = Duration::from_secs(1);
/// Growth that is allowed between the first and the last third: of memory the share and the MiB together.
const MEMORY: (f64, f64) = (1.2, 8.0);
const DESCRIPTORS: f64 = 8.0;

/// Running samples.
#[derive(Debug)]
pub struct Samples {
    task: JoinHandle<()>,
    taken: Arc<Mutex<Vec<(f64, f64)>>>,
}

impl Samples {
    /// Reads MiB and descriptors regularly.
    pub fn start(pid: Option<u32>) -> Self {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let samples = Arc::clone(&taken);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            loop {
                ticks.tick().await;
                if let Some(sample) = pid.and_then(sample) {
                    samples.lock().expect("no task panics with the lock").push(sample);
                }
            }
        });
        Self { task, taken }
    }

    /// Ends, and compares the first with the last third, without the first fifth.
    pub async fn judge(self, verdicts: &mut Verdicts) -> anyhow::Result<()> {
        self.task.abort();
        _ = self.task.await;
        let taken = self.taken.lock().ok().context("the lock is poisoned")?;
        let measured = &taken[taken.len() / 5..];
        let third = measured.len() / 3;
        anyhow::ensure!(third > 0, "too few samples");
        let (first, last) = (&measured[..third], &measured[measured.len() - third..]);
        let (before, after) = (at(first, 50, |one| one.0), at(last, 50, |one| one.0));
        let memory = format!("memory, first and last third: {before:.1}, {after:.1} MiB");
        verdicts.add(after <= before * MEMORY.0 + MEMORY.1, memory);
        // Not the median: after each fault there are more connections for some seconds.
        let (before, after) = (at(first, 10, |one| one.1), at(last, 10, |one| one.1));
        verdicts.add(after <= before + DESCRIPTORS, format!("descriptors: {before:.0}, {after:.0}"));
        Ok(())
    }
}

fn sample(pid: u32) -> Option<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = kib.split_whitespace().next()?.parse().ok()?;
    Some((kib / 1024.0, fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as f64))
}

fn at(of: &[(f64, f64)], percent: usize, value: fn(&(f64, f64)) -> f64) -> f64 {
    let mut values: Vec<f64> = of.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() * percent / 100]
}
