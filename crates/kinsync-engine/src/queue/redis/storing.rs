//! Entries that are stored together, by one script.

use std::time::Duration;

use redis::{Cmd, Pipeline, cmd};

use super::{Shared, connection::Failure, millis, rows, script};
use crate::queue::{Enqueued, Entry, Error, batches::Outcomes};

/// Longest time that replicas have to confirm an entry.
const WAIT: Duration = Duration::from_secs(1);

/// Why entries are not stored as required.
enum Stored {
    Failed(Failure),
    /// Number of replicas that have the entries.
    TooFewReplicas(u32),
}

impl Shared {
    pub(super) async fn store(&self, entries: &[Entry]) -> Outcomes {
        let mut script = script(include_str!("enqueue.lua"), &[&self.keys.stream, &self.keys.seen]);
        script.arg(self.config.max_entries).arg(self.config.dedupe_window);
        for entry in entries {
            rows::add_entry(&mut script, entry);
        }
        let stored = self.stored(script).await;
        let outcome = |at| match &stored {
            Ok(answers) => self.answer(answers.get(at)),
            Err(Stored::Failed(failure)) => Err(failure.clone().into()),
            Err(Stored::TooFewReplicas(have)) => Err(Failure::too_few_replicas(self.config.replicas, *have)),
        };
        (0..entries.len()).map(outcome).collect()
    }

    async fn stored(&self, script: Cmd) -> Result<Vec<i64>, Stored> {
        if self.config.replicas == 0 {
            return self.entries.run(&script).await.map_err(Stored::Failed);
        }
        let mut both = Pipeline::new();
        let mut wait = cmd("WAIT");
        wait.arg(self.config.replicas).arg(millis(WAIT));
        both.add_command(script).add_command(wait);
        let (answers, have): (Vec<i64>, u32) = self.entries.run_all(&both).await.map_err(Stored::Failed)?;
        if have < self.config.replicas { Err(Stored::TooFewReplicas(have)) } else { Ok(answers) }
    }

    fn answer(&self, answer: Option<&i64>) -> Result<Enqueued, Error> {
        match answer {
            Some(1) => Ok(Enqueued::New),
            Some(0) => Ok(Enqueued::Duplicate),
            _ => Err(Error::Full { depth: self.config.max_entries, bytes: 0 }),
        }
    }
}
