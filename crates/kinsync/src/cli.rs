//! The command line: one file per command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod client;
mod config;
mod dead_letters;
mod dev;
mod events;
mod exit;
mod flags;
mod output;
mod serve;
mod users;

use exit::Exit;

const AFTER_HELP: &str = "\
Start:
  kinsync dev                                             a local Kinde and a town of users, to see it work
  KINDE_WEBHOOK_SECRET=… MONGODB_URI=mongodb://127.0.0.1:27017/app kinsync serve
  KINDE_DOMAIN=https://acme.kinde.com kinsync serve       (users in a file, nothing else needed)

Look:
  kinsync config show                                     every setting, its value and where it came from
  kinsync users list --email ada@example.com
  kinsync dead-letters list

Settings are flags, environment variables or lines of a TOML file (--config), in this order of weight.

Exit codes: 0 done, 1 failed, 2 wrong usage, 69 the server cannot be reached, 77 no permission,
78 wrong settings";

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
    /// All of it at once, with a town to watch: nothing to install, nothing to set
    Dev(dev::Args),
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
        Command::Dev(args) => dev::run(args),
        Command::Config(command) => config::run(command),
        Command::Users(command) => users::run(command),
        Command::Events(command) => events::run(command),
        Command::DeadLetters(command) => dead_letters::run(command),
    };
    exit.unwrap_or_else(Exit::report)
}
