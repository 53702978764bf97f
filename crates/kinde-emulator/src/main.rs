//! `kinde-emulator`: runs a local Kinde, or controls a running one.

mod cli;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use tracing_subscriber::{
    Layer as _, filter::LevelFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // Logs the values of a request body that cannot be decoded, which may be secrets.
    let filter = cli.log.clone();
    let rest = filter.default_level().unwrap_or(LevelFilter::ERROR);
    let filter = filter.with_default(rest).with_target("axum::rejection", LevelFilter::OFF);
    let logs = fmt::layer().with_writer(std::io::stderr);
    // On a terminal the default applies, which respects NO_COLOR.
    let logs = if std::io::stderr().is_terminal() { logs } else { logs.with_ansi(false) };
    tracing_subscriber::registry().with(logs.with_filter(filter)).init();
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
