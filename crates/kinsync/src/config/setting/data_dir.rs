//! The folder and the roles of the process.

use super::{ROW, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "data_dir",
        env: "KINSYNC_DATA_DIR",
        flag: "data-dir",
        default: Some("./kinsync-data"),
        example: "/var/lib/kinsync",
        help: "The folder for the files of the embedded queue and store; each process needs its own",
        set: |config, text| put(&mut config.data_dir, Ok(text.into())),
        ..ROW
    },
    Setting {
        key: "role",
        env: "KINSYNC_ROLE",
        flag: "role",
        default: Some("all"),
        example: "all",
        help: "What the process does, as a list: ingest (accept deliveries), project (apply them to the store), reconcile \
               (scan Kinde), api (answer users and operators), or all",
        set: |config, text| put(&mut config.roles, value::roles(text)),
        ..ROW
    },
];
