//! Daily figures.

use super::{ROW, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[Setting {
    key: "projections.every",
    env: "KINSYNC_PROJECTIONS_EVERY",
    flag: "projections-every",
    default: Some("5m"),
    example: "5m",
    help: "The shortest interval at which the daily figures (`kinsync stats`) are computed from the event log; longer while that takes \
           over a twentieth of the time; `off`: never",
    set: |config, text| put(&mut config.projections.every, value::interval(text)),
    ..ROW
}];
