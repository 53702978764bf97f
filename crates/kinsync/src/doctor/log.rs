//! The event log: how fast it grows, and whether old entries are removed.

use std::sync::Arc;

use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::store::{EventFilter, LogEntry, Store, embedded::EmbeddedStore, mongo::MongoStore},
};
use kinsync_tower::problem::chain;
use secrecy::ExposeSecret;

use super::Finding;
use crate::{app::start::mongo_config, config::Config};

const GROWTH: &str = "log.growth";

pub(super) const IDS: [&str; 1] = [GROWTH];

/// Newest entries that the estimate uses.
const SAMPLE: usize = 1000;

/// Bytes of an entry beside its payload and its id, with the indexes, about.
const OVERHEAD: usize = 600;

/// A month of 30 days, in microseconds.
const MONTH: f64 = 30.0 * 86_400e6;

/// Bytes per month above which keeping all entries is worth a warning: 10 GB.
const LARGE: f64 = 1e10;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    vec![growth(config).await]
}

async fn growth(config: &Config) -> Finding {
    let store = match open(config).await {
        Ok(store) => store,
        Err(why) => {
            return Finding::skipped(GROWTH, why, "start the server once, or make the store reachable");
        }
    };
    let newest = EventFilter { limit: SAMPLE, ..EventFilter::default() };
    match store.events(&newest).await {
        Ok(page) if page.items.is_empty() => Finding::ok(GROWTH, "the event log is empty"),
        Ok(page) => finding(&Rate::of(&page.items, Clock::system().now()), config),
        Err(error) => Finding::failed(GROWTH, chain(&error), "make the store reachable, then try again"),
    }
}

async fn open(config: &Config) -> Result<Arc<dyn Store>, String> {
    if let Some(uri) = &config.store.mongodb_uri {
        let store = MongoStore::connect(mongo_config(&config.store, uri.expose_secret())).await;
        return store.map(|store| Arc::new(store) as Arc<dyn Store>).map_err(|error| chain(&error));
    }
    let folder = config.data_dir.clone();
    let open = tokio::task::spawn_blocking(move || EmbeddedStore::open_read_only(&folder));
    let opened = open.await.map_err(|error| error.to_string())?;
    opened.map(|store| Arc::new(store) as Arc<dyn Store>).map_err(|error| chain(&error))
}

/// Growth of the log per month.
struct Rate {
    entries: f64,
    bytes: f64,
}

impl Rate {
    /// Estimates from the newest entries, newest first. Entries of less than an hour count as those of an hour.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn of(newest: &[LogEntry], now: Micros) -> Self {
        let since = newest.last().map_or(now, |entry| entry.received_at);
        let span = (now.0.saturating_sub(since.0) as f64).max(3600e6);
        let bytes: usize = newest.iter().map(|entry| entry.payload.len() + entry.id.len() + OVERHEAD).sum();
        Self { entries: newest.len() as f64 * MONTH / span, bytes: bytes as f64 * MONTH / span }
    }
}

fn finding(rate: &Rate, config: &Config) -> Finding {
    let grows = format!(
        "at the present rate the event log gets about {:.0} documents ({:.1} MB) per month",
        rate.entries,
        rate.bytes / 1e6
    );
    if !config.store.retention.keep_all() {
        return Finding::ok(GROWTH, format!("{grows}, and KINSYNC_RETENTION removes old ones"));
    }
    let kept = format!("{grows}, and all of them stay");
    if rate.bytes > LARGE {
        return Finding::warning(
            GROWTH,
            kept,
            "set KINSYNC_RETENTION, such as `*=365d`: `kinsync rebuild` works as before",
        );
    }
    Finding::ok(GROWTH, kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinsync_engine::internal::log_entry::LogSource;

    #[test]
    fn the_growth_of_a_month_is_estimated_from_the_newest_entries() {
        let hour = 3_600_000_000;
        let entry = |n: i64| {
            let content = serde_json::json!({ "n": "x".repeat(394) });
            LogEntry::action("kinsync.operator", None, LogSource::Operator, &content, Micros(n * hour))
        };
        let newest: Vec<LogEntry> = (0..100).rev().map(entry).collect();
        let rate = Rate::of(&newest, Micros(100 * hour));
        assert!((719.9..720.1).contains(&rate.entries), "one per hour: {}", rate.entries);
        assert!((700_000.0..800_000.0).contains(&rate.bytes), "{}", rate.bytes);
    }
}
