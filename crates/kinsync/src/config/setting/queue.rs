//! The queue of deliveries and its limits.

use super::{ROW, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "queue.kind",
        env: "KINSYNC_QUEUE",
        flag: "queue",
        default: Some("embedded"),
        example: "embedded",
        help: "The queue for accepted deliveries",
        set: |config, text| put(&mut config.queue.kind, value::queue_kind(text)),
        ..ROW
    },
    Setting {
        key: "queue.max_entries",
        env: "KINSYNC_QUEUE_MAX_ENTRIES",
        flag: "queue-max-entries",
        default: Some("1000000"),
        example: "1000000",
        help: "The largest number of queued deliveries; further ones are answered 503, and Kinde sends them \
               again",
        set: |config, text| put(&mut config.queue.max_entries, value::count(text)),
        ..ROW
    },
    Setting {
        key: "queue.max_bytes",
        env: "KINSYNC_QUEUE_MAX_BYTES",
        flag: "queue-max-bytes",
        default: Some("1GiB"),
        example: "1GiB",
        help: "The largest size of the queue on disk; further deliveries are answered 503",
        set: |config, text| put(&mut config.queue.max_bytes, value::bytes(text)),
        ..ROW
    },
];
