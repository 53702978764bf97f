//! Runs several `kinsync serve` on one shared queue and one MongoDB, with the emulator as Kinde, under a constant load and under
//! faults of every kind in random order. Fails if an accepted delivery is lost that no fault deleted, if the stored users differ from Kinde in the end, if an
//! entry stays in the queue, or if memory or descriptors grow.
//!
//! [`load`]: deliveries of Kinde and requests of users; [`faults`]; [`samples`]: memory and descriptors; [`checks`]: what holds in the end.

mod checks;
mod deployment;
mod disk;
mod faults;
mod load;
mod samples;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::time::Instant;

use self::checks::Verdicts;
use self::deployment::Deployment;

/// Run kinsync under load and faults. `bench/run soak` builds the binaries and runs this command.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Minutes of load and faults.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Seed of the order of the faults and of the load; random by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of processes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=16))]
    processes: u64,
    /// The shared queue.
    #[arg(long, value_enum, default_value_t = Backend::Redis)]
    queue: Backend,
    /// Changes at Kinde per second.
    #[arg(long, default_value_t = 30.0)]
    changes: f64,
    /// Requests of users per second.
    #[arg(long, default_value_t = 30.0)]
    requests: f64,
    /// The binary.
    #[arg(long, value_name = "FILE")]
    kinsync: PathBuf,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Backend {
    Redis,
    Rabbitmq,
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = tokio::select! {
        result = run(Options::parse()) => result,
        // Dropping `run` stops all servers.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped by Ctrl-C")),
    };
    match result {
        Ok(verdicts) => verdicts.finish(),
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mut options: Options) -> anyhow::Result<Verdicts> {
    // The processes run in other folders.
    options.kinsync = options.kinsync.canonicalize().context("finding the binary")?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed} (repeat with --seed {seed}), {} minutes, {:?}", options.minutes, options.queue);
    let mut deployment = Deployment::start(&options, seed).await?;
    let (length, start) = (Duration::from_secs(options.minutes * 60), Instant::now());
    let load = load::Load::start(&deployment, &options, seed)?;
    let samples = samples::Samples::start(&deployment.apps[0]);
    let may_be_lost = faults::inflict(&mut deployment, seed, start, length).await?;
    let (users, answers) = load.stop().await?;
    println!("{:>6.0} s  the load ends", start.elapsed().as_secs_f64());
    let mut verdicts = Verdicts::default();
    let wrong = answers.keys().any(|answer| answer.starts_with("wrong"));
    verdicts.add(!wrong, format!("requests of users during the faults: {answers:?}"));
    samples.judge(&mut verdicts).await?;
    checks::check(deployment, &users, &may_be_lost, &mut verdicts).await?;
    Ok(verdicts)
}
