//! Memory and descriptors of a process that is never killed.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use kinsync_testing::app::TestApp;
use tokio::task::JoinHandle;

use crate::checks::Verdicts;

const EVERY: Duration = Duration::from_secs(1);
/// Samples from one that is printed to the next.
const PRINTED: usize = 120;
/// Growth that is allowed between the first and the last third: of memory the share and the MiB together.
const MEMORY: (f64, f64) = (1.2, 8.0);
const DESCRIPTORS: f64 = 16.0;

/// Running samples.
#[derive(Debug)]
pub struct Samples {
    task: JoinHandle<()>,
    taken: Arc<Mutex<Vec<(f64, f64)>>>,
}

impl Samples {
    /// Reads MiB and descriptors regularly.
    pub fn start(app: &TestApp) -> Self {
        let process = app.pid().map(|pid| (pid, app.address().port()));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let samples = Arc::clone(&taken);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            loop {
                ticks.tick().await;
                if let Some(sample) = process.and_then(sample) {
                    let mut samples = samples.lock().expect("no task panics with the lock");
                    if samples.len() % PRINTED == 0 {
                        println!("          {:.1} MiB, {:.0} descriptors", sample.0, sample.1);
                    }
                    samples.push(sample);
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
        // Not the median: after each fault there are more for some seconds.
        let (before, after) = (at(first, 10, |one| one.1), at(last, 10, |one| one.1));
        verdicts.add(after <= before + DESCRIPTORS, format!("descriptors: {before:.0}, {after:.0}"));
        Ok(())
    }
}

/// MiB, and descriptors without the connections of clients: a busy machine has more of those.
fn sample((pid, port): (u32, u16)) -> Option<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = kib.split_whitespace().next()?.parse().ok()?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some((kib / 1024.0, descriptors.saturating_sub(clients(port)?) as f64))
}

/// The established connections of clients of a local port.
pub fn clients(port: u16) -> Option<usize> {
    let connections = fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!(":{port:04X}");
    let is_client = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|address| address.ends_with(&local)) && fields.nth(1) == Some("01")
    };
    Some(connections.lines().filter(is_client).count())
}

fn at(of: &[(f64, f64)], percent: usize, value: fn(&(f64, f64)) -> f64) -> f64 {
    let mut values: Vec<f64> = of.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() * percent / 100]
}
