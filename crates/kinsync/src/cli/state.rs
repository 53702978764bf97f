//! `kinsync state list|reset`

use std::{process::ExitCode, sync::Arc};

use anyhow::anyhow;
use clap::Subcommand;
use kinsync_engine::internal::{
    directory, reconcile,
    state_records::{self, Key},
    store::{Error, Store, embedded::EmbeddedStore},
};
use serde::Serialize;
use serde_json::json;

use super::{audit, exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    app::start::open_store,
    config::{Config, Sources},
};

const AFTER_HELP: &str = "\
The store contains records of kinsync: leases, requests, held deletions, the list of scans. A version of kinsync that cannot read one of \
them stops and names it. Run the version that wrote the record, or reset the record. Stop every kinsync first: the embedded store is open \
in one process, and a running server may need the record.

Examples:
  kinsync state list
  kinsync state reset reconcile.held";

/// Name of the command in the audit log.
const COMMAND: &str = "kinsync state reset";

#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(super) enum Command {
    /// List the records, and what a reset of each loses
    List(List),
    /// Replace a record by an empty one
    Reset(Reset),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

/// The result of `list`, for programs.
#[derive(Serialize)]
struct Listed {
    records: Vec<ListedRecord>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedRecord {
    record: &'static str,
    /// `readable`, `unreadable` or `not stored`.
    state: &'static str,
    /// What a reset loses.
    after_reset: &'static str,
}

#[derive(Debug, clap::Args)]
pub(super) struct Reset {
    /// The record, such as `reconcile.held` or `directory/ID` for an organization, a role or a permission
    #[arg(value_parser = record)]
    record: Record,
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    block_on(async {
        match command {
            Command::List(args) => list(args).await,
            Command::Reset(Reset { record: Record::Key(key), flags }) => reset(key, flags).await,
            Command::Reset(Reset { record: Record::Directory(id), flags }) => {
                reset_directory(&id, flags).await
            }
        }
    })
}

/// A record to reset.
#[derive(Clone, Debug)]
enum Record {
    Key(&'static Key),
    /// Of an organization, a role or a permission.
    Directory(String),
}

fn record(name: &str) -> Result<Record, String> {
    if name.starts_with(directory::PREFIX) {
        return Ok(Record::Directory(name.to_owned()));
    }
    let keys = reconcile::state_keys();
    let names = || keys.map(|key| key.name).join(", ");
    let key = keys.into_iter().find(|key| key.name == name);
    key.map(Record::Key).ok_or_else(|| format!("the records are {} and directory/ID", names()))
}

/// Without its file a store would be created, and look empty.
pub(super) fn store_exists(config: &Config) -> Result<(), Exit> {
    let folder = &config.data_dir;
    if config.store.mongodb_uri.is_some() || EmbeddedStore::exists(folder) {
        return Ok(());
    }
    let folder = folder.display();
    Err(anyhow!("there is no store in {folder}: set MONGODB_URI or KINSYNC_DATA_DIR as for the server")
        .into())
}

/// Opens the store, and creates none.
async fn open(flags: ServerFlags) -> Result<Arc<dyn Store>, Exit> {
    let config = Config::of_command(&Sources::of_process(flags.0))?;
    store_exists(&config)?;
    Ok(open_store(&config).await.map_err(anyhow::Error::from)?.store())
}

async fn list(List { json, flags }: List) -> Result<ExitCode, Exit> {
    let store = open(flags).await?;
    let mut records = Vec::new();
    for key in reconcile::state_keys() {
        let state = state(&*store, key).await.map_err(anyhow::Error::from)?;
        records.push(ListedRecord { record: key.name, state, after_reset: key.reset });
    }
    if json {
        output::json(&Listed { records });
        return Ok(ExitCode::SUCCESS);
    }
    let rows = records.iter().map(|one| [one.record, one.state, one.after_reset].map(str::to_owned));
    output::text_table(["RECORD", "STATE", "AFTER A RESET"], rows);
    Ok(ExitCode::SUCCESS)
}

async fn state(store: &dyn Store, key: &Key) -> Result<&'static str, Error> {
    match state_records::check(store, key).await {
        Ok(true) => Ok("readable"),
        Ok(false) => Ok("not stored"),
        Err(Error::Refused { .. }) => Ok("unreadable"),
        Err(error) => Err(error),
    }
}

async fn reset(key: &'static Key, flags: ServerFlags) -> Result<ExitCode, Exit> {
    let record = key.name;
    let store = open(flags).await?;
    audit::record(&*store, COMMAND, json!({ "record": record })).await?;
    let is_stored = state_records::reset(&*store, key).await.map_err(anyhow::Error::from)?;
    report(record, is_stored.then_some(key.reset));
    Ok(ExitCode::SUCCESS)
}

/// Removes the record of an organization, a role or a permission.
async fn reset_directory(record: &str, flags: ServerFlags) -> Result<ExitCode, Exit> {
    let store = open(flags).await?;
    audit::record(&*store, COMMAND, json!({ "record": record })).await?;
    let is_stored = directory::reset(&*store, record).await.map_err(anyhow::Error::from)?;
    report(
        record,
        is_stored.then_some(
            "a later event, or the next scan that compares roles, stores it again; until that scan, older events about other objects of \
             its kind may show what was deleted",
        ),
    );
    Ok(ExitCode::SUCCESS)
}

fn report(record: &str, after: Option<&str>) {
    output::say(&match after {
        Some(after) => format!("reset: {after}"),
        None => format!("`{record}` is not stored; nothing was changed"),
    });
}
