//! Logging and traces.

use super::{ROW, Secrecy, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "log.filter",
        env: "KINSYNC_LOG",
        flag: "log",
        default: Some("info"),
        example: "info,kinsync_engine=debug",
        help: "The log filter, such as `info` or `info,kinsync_engine=debug`",
        set: |config, text| put(&mut config.log.filter, value::log_filter(text)),
        ..ROW
    },
    Setting {
        key: "log.format",
        env: "KINSYNC_LOG_FORMAT",
        flag: "log-format",
        example: "json",
        help: "`json` or `text` [default: text on a terminal, else json]",
        set: |config, text| put(&mut config.log.format, value::log_format(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "log.otlp_endpoint",
        env: "KINSYNC_OTLP_ENDPOINT",
        flag: "otlp-endpoint",
        example: "http://127.0.0.1:4318",
        help: "The base URL of an OpenTelemetry collector (OTLP over HTTP) for the traces of deliveries; needs a build with the feature `otlp`",
        set: |config, text| put(&mut config.log.otlp_endpoint, value::otlp_endpoint(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "log.otlp_headers",
        env: "KINSYNC_OTLP_HEADERS",
        flag: "otlp-headers",
        example: "authorization=Bearer 0123456789abcdef",
        secrecy: Secrecy::Hidden,
        help: "Headers for the collector, such as a token, as a comma list of `name=value`",
        set: |config, text| put(&mut config.log.otlp_headers, value::header_list(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "log.otlp_sample",
        env: "KINSYNC_OTLP_SAMPLE",
        flag: "otlp-sample",
        default: Some("100%"),
        example: "5%",
        help: "The share of events with exported traces; every process selects the same events",
        set: |config, text| put(&mut config.log.otlp_sample, value::share(text)),
        ..ROW
    },
];
