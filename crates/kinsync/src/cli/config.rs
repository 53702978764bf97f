//! `kinsync config show|check`

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::{exit::Exit, flags::ServerFlags, output};
use crate::config::{Config, Problem, Sources, rules::disabled, show::Document};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show every setting, its value and its origin; secrets are masked
    Show(Args),
    /// Check the settings and exit with 0 or 78
    Check(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::Show(args) => show(args),
        Command::Check(args) => check(args),
    }
}

/// Shows the merge of wrong settings too: that is when it is needed.
fn show(args: Args) -> Result<ExitCode, Exit> {
    let sources = Sources::of_process(args.flags.0);
    let outcome = Config::load(&sources);
    let merged = sources.merge(&mut Vec::new());
    let (warnings, disabled) = match &outcome {
        Ok(loaded) => (loaded.warnings.clone(), disabled(&loaded.config)),
        Err(_) => (Vec::new(), Vec::new()),
    };
    let document = Document::new(&merged, warnings, disabled);
    if args.json {
        output::json(&document);
    } else {
        print(&document);
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

fn print(document: &Document) {
    let rows = document.settings.iter().map(|setting| {
        let value = output::cell(setting.value.as_ref());
        [setting.key.to_owned(), value, setting.origin.clone(), setting.env.to_owned()]
    });
    output::table(["KEY", "VALUE", "FROM", "VARIABLE"], rows);
    if !document.fields.is_empty() {
        output::say("\nKeys of the user document");
        output::one(&document.fields, false);
    }
    for (table, fields) in &document.other_fields {
        output::say(&format!("\nKeys in [{table}]"));
        output::one(fields, false);
    }
    if !document.defaults.is_empty() {
        output::say("\nDefaults of inserted documents");
        output::one(&document.defaults, false);
    }
    for part in &document.disabled {
        output::say(&format!("disabled: {}; set {} to enable it", part.what, part.enabled_by));
    }
    for warning in &document.warnings {
        output::say(&format!("warning: {warning}"));
    }
}

/// The result of `check`, for programs.
#[derive(Serialize)]
struct Checked<'a> {
    ok: bool,
    problems: &'a [Problem],
    warnings: &'a [String],
}

fn check(args: Args) -> Result<ExitCode, Exit> {
    let outcome = Config::load(&Sources::of_process(args.flags.0));
    if args.json {
        output::json(&match &outcome {
            Ok(loaded) => Checked { ok: true, problems: &[], warnings: &loaded.warnings },
            Err(problems) => Checked { ok: false, problems: &problems.0, warnings: &[] },
        });
    }
    let loaded = outcome?;
    if !args.json {
        for warning in &loaded.warnings {
            output::say(&format!("warning: {warning}"));
        }
        output::say("the settings are right");
    }
    Ok(ExitCode::SUCCESS)
}
