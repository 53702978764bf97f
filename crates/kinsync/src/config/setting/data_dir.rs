//! The folder of the process.

use super::{ROW, Setting, put};

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[Setting {
    key: "data_dir",
    env: "KINSYNC_DATA_DIR",
    flag: "data-dir",
    default: Some("./kinsync-data"),
    example: "/var/lib/kinsync",
    help: "The folder for the files of the embedded queue and store; each process needs its own",
    set: |config, text| put(&mut config.data_dir, Ok(text.into())),
    ..ROW
}];
