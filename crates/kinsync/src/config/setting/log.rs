//! Logging.

use super::{ROW, Setting, put};
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
];
