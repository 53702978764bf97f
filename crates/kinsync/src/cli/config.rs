//! `kinsync config show|check`

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{exit::Exit, flags::ServerFlags, output};
use crate::config::{Config, Sources, rules::closed_doors, show};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show every setting, its value and where it came from; secrets are masked
    Show(Args),
    /// Check the settings; exits with 0 or 78
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

/// Shows the merge also when it is wrong: that is when it is looked at.
fn show(args: Args) -> Result<ExitCode, Exit> {
    let sources = Sources::of_process(args.flags.0);
    let outcome = Config::load(&sources);
    let merged = sources.merge(&mut Vec::new());
    let (warnings, closed) = match &outcome {
        Ok(loaded) => (loaded.warnings.clone(), closed_doors(&loaded.config)),
        Err(_) => (Vec::new(), Vec::new()),
    };
    let document = show::json(&merged, &warnings, &closed);
    if args.json {
        output::json(&document);
    } else {
        print(&document);
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

fn print(document: &Value) {
    let rows = document["settings"].as_array().cloned().unwrap_or_default();
    output::table(&rows, &[("KEY", "key"), ("VALUE", "value"), ("FROM", "origin"), ("VARIABLE", "env")]);
    if document["fields"].as_object().is_some_and(|fields| !fields.is_empty()) {
        output::say("\nRenamed fields");
        output::object(&document["fields"]);
    }
    for door in document["closed"].as_array().into_iter().flatten() {
        let text = |key: &str| door[key].as_str().unwrap_or_default().to_owned();
        output::say(&format!("closed: {}; set {} to open", text("what"), text("openedBy")));
    }
    for warning in document["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::say(&format!("warning: {warning}"));
    }
}

fn check(args: Args) -> Result<ExitCode, Exit> {
    let outcome = Config::load(&Sources::of_process(args.flags.0));
    if args.json {
        let (warnings, problems) = match &outcome {
            Ok(loaded) => (loaded.warnings.clone(), Vec::new()),
            Err(problems) => (Vec::new(), problems.0.clone()),
        };
        let problems: Vec<Value> = problems
            .into_iter()
            .map(|p| json!({ "name": p.name, "message": p.message, "example": p.example }))
            .collect();
        output::json(&json!({ "ok": problems.is_empty(), "problems": problems, "warnings": warnings }));
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
