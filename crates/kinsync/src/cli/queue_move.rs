//! `kinsync queue move`

mod side;

use std::{process::ExitCode, time::Duration};

use anyhow::anyhow;
use kinsync_engine::{
    QueueError, Supervisor,
    internal::queue::{Transferred, transfer},
};
use serde::Serialize;
use tokio::time::Instant;

use self::side::{Next, Side};
use super::{exit::Exit, flags::ServerFlags, output, runtime::block_on_all};
use crate::{
    config::{Config, Sources},
    plural::counted,
};

const AFTER_HELP: &str = "\
Moves every delivery of a queue that no server will use any more into the queue of this configuration. The former queue is the data folder \
of a server that does not run again, or a queue in Redis or RabbitMQ after a change of KINSYNC_QUEUE or KINSYNC_QUEUE_PREFIX. Stop the \
servers on it first, and with KINSYNC_QUEUE=embedded the server of this configuration too.

A delivery is removed from the former queue only after it is durable in the other, so an interrupted move loses nothing: run it again. \
Dead letters stay where they are, and their number is printed. A delivery that is larger than the other queue accepts becomes a dead \
letter. The command ends when nothing is left, and fails after 10 minutes in which nothing could be moved, for example because a server \
still uses the former queue.

Examples:
  kinsync queue move --from /var/lib/kinsync-2
  kinsync queue move --from redis://queue.internal:6379 --from-prefix staging
  kinsync queue move --from @/run/secrets/former-queue    # with the address";

/// Longest time in which nothing moves.
const STANDSTILL: Duration = Duration::from_mins(10);

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Move {
    /// The queue to empty: a data folder, an address of Redis or RabbitMQ, or @FILE with one of them
    #[arg(long, value_name = "FOLDER|URL|@FILE")]
    from: String,
    /// Prefix of the names in the shared queue to empty; usually kinsync
    #[arg(long, value_name = "PREFIX")]
    from_prefix: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

/// The result, for programs.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Entries that are in the other queue now.
    moved: u64,
    /// Sightings that the other queue has no room for.
    dropped_sightings: u64,
    /// Entries that became dead letters, because they are larger than the other queue accepts.
    too_large: u64,
    /// Dead letters that only a server on the emptied queue lists. Absent if they were not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letters: Option<u64>,
}

pub(super) fn run(args: Move) -> Result<ExitCode, Exit> {
    let to = Config::of_command(&Sources::of_process(args.flags.0))?;
    let from = side::source(&args.from, args.from_prefix.as_deref(), &to)?;
    let (report, ended) = block_on_all(async {
        let supervisor = Supervisor::default();
        let (source, target) = side::open(&from, &to, &supervisor).await?;
        let mut report = Report::default();
        let mut ended = move_all(&source, &target, &mut report).await;
        if ended.is_ok() {
            let counted = dead_letters((&source, &from), (&target, &to)).await;
            ended = counted.map(|count| report.dead_letters = Some(count)).map_err(Exit::from);
        }
        source.queue().close().await;
        target.queue().close().await;
        supervisor.stop().await;
        Ok((report, ended))
    })?;
    if args.json {
        output::json(&report);
    } else {
        report.say();
    }
    ended.map(|()| ExitCode::SUCCESS)
}

impl Report {
    fn add(&mut self, Transferred { moved, dropped, dead, .. }: &Transferred) {
        self.moved += moved;
        self.dropped_sightings += dropped;
        self.too_large += dead;
    }

    fn say(&self) {
        let Self { moved, dropped_sightings, too_large, dead_letters } = *self;
        output::say(&format!("{} moved", counted(moved, "delivery", "deliveries")));
        if dropped_sightings > 0 {
            let dropped = counted(dropped_sightings, "sighting was", "sightings were");
            output::say(&format!(
                "{dropped} dropped for lack of room: the next request of the user makes it again"
            ));
        }
        if too_large > 0 {
            let dead = counted(too_large, "delivery was too large", "deliveries were too large");
            output::say(&format!("{dead} for this queue: dead letters now"));
        }
        if let Some(letters) = dead_letters.filter(|letters| *letters > 0) {
            let letters = counted(letters, "dead letter stays", "dead letters stay");
            output::say(&format!("{letters} there: start a server on that queue to list or retry them"));
        }
    }
}

async fn move_all(from: &Side, to: &Side, report: &mut Report) -> Result<(), Exit> {
    // A wrong address fails at once; later failures may end.
    from.queue().stats().await?;
    let bar = output::counter("deliveries");
    let (mut newest, mut has_waited) = (Instant::now(), false);
    loop {
        match from.next().await? {
            Next::Empty => break bar.finish_and_clear(),
            Next::Claimed(claimed) => {
                let accept = |entry| to.queue().enqueue(entry);
                let transferred = transfer(from.queue(), claimed, accept).await?;
                report.add(&transferred);
                bar.set_position(report.moved);
                transferred.failure.map_or(Ok(()), Err)?;
                newest = Instant::now();
            }
            Next::Later(reason) if newest.elapsed() > STANDSTILL => {
                let minutes = STANDSTILL.as_secs() / 60;
                return Err(anyhow!("nothing could be moved for {minutes} minutes: {reason}").into());
            }
            Next::Later(reason) if !has_waited => {
                bar.suspend(|| output::complain(&format!("waiting: {reason}")));
                has_waited = true;
            }
            Next::Later(_) => {}
        }
    }
    Ok(())
}

/// Counts the dead letters that the target does not list: not those in the store of both, nor those of its own spool.
async fn dead_letters(
    (source, from): (&Side, &Config),
    (target, to): (&Side, &Config),
) -> Result<u64, QueueError> {
    match (source, target) {
        #[cfg(feature = "rabbitmq")]
        (Side::Rabbitmq(..), Side::Rabbitmq(..)) => Ok(0),
        (Side::Embedded(_), _) if side::has_same_folder(from, to) => Ok(0),
        _ => source.dead_letters().await,
    }
}

#[cfg(test)]
mod tests {
    use kinsync_core::Micros;
    use kinsync_engine::{
        Clock,
        internal::queue::{
            Entry, Payload,
            embedded::{self, EmbeddedQueue},
        },
    };

    use super::*;

    fn opened(config: embedded::Config) -> (Side, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let queue = EmbeddedQueue::open(folder.path(), config, Clock::system()).unwrap();
        (Side::Embedded(queue), folder)
    }

    async fn sighted(queue: &Side, user: &str) {
        let payload = Payload::Sighting(user.as_bytes().to_vec().into());
        let entry = Entry { event_id: user.to_owned(), received_at: Micros(1), payload };
        queue.queue().enqueue(entry).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_move_gives_up_when_another_process_keeps_what_it_claimed() {
        let (from, to) = (opened(embedded::Config::default()), opened(embedded::Config::default()));
        sighted(&from.0, "kp_claimed").await;
        from.0.queue().claim(1, Duration::from_hours(1)).await.unwrap();
        sighted(&from.0, "kp_free").await;
        let (began, mut report) = (Instant::now(), Report::default());
        let Err(Exit::Failed(error)) = move_all(&from.0, &to.0, &mut report).await else {
            panic!("an entry is left")
        };
        assert!(error.to_string().contains("1 delivery is claimed"), "{error}");
        assert_eq!(report.moved, 1);
        assert!(began.elapsed() < Duration::from_mins(12), "{:?}", began.elapsed());
    }
}
