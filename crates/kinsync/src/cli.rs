//! The command line: one file per command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod adopt;
mod backfill;
mod client;
mod config;
mod dead_letters;
#[cfg(feature = "dev")]
mod dev;
mod doctor;
mod events;
mod exit;
mod flags;
mod output;
mod reconcile;
mod runs;
mod runtime;
mod scan;
mod serve;
mod users;
mod webhook;

use exit::Exit;

const AFTER_HELP: &str = "\
Start:
  kinsync dev                                             try it with a local Kinde and generated users
  KINDE_WEBHOOK_SECRET=… MONGODB_URI=mongodb://127.0.0.1:27017/app kinsync serve
  KINDE_DOMAIN=https://acme.kinde.com kinsync serve       (users in a file, nothing else needed)
  kinsync backfill                                        everybody who is at Kinde already

  kinsync webhook setup --public-url https://…            let Kinde deliver to it

Look:
  kinsync doctor                                          is everything right, and what to do where not
  kinsync config show                                     every setting, its value and where it came from
  kinsync users list --email ada@example.com
  kinsync dead-letters list
  kinsync reconcile --dry-run                             what no webhook told of
  kinsync adopt --dry-run                                 your rows from before kinsync, and what becomes of them

Settings are flags, environment variables or lines of a TOML file (--config), in this order of weight.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something waits for your word, 69 the server cannot be
reached, 77 no permission, 78 wrong settings";

/// Keeps a true copy of Kinde's users in your database.
#[derive(Debug, Parser)]
#[command(name = "kinsync", version, about, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Accept deliveries and keep the users true
    Serve(serve::Args),
    /// Try kinsync with a local Kinde and generated users; needs no settings
    #[cfg(feature = "dev")]
    Dev(dev::Args),
    /// Load all users of a Kinde tenant, the first time
    Backfill(backfill::Args),
    /// Find what no webhook told of, and repair it
    Reconcile(reconcile::Args),
    /// What the scans found, on a running server
    #[command(subcommand)]
    Runs(runs::Command),
    /// Rows of yours from before kinsync: which become users, and which cannot; in MongoDB
    Adopt(adopt::Args),
    /// Whether Kinde, MongoDB, the disk and the server are as they should be, and what to do where not
    Doctor(doctor::Args),
    /// The webhook at Kinde
    #[command(subcommand)]
    Webhook(webhook::Command),
    /// Show or check the settings
    #[command(subcommand)]
    Config(config::Command),
    /// Look at users, on a running server
    #[command(subcommand)]
    Users(users::Command),
    /// Look at the event log, on a running server
    #[command(subcommand)]
    Events(events::Command),
    /// Deliveries that could not be understood: look, try again, drop; on a running server
    #[command(subcommand, visible_alias = "dlq")]
    DeadLetters(dead_letters::Command),
}

/// Runs the command of this process.
pub fn run() -> ExitCode {
    let exit = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run(args),
        Command::Backfill(args) => backfill::run(args),
        Command::Reconcile(args) => reconcile::run(args),
        Command::Runs(command) => runs::run(command),
        Command::Adopt(args) => adopt::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Webhook(command) => webhook::run(command),
        Command::Config(command) => config::run(command),
        Command::Users(command) => users::run(command),
        Command::Events(command) => events::run(command),
        Command::DeadLetters(command) => dead_letters::run(command),
    };
    exit.unwrap_or_else(Exit::report)
}
