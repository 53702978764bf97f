//! The queue of deliveries and its limits.

use super::{ROW, Secrecy, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "queue.kind",
        env: "KINSYNC_QUEUE",
        flag: "queue",
        default: Some("embedded"),
        example: "embedded",
        secrecy: Secrecy::Credentials,
        help: "The queue for accepted deliveries: embedded, or the address of Redis, Redis Sentinel or \
               RabbitMQ servers that several processes share",
        set: |config, text| put(&mut config.queue.kind, value::queue_kind(text)),
        ..ROW
    },
    Setting {
        key: "queue.prefix",
        env: "KINSYNC_QUEUE_PREFIX",
        flag: "queue-prefix",
        default: Some("kinsync"),
        example: "kinsync",
        help: "The prefix of all names in a shared queue; processes with the same prefix share it",
        set: |config, text| put(&mut config.queue.prefix, value::queue_prefix(text)),
        ..ROW
    },
    Setting {
        key: "queue.replicas",
        env: "KINSYNC_QUEUE_REPLICAS",
        flag: "queue-replicas",
        default: Some("0"),
        example: "1",
        help: "The replicas of Redis that must confirm a delivery before it is accepted; until then it waits \
               on this machine",
        set: |config, text| put(&mut config.queue.replicas, value::number(text)),
        ..ROW
    },
    Setting {
        key: "queue.max_entries",
        env: "KINSYNC_QUEUE_MAX_ENTRIES",
        flag: "queue-max-entries",
        default: Some("1000000"),
        example: "1000000",
        help: "The largest number of queued deliveries; further ones are answered 503, and Kinde sends them \
               again. With a shared queue they wait on this machine, up to the same number",
        set: |config, text| put(&mut config.queue.max_entries, value::count(text)),
        ..ROW
    },
    Setting {
        key: "queue.max_bytes",
        env: "KINSYNC_QUEUE_MAX_BYTES",
        flag: "queue-max-bytes",
        default: Some("1GiB"),
        example: "1GiB",
        help: "The largest size of the queue on the disk of this machine; further deliveries are answered 503. \
               With a shared queue this limits the deliveries that wait for it",
        set: |config, text| put(&mut config.queue.max_bytes, value::bytes(text)),
        ..ROW
    },
];
