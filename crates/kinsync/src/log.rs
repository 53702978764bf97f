//! Logging to stderr: text on a terminal, JSON lines elsewhere. Log lines contain ids, never names, emails or phone
//! numbers.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{self, LogFormat};

/// Starts logging for the process. A second call changes nothing.
pub fn start(config: &config::Log) {
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = io::stderr().is_terminal();
    let started = match config.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => {
            // Respects NO_COLOR, CLICOLOR and a terminal without colors.
            let colors = console::colors_enabled_stderr();
            fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colors).try_init()
        }
        LogFormat::Json => {
            fmt().json().flatten_event(true).with_env_filter(filter).with_writer(io::stderr).try_init()
        }
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string);
            let message = panic.payload_as_str().unwrap_or("no message");
            tracing::error!(place, message, "a bug: a task panicked");
        }));
    }
}
