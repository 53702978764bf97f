//! The HTTP server: deadlines and limits.

use super::{ROW, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "http.request_deadline",
        env: "KINSYNC_REQUEST_DEADLINE",
        flag: "request-deadline",
        default: Some("30s"),
        example: "30s",
        help: "The longest time to answer a request",
        set: |config, text| put(&mut config.http.request_deadline, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "http.body_deadline",
        env: "KINSYNC_BODY_DEADLINE",
        flag: "body-deadline",
        default: Some("15s"),
        example: "15s",
        help: "The longest time for the body of a delivery to arrive",
        set: |config, text| put(&mut config.http.body_deadline, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "http.head_deadline",
        env: "KINSYNC_HEAD_DEADLINE",
        flag: "head-deadline",
        default: Some("10s"),
        example: "10s",
        help: "The longest time for the head of a request to arrive, for a connection to be idle, and for a \
               write to make progress",
        set: |config, text| put(&mut config.http.head_deadline, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "http.body_limit",
        env: "KINSYNC_BODY_LIMIT",
        flag: "body-limit",
        default: Some("1MiB"),
        example: "1MiB",
        help: "Largest body of a delivery; larger ones are answered 413. At most 15 MiB, and 6 MiB with RabbitMQ",
        set: |config, text| put(&mut config.http.body_limit, value::size(text)),
        ..ROW
    },
    Setting {
        key: "http.body_budget",
        env: "KINSYNC_BODY_BUDGET",
        flag: "body-budget",
        default: Some("64MiB"),
        example: "64MiB",
        help: "Memory for the bodies of all deliveries in progress, beyond the first 8 KiB of each; above it they are \
               answered 503",
        set: |config, text| put(&mut config.http.body_budget, value::size(text)),
        ..ROW
    },
    Setting {
        key: "http.max_connections",
        env: "KINSYNC_MAX_CONNECTIONS",
        flag: "max-connections",
        default: Some("4096"),
        example: "4096",
        help: "Open connections; when all are open, the longest idle one is closed for a new one",
        set: |config, text| put(&mut config.http.max_connections, value::size(text)),
        ..ROW
    },
    Setting {
        key: "http.max_connections_per_client",
        env: "KINSYNC_MAX_CONNECTIONS_PER_CLIENT",
        flag: "max-connections-per-client",
        default: Some("512"),
        example: "512",
        help: "Open connections per client address (IPv6: per /64); more are closed at once. Loopback and \
               KINSYNC_TRUSTED_PROXIES have no such limit",
        set: |config, text| put(&mut config.http.max_connections_per_client, value::size(text)),
        ..ROW
    },
    Setting {
        key: "http.trusted_proxies",
        env: "KINSYNC_TRUSTED_PROXIES",
        flag: "trusted-proxies",
        example: "10.0.0.0/8,192.168.1.5",
        help: "Addresses or networks of your reverse proxies, comma separated: they have no limit of connections per \
               client, and the audit log and the pause after wrong admin tokens use their `X-Forwarded-For`",
        set: |config, text| put(&mut config.http.trusted_proxies, value::networks(text)),
        ..ROW
    },
    Setting {
        key: "http.cached_users",
        env: "KINSYNC_CACHED_USERS",
        flag: "cached-users",
        default: Some("100000"),
        example: "100000",
        help: "The number of users, and of verified tokens, in memory; the least recently used ones are \
               removed first",
        set: |config, text| {
            let count = usize::try_from(value::count(text)?).map_err(|_| "is too large")?;
            put(&mut config.http.cached_users, Ok(count))
        },
        ..ROW
    },
    Setting {
        key: "http.shutdown_grace",
        env: "KINSYNC_SHUTDOWN_GRACE",
        flag: "shutdown-grace",
        default: Some("20s"),
        example: "20s",
        help: "The longest time to finish requests and batches after SIGTERM",
        set: |config, text| put(&mut config.http.shutdown_grace, value::duration(text)),
        ..ROW
    },
];
