//! Faults of every kind, one after the other: in each cycle every kind once, in random order.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;
use fastrand::Rng;
use kinde_emulator::{DeliveryState, Fault, FaultKind};
use kinsync_testing::app::TestApp;
use kinsync_testing::mongo::TestMongo;
use kinsync_testing::rabbitmq::TestRabbitmq;
use kinsync_testing::redis::TestRedis;
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until};

use crate::checks::{DRAIN, logged};
use crate::deployment::{Deployment, PREFIX};

const DISK_FULL: &str = "disk full and queue paused";
const KINDS: [&str; 17] = [
    "process stopped",
    "process killed",
    "process killed with a backlog",
    "process paused",
    "queue killed",
    "queue killed with a backlog",
    "queue paused",
    "queue without memory",
    "queue lost with a backlog",
    DISK_FULL,
    "network slow",
    "MongoDB killed",
    "MongoDB paused",
    "events lost",
    "events repeated",
    "events reordered",
    "Kinde unavailable",
];

/// Time for which MongoDB is paused before, so that entries wait in the queue.
const BACKLOG: Duration = Duration::from_secs(4);

/// Longest time until a process reports its full disk, which it checks every ten seconds.
const REPORTED: Duration = Duration::from_mins(1);

/// Inflicts faults until `length` after `start`. None is in effect afterwards. Returns the events that a fault may have deleted from the
/// queue after they were accepted.
pub async fn inflict(
    deployment: &mut Deployment,
    seed: u64,
    start: Instant,
    length: Duration,
) -> anyhow::Result<HashSet<String>> {
    let (mut random, end) = (Rng::with_seed(seed), start + length);
    let (mut kinds, mut may_be_lost) = (Vec::new(), HashSet::new());
    if deployment.disk.is_none() {
        println!("skipped: {DISK_FULL} (only root can mount a small file system)");
    }
    loop {
        sleep(Duration::from_millis(random.u64(1000..5000))).await;
        if kinds.is_empty() {
            kinds = KINDS.to_vec();
            kinds.retain(|kind| *kind != DISK_FULL || deployment.disk.is_some());
            random.shuffle(&mut kinds);
        }
        let hold = Duration::from_millis(random.u64(2000..15_000));
        let Some(kind) = kinds.pop().filter(|_| Instant::now() + hold < end) else {
            sleep_until(end).await;
            return Ok(may_be_lost);
        };
        println!("{:>6.0} s  {kind} for {hold:.0?}", start.elapsed().as_secs_f64());
        if kind == "queue lost with a backlog" {
            let lost = lose_the_queue(deployment, &may_be_lost).await.with_context(|| kind.to_owned())?;
            may_be_lost.extend(lost);
        } else {
            one(kind, deployment, &mut random, hold).await.with_context(|| kind.to_owned())?;
        }
    }
}

/// Deletes the queue while entries wait in it. Returns the events that it may have contained: they were accepted after all earlier ones
/// were applied, and are not in the log. Fails if an earlier one is not applied: that this fault deleted it would be no explanation.
async fn lose_the_queue(
    deployment: &mut Deployment,
    may_be_lost: &HashSet<String>,
) -> anyhow::Result<HashSet<String>> {
    let Deployment { kinde, mongo, queue, .. } = deployment;
    let sent = |states: &[DeliveryState]| -> HashSet<String> {
        let sent = kinde.deliveries().into_iter().filter(|one| states.contains(&one.state));
        sent.map(|one| one.event_id).collect()
    };
    let mut earlier = sent(&[DeliveryState::Delivered]);
    earlier.retain(|event| !may_be_lost.contains(event));
    until_logged(mongo, &earlier).await?;
    block_in_place(|| mongo.pause());
    sleep(BACKLOG).await;
    queue.run(
        |redis| _ = redis.run("FLUSHALL"),
        // A purge would leave what the processes hold, which is all at this load.
        |rabbitmq| _ = rabbitmq.control(&["delete_queue", &format!("{PREFIX}.queue")]),
    );
    // One that is on its way may have been in the queue too.
    let mut lost = sent(&[DeliveryState::Delivered, DeliveryState::Pending]);
    block_in_place(|| mongo.resume());
    // Killed before, RabbitMQ starts the queue that is declared again empty.
    queue.run(|_| {}, |rabbitmq| rabbitmq.until_saved(PREFIX));
    let logged = logged(mongo).await?;
    lost.retain(|event| !logged.contains(event) && !earlier.contains(event));
    Ok(lost)
}

