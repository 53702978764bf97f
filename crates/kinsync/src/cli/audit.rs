//! `kinsync audit list`, and the records of commands that change something without a server

use std::process::ExitCode;

use clap::Subcommand;
use kinsync_engine::{
    Clock,
    internal::{
        audit::{AuditLog, Kind, Record},
        store::Store,
    },
};
use serde_json::Value;

use super::{
    exit::Exit,
    list::{Column, List, Page},
};
use crate::api::audit::{AuditPage, AuditQuery, AuditRecord};

const LIST_HELP: &str = "\
The name of the admin token identifies the operator. The same read, repeated within ten minutes, is one record with a count. Of each kind \
the newest 10,000 records are kept, for up to 400 days.

Example:
  kinsync audit list --json | jq '.records[] | select(.kind == \"action\")'";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the requests of operators that read personal data or changed something, newest first
    #[command(after_help = LIST_HELP)]
    List(List<AuditQuery>),
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(list) => list.run::<AuditPage>(),
    }
}

/// Records a command that changes something in the audit log and in the event log. Comes before the change, so that no change is
/// without a record. `parameters` is a JSON object.
pub(super) async fn record(store: &dyn Store, command: &str, parameters: Value) -> Result<(), Exit> {
    let record = Record::new(Kind::Action, Clock::system().now(), ("command line".into(), "local".into()));
    let record = record.of(command.to_owned(), parameters.as_object().cloned().unwrap_or_default());
    Ok(AuditLog::default().add(store, &record).await.map_err(anyhow::Error::from)?)
}

impl Page for AuditPage {
    type Query = AuditQuery;
    type Item = AuditRecord;

    const PATH: &'static str = "audit";
    const COLUMNS: &'static [Column<AuditRecord>] = &[
        ("AT", |record| record.last_at.to_string()),
        ("ACTOR", |record| record.actor.clone()),
        ("ADDRESS", |record| record.peer.clone()),
        ("COUNT", |record| record.count.to_string()),
        ("REQUEST", |record| record.route.clone()),
        ("PARAMETERS", parameters),
    ];

    fn items(&self) -> &[AuditRecord] {
        &self.records
    }

    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }
}

fn parameters(record: &AuditRecord) -> String {
    if record.parameters.is_empty() {
        return String::new();
    }
    serde_json::to_string(&record.parameters).expect("a map has only text keys")
}
