//! The command line: one file per command.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{CommandFactory, Parser, Subcommand};

mod audit;
mod backfill;
mod client;
mod config;
mod dead_letters;
#[cfg(feature = "dev")]
mod dev;
mod doctor;
mod erase;
mod events;
pub mod exit;
mod flags;
mod health;
mod link;
mod list;
mod organizations;
mod output;
mod queue;
mod queue_move;
mod rebuild;
mod reconcile;
mod roles;
mod runs;
mod runtime;
mod scan;
mod serve;
mod state;
mod stats;
mod users;
mod webhook;

use exit::Exit;

#[cfg(feature = "dev")]
const DEV: &str = "  kinsync dev                               try it with a local Kinde\n";
#[cfg(not(feature = "dev"))]
const DEV: &str = "";

// Lines of examples fit into 80 columns; a paragraph is one line, which clap wraps.
const EXAMPLES: &str = "  kinsync serve                             run the server
  kinsync webhook setup --public-url URL    register the webhook at Kinde
  kinsync backfill                          load the users of Kinde

Inspect:
  kinsync doctor                            check the configuration
  kinsync config show                       list the settings
  kinsync users list --email ada@example.com
  kinsync reconcile --dry-run               list differences from Kinde
  kinsync dead-letters list                 list failed deliveries
  kinsync link --dry-run                    list documents to link to users
  kinsync rebuild --verify                  compare users with the event log

A setting is a flag, an environment variable or a line of a TOML file (--config). \
Flags take precedence over the environment, and the environment over the file.

Exit codes:
";

fn after_help() -> String {
    let lines = exit::CODES.iter().map(|(code, meaning)| format!("  {code:<3}{meaning}"));
    format!("Start:\n{DEV}{EXAMPLES}{}", lines.collect::<Vec<_>>().join("\n"))
}

/// Mirrors Kinde users into your database.
#[derive(Debug, Parser)]
#[command(name = "kinsync", version, about, after_help = after_help(), max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server: accept deliveries and keep the stored users equal to Kinde's
    Serve(serve::Args),
    /// Try kinsync with a local Kinde and generated users; needs no settings
    #[cfg(feature = "dev")]
    Dev(Box<dev::Args>),
    /// Load every user of a Kinde tenant into the store
    Backfill(backfill::Args),
    /// Compare every user at Kinde with the store and repair the differences
    Reconcile(reconcile::Args),
    /// List scans of a running server and their results
    #[command(subcommand)]
    Runs(runs::Command),
    /// Link existing MongoDB documents to Kinde users by verified email address
    Link(link::Args),
    /// Derive the stored users from the event log again, or verify that both agree
    Rebuild(rebuild::Args),
    /// Check the Kinde, MongoDB, disk and server configuration and print a fix for each problem
    Doctor(doctor::Args),
    /// Check whether the running server accepts deliveries: exit code 0 or 1
    Health(health::Args),
    /// Create or update the webhook at Kinde
    #[command(subcommand)]
    Webhook(webhook::Command),
    /// Show or check the settings
    #[command(subcommand)]
    Config(config::Command),
    /// List, show and explain the users of a running server
    #[command(subcommand)]
    Users(users::Command),
    /// List and show the organizations that a running server has observed
    #[command(subcommand)]
    Organizations(organizations::Command),
    /// List and show the roles that a running server has observed
    #[command(subcommand)]
    Roles(roles::Command),
    /// List and show the events that a running server received
    #[command(subcommand)]
    Events(events::Command),
    /// Show daily figures: growth of the tenant, and operation of kinsync
    #[command(subcommand)]
    Stats(stats::Command),
    /// List, show, retry or remove deliveries that a running server could not process
    #[command(subcommand, visible_alias = "dlq")]
    DeadLetters(dead_letters::Command),
    /// List the requests of operators that read personal data or changed something
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show the queue in the data folder, also while a server runs, or move the deliveries of another queue
    #[command(subcommand)]
    Queue(queue::Command),
    /// List or reset the records that kinsync keeps in the store
    #[command(subcommand)]
    State(state::Command),
}

/// Returns the description of the command line, from which its reference is generated.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command of this process.
pub fn run() -> ExitCode {
    let exit = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run(*args),
        Command::Backfill(args) => backfill::run(args),
        Command::Reconcile(args) => reconcile::run(args),
        Command::Runs(command) => runs::run(command),
        Command::Link(args) => link::run(args),
        Command::Rebuild(args) => rebuild::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Health(args) => health::run(args),
        Command::Webhook(command) => webhook::run(command),
        Command::Config(command) => config::run(command),
        Command::Users(command) => users::run(command),
        Command::Organizations(command) => organizations::run(command),
        Command::Roles(command) => roles::run(command),
        Command::Events(command) => events::run(command),
        Command::Stats(command) => stats::run(command),
        Command::DeadLetters(command) => dead_letters::run(command),
        Command::Audit(command) => audit::run(command),
        Command::Queue(command) => queue::run(command),
        Command::State(command) => state::run(command),
    };
    let code = exit.unwrap_or_else(Exit::report);
    match output::failure() {
        Some(error) => {
            Exit::from(anyhow!("the output is incomplete: stdout cannot be written: {error}")).report()
        }
        None => code,
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _};

    use super::Cli;

    fn check(command: &Command) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().filter(|line| line.starts_with(' ')) {
            assert!(line.chars().count() <= 80, "`{}`: {line}", command.get_name());
        }
        assert!(!help.lines().any(|line| line.starts_with("kinsync ")), "an example is not indented: {help}");
        command.get_subcommands().for_each(check);
    }

    #[test]
    fn indented_lines_of_the_help_fit_into_80_columns() {
        check(&Cli::command());
    }
}
