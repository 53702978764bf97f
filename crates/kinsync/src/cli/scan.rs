//! What `kinsync backfill` and `kinsync reconcile` share: a scan in this process, and how it is told.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use indicatif::ProgressBar;
use kinsync_engine::{
    clock::Clock,
    reconcile::{
        Error, Reconciler,
        record::{self, Kind, Run, Tally, Wish},
    },
    store::Store,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{exit::Exit, output};
use crate::{
    app::{management::reconciler, start::open_store},
    config::Config,
    json as shape,
};

/// What to say of each kind of difference: when it was repaired, and when it would be.
const KINDS: [(Kind, &str, &str); 10] = [
    (Kind::Missing, "created", "would be created"),
    (Kind::Changed, "changed", "would be changed"),
    (Kind::Filled, "filled in what no event tells", "would be filled in with what no event tells"),
    (Kind::SignedIn, "newer sign-in", "have a newer sign-in"),
    (Kind::Gone, "deleted", "would be deleted"),
    (Kind::Held, "deletion held", "deletion would be held"),
    (Kind::Restored, "restored", "would be restored"),
    (Kind::Listed, "left deleted, though listed", "would be left deleted, though listed"),
    (Kind::Rejected, "refused by the store", "refused by the store"),
    (
        Kind::Unknown,
        "left, without a clear answer of Kinde's",
        "would be left, without a clear answer of Kinde's",
    ),
];

/// How long another process is waited for: longer than a lease lasts.
const PATIENCE: Duration = Duration::from_secs(45);

/// A store and Kinde, open.
pub(super) struct Scanner {
    reconciler: Reconciler,
    store: Arc<dyn Store>,
}

impl Scanner {
    /// A dry wish makes nothing in the store, no index either.
    pub(super) async fn open(config: &Config, wish: &Wish) -> Result<Self, Exit> {
        let opened = open_store(config).await.map_err(anyhow::Error::from);
        let opened = match config.store.mongodb_uri {
            Some(_) => opened,
            None => opened.context(
                "cannot open the users file; while `kinsync serve` runs on it only it can: `kinsync reconcile --soon` \
                 asks it, also with `--approve RUN`",
            ),
        }?;
        let store = opened.store();
        let missing = || {
            anyhow!(
                "the Management API is needed: set KINDE_DOMAIN, KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET (a \
                 machine-to-machine application in Kinde with the scope `read:users`)"
            )
        };
        let reconciler =
            reconciler(config, Arc::clone(&store), Clock::system()).map_err(anyhow::Error::from)?;
        let reconciler = reconciler.ok_or_else(missing)?;
        if *wish != Wish::Dry {
            opened.prepare().await.map_err(anyhow::Error::from)?;
        }
        Ok(Self { reconciler, store })
    }

    /// Does what is wished, with a bar on a terminal; Ctrl-C stops it well.
    pub(super) async fn run(&self, wish: Wish, expect: Option<u64>) -> Result<Run, Exit> {
        let bar = self.bar(expect).await?;
        let progress = |tally: &Tally| {
            bar.set_position(tally.users);
            bar.set_message(told(tally));
        };
        let stop = CancellationToken::new();
        let run = self.when_free(wish, &bar, &progress, &stop);
        let stopped = async {
            _ = tokio::signal::ctrl_c().await;
            stop.cancel();
            std::future::pending::<()>().await;
        };
        let run = tokio::select! { run = run => run, () = stopped => unreachable!("it waits for ever") };
        bar.finish_and_clear();
        run.map_err(failed)
    }

    /// Waits for the end of a scan of another process, or of the lease of one that was killed.
    async fn when_free(
        &self,
        wish: Wish,
        bar: &ProgressBar,
        progress: &(dyn Fn(&Tally) + Send + Sync),
        stop: &CancellationToken,
    ) -> Result<Run, Error> {
        let asked = Instant::now();
        loop {
            match self.reconciler.run(wish.clone(), progress, stop).await {
                Err(Error::Busy { holder }) if asked.elapsed() < PATIENCE => {
                    bar.set_message(format!("users; waiting, {holder} is scanning"));
                    bar.tick();
                    let pause = tokio::time::sleep(Duration::from_secs(1));
                    stop.run_until_cancelled(pause).await.ok_or(Error::Stopped)?;
                }
                done => return done,
            }
        }
    }

    /// Kinde does not say how many users there are: what the last scan saw is a good guess.
    async fn bar(&self, expect: Option<u64>) -> Result<ProgressBar, Exit> {
        let runs = record::runs(&*self.store).await.map_err(anyhow::Error::from)?;
        let last = runs.iter().find(|run| run.is_complete()).map(|run| run.tally.users);
        Ok(match expect.or(last) {
            Some(end) => output::counter_to("users", end),
            None => output::counter("users"),
        })
    }
}

fn failed(error: Error) -> Exit {
    match error {
        Error::Busy { .. } => Exit::Unavailable(error.to_string()),
        error => Exit::Failed(error.into()),
    }
}

/// A few words for the bar.
fn told(tally: &Tally) -> String {
    let of = |kind| tally.of(kind);
    format!(
        "users: {} created, {} changed, {} unchanged",
        of(Kind::Missing),
        of(Kind::Changed) + of(Kind::Filled) + of(Kind::SignedIn),
        tally.unchanged
    )
}

/// A run, for people or for programs.
pub(super) fn show(run: &Value, as_json: bool) {
    if as_json {
        return output::json(run);
    }
    let is_dry = run["wish"] == "dry";
    let examples = run["examples"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !examples.is_empty() {
        let columns = [
            ("USER", "user"),
            ("", "kind"),
            ("FIELDS", "fields"),
            ("KNOWN", "knownAt"),
            ("FROM", "knownFrom"),
        ];
        let rows: Vec<Value> = examples.iter().map(|one| row(one, is_dry)).collect();
        output::table(&rows, &columns);
        let all: u64 =
            run["drift"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
        let more = all.saturating_sub(rows.len() as u64);
        output::say(&if more > 0 { format!("… and {more} more\n") } else { String::new() });
    }
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let mut parts =
        vec![format!("{} users at Kinde: {} unchanged", number(&run["users"]), number(&run["unchanged"]))];
    for (kind, done, would) in KINDS {
        let count = number(&run["drift"][kind.as_str()]);
        if count > 0 {
            parts.push(format!("{count} {}", if is_dry { would } else { done }));
        }
    }
    output::say(&parts.join(", "));
    for (key, begins) in [
        ("arrived", "Changed since the scan before, by the way it came"),
        ("knownFrom", "Missed by webhooks, by what had told of the user before"),
    ] {
        let ways = counts(&run[key]);
        if !ways.is_empty() && !run["since"].is_null() {
            output::say(&format!("{begins}: {ways}"));
        }
    }
    let id = run["id"].as_str().unwrap_or_default();
    if number(&run["drift"]["held"]) > 0 && !is_dry {
        output::say(&format!(
            "So many deletions at once need your word. If they are right: kinsync reconcile --approve {id}"
        ));
    }
}

/// `120 webhook, 3 login`
fn counts(map: &Value) -> String {
    let ways = map.as_object().into_iter().flatten().map(|(way, count)| format!("{count} {way}"));
    ways.collect::<Vec<_>>().join(", ")
}

fn row(example: &Value, is_dry: bool) -> Value {
    let word = KINDS.iter().find(|(kind, ..)| example["kind"] == kind.as_str());
    let fields: Vec<&str> =
        example["fields"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    json!({
        "user": example["user"],
        "kind": word.map(|(_, done, would)| if is_dry { would } else { done }),
        "fields": fields.join(", "),
        "knownAt": example["knownAt"],
        "knownFrom": example["knownFrom"],
    })
}

/// What a run would do about a user of this kind.
pub(super) fn would(kind: &str) -> &'static str {
    KINDS.iter().find(|(one, ..)| one.as_str() == kind).map_or("differs", |(_, _, would)| would)
}

/// A run of this process as JSON.
pub(super) fn value(run: &Run) -> Value {
    shape::run_with_examples(run)
}
