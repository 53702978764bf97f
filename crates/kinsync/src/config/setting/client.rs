//! The running server that other commands use.

use super::{ROW, Reader, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[Setting {
    key: "client.server",
    env: "KINSYNC_SERVER",
    flag: "server",
    example: "http://127.0.0.1:5000",
    reader: Reader::Client,
    help: "The running server to which commands send requests [default: http://127.0.0.1:PORT]",
    set: |config, text| put(&mut config.server, value::server(text).map(Some)),
    ..ROW
}];
