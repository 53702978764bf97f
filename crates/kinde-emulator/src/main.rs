//! `kinde-emulator`: runs a local Kinde, or controls a running one.

mod cli;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Logs the values of a request body that cannot be decoded, which may be secrets.
    let filter = filter.add_directive("axum::rejection=off".parse().expect("the directive is valid"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // On a terminal the default applies, which respects NO_COLOR.
    if std::io::stderr().is_terminal() {
        logs.init();
    } else {
        logs.with_ansi(false).init();
    }
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
