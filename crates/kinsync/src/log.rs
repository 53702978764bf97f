//! Logging to stderr: text on a terminal, JSON lines elsewhere. Log lines contain ids, never names, emails or phone
//! numbers. With the feature `otlp`, also the export of the traces of deliveries.

#[cfg(feature = "otlp")]
mod otlp;

use std::io::{self, IsTerminal};

use tracing_subscriber::{Layer, Registry, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{self, LogFormat};

/// Exports the traces that are left when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Traces {
    #[cfg(feature = "otlp")]
    _exporter: Option<otlp::Exporter>,
}

/// Starts logging for the process. A second call changes nothing.
///
/// # Errors
/// Fails when the exporter of traces cannot be built.
pub fn start(config: &config::Log) -> anyhow::Result<Traces> {
    #[cfg(feature = "otlp")]
    let (exporter, layer) = otlp::start(config)?;
    #[cfg(not(feature = "otlp"))]
    anyhow::ensure!(
        config.otlp_endpoint.is_none(),
        "this build cannot export traces to KINSYNC_OTLP_ENDPOINT: build kinsync with `--features otlp`"
    );
    #[cfg(not(feature = "otlp"))]
    let layer: Option<Box<dyn Layer<Registry> + Send + Sync>> = None;
    let layers = layer.into_iter().chain([lines(config)]).collect::<Vec<_>>();
    if tracing_subscriber::registry().with(layers).try_init().is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string);
            let message = panic.payload_as_str().unwrap_or("no message");
            tracing::error!(place, message, "a bug: a task panicked");
        }));
    }
    Ok(Traces {
        #[cfg(feature = "otlp")]
        _exporter: exporter,
    })
}

fn lines(config: &config::Log) -> Box<dyn Layer<Registry> + Send + Sync> {
    let filter = config.filter.clone();
    let terminal = io::stderr().is_terminal();
    match config.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => {
            // Respects NO_COLOR, CLICOLOR and a terminal without colors.
            let colors = console::colors_enabled_stderr();
            fmt::layer().with_writer(io::stderr).with_ansi(colors).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_writer(io::stderr).with_filter(filter).boxed()
        }
    }
}