/// Waits until all these events are in the log.
async fn until_logged(mongo: &TestMongo, events: &HashSet<String>) -> anyhow::Result<()> {
    let deadline = Instant::now() + DRAIN;
    loop {
        let logged = logged(mongo).await?;
        let missing: Vec<_> = events.difference(&logged).take(10).collect();
        if missing.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "accepted events are not in the log: {missing:?}");
        sleep(Duration::from_secs(1)).await;
    }
}

async fn one(
    kind: &str,
    deployment: &mut Deployment,
    random: &mut Rng,
    hold: Duration,
) -> anyhow::Result<()> {
    let Deployment { apps, kinde, mongo, queue, network, .. } = deployment;
    let of_kinde = async |faults: Vec<Fault>| {
        for fault in faults {
            kinde.set_fault(fault);
        }
        sleep(hold).await;
        kinde.clear_faults();
    };
    if kind.ends_with("with a backlog") {
        block_in_place(|| mongo.pause());
        sleep(BACKLOG).await;
    }
    match kind {
        "process stopped" => {
            let app = random.usize(1..apps.len());
            apps[app].stop().await?;
            sleep(hold).await;
            apps[app].start().await?;
        }
        "process killed" | "process killed with a backlog" => {
            // Not the first: its memory is compared.
            let app = random.usize(1..apps.len());
            apps[app].kill()?;
            block_in_place(|| mongo.resume());
            sleep(hold).await;
            apps[app].start().await?;
        }
        "process paused" => {
            let app = &apps[random.usize(..apps.len())];
            let pid =
                app.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("it is not running")?;
            kill_process(pid, Signal::STOP)?;
            sleep(hold).await;
            kill_process(pid, Signal::CONT)?;
        }
        "queue killed" | "queue killed with a backlog" => {
            queue.run(TestRedis::kill, TestRabbitmq::kill);
            block_in_place(|| mongo.resume());
            sleep(hold).await;
            queue.run(TestRedis::launch, TestRabbitmq::launch);
        }
        "queue paused" => {
            queue.run(TestRedis::pause, TestRabbitmq::pause);
            sleep(hold).await;
            queue.run(TestRedis::resume, TestRabbitmq::resume);
        }
        "queue without memory" => {
            queue.run(
                |redis| _ = redis.run("CONFIG SET maxmemory 1"),
                |rabbitmq| _ = rabbitmq.control(&["set_vm_memory_high_watermark", "absolute", "1"]),
            );
            sleep(hold).await;
            queue.run(
                |redis| _ = redis.run("CONFIG SET maxmemory 0"),
                |rabbitmq| _ = rabbitmq.control(&["set_vm_memory_high_watermark", "0.4"]),
            );
        }
        DISK_FULL => fill_disk(deployment, hold).await?,
        "network slow" => {
            // Above one second deliveries wait in the data folder.
            network.set_delay(Duration::from_millis(random.u64(20..2000)));
            sleep(hold).await;
            network.set_delay(Duration::ZERO);
        }
        "MongoDB killed" => {
            block_in_place(|| mongo.stop());
            sleep(hold).await;
            mongo.restart().await;
        }
        "MongoDB paused" => {
            block_in_place(|| mongo.pause());
            sleep(hold).await;
            block_in_place(|| mongo.resume());
        }
        "events lost" => of_kinde(vec![Fault::chance(FaultKind::Drop, 0.3)]).await,
        "events repeated" => {
            of_kinde(vec![Fault::chance(FaultKind::Duplicate { copies: 2 }, 0.5)]).await;
        }
        "events reordered" => {
            let hold = Duration::from_secs(5);
            of_kinde(vec![Fault::chance(FaultKind::Reorder { behind: 20, hold }, 0.5)]).await;
        }
        "Kinde unavailable" => {
            let fails = |route| Fault::chance(FaultKind::Status { status: 503 }, 0.8).on(route);
            of_kinde(["jwks", "token", "management"].map(fails).into()).await;
        }
        _ => anyhow::bail!("it has no effect"),
    }
    Ok(())
}

/// Fills the disk of the spool of the last process, also while the shared queue does not answer.
async fn fill_disk(deployment: &mut Deployment, hold: Duration) -> anyhow::Result<()> {
    let Deployment { disk, apps, queue, .. } = deployment;
    let (disk, app) = (disk.as_ref().context("there is none")?, apps.last_mut().context("there is none")?);
    disk.fill()?;
    let is_reported =
        async |app: &mut TestApp| Ok(app.health().await?["components"]["queue"]["spoolFailing"] == true);
    app.until("the full disk is reported", REPORTED, is_reported).await?;
    // What it refuses Kinde sends again.
    queue.run(TestRedis::pause, TestRabbitmq::pause);
    sleep(hold).await;
    queue.run(TestRedis::resume, TestRabbitmq::resume);
    disk.free()
}
