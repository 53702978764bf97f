//! The time of each list of users and of the log, on both stores, with as many users and entries as asked for.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kinsync_core::{
    Entry, Field, Micros, Observation, Profile, RowMetadata, Source, UserId, UserState, Value, Version, What,
};
use kinsync_engine::internal::store::embedded::EmbeddedStore;
use kinsync_engine::internal::store::mongo::{Config, MongoStore};
use kinsync_engine::internal::store::{EventFilter, LogEntry, LogSource, Row, Selection, Store, UserFilter};
use serde_json::json;

/// Rows and entries per write.
const BATCH: u64 = 2000;
/// Queries of each kind.
const QUERIES: u64 = 400;
/// Users and entries on a page, the default of the admin API.
const PAGE: usize = 100;
/// The time that the changes and the entries are spread over.
const SPAN: Duration = Duration::from_hours(90 * 24);
/// First instant, 2026-01-01.
const START: i64 = 1_767_225_600_000_000;

/// Fills both stores and measures.
pub async fn measure(
    folder: &Path,
    uri: String,
    (users, entries): (u64, u64),
) -> anyhow::Result<serde_json::Value> {
    let mongo = MongoStore::connect(Config::new(uri)).await?;
    mongo.prepare().await?;
    let mongo = of(&mongo, users, entries).await.context("MongoDB")?;
    let embedded = EmbeddedStore::open(folder)?;
    let embedded = of(&embedded, users, entries).await.context("the embedded store")?;
    Ok(json!({ "users": users, "entries": entries, "mongodb": mongo, "embedded": embedded }))
}

async fn of(store: &dyn Store, users: u64, entries: u64) -> anyhow::Result<serde_json::Value> {
    let started = Instant::now();
    for first in (0..users).step_by(usize::try_from(BATCH)?) {
        let rows: Vec<Row> = (first..users.min(first + BATCH)).map(row).collect();
        store.write(&rows).await?;
    }
    eprintln!("  {users} users in {:?}", started.elapsed());
    for first in (0..entries).step_by(usize::try_from(BATCH)?) {
        let batch: Vec<LogEntry> =
            (first..entries.min(first + BATCH)).map(|n| entry(n, users, entries)).collect();
        store.log(&batch).await?;
    }
    eprintln!("  and {entries} entries in {:?}", started.elapsed());
    let mut results = serde_json::Map::new();
    for (kind, name) in KINDS.iter().enumerate() {
        let mut times = Vec::new();
        let mut returned = 0;
        for n in 0..QUERIES {
            let mut filter = UserFilter { limit: PAGE, ..selected(kind, mixed(n) % users) };
            for _ in 0..2 {
                let started = Instant::now();
                let page = store.users(&filter).await?;
                times.push(started.elapsed());
                returned += page.len();
                filter.after = page.next;
                if filter.after.is_none() {
                    break;
                }
            }
        }
        results.insert(format!("users by {name}"), summary(times, returned));
    }
    let mut times = Vec::new();
    let mut returned = 0;
    for n in 0..QUERIES {
        let code = format!("org_{}", mixed(n) % users.div_ceil(200));
        let started = Instant::now();
        let members = store.referring(&[code], None, PAGE).await?;
        returned += store.load(&members).await?.len();
        times.push(started.elapsed());
    }
    results.insert("users by organization".into(), summary(times, returned));
    for kind in EVENTS {
        let mut times = Vec::new();
        let mut returned = 0;
        for n in 0..QUERIES {
            let mut filter = EventFilter { limit: PAGE, ..listed(kind, mixed(n) % entries, users, entries) };
            for _ in 0..2 {
                let started = Instant::now();
                let page = store.events(&filter).await?;
                times.push(started.elapsed());
                returned += page.len();
                filter.after = page.next;
                if filter.after.is_none() {
                    break;
                }
            }
        }
        results.insert(format!("events by {kind}"), summary(times, returned));
    }
    Ok(results.into())
}

const KINDS: [&str; 11] = [
    "id",
    "email",
    "email prefix",
    "name prefix",
    "phone",
    "provided id",
    "deleted",
    "suspended",
    "conflict",
    "changed since",
    "refused",
];
const EVENTS: [&str; 4] = ["user", "type", "source", "time"];

fn selected(kind: usize, n: u64) -> UserFilter {
    let selection = match KINDS[kind] {
        "email" => Selection::Email(email(n).to_uppercase()),
        "email prefix" => Selection::EmailPrefix(email(n).to_uppercase()[..5].to_owned()),
        "name prefix" => Selection::NamePrefix(name(n)[..3].to_owned()),
        "phone" => Selection::Phone(phone(n)),
        "provided id" => Selection::ProvidedId(format!("own-{n}")),
        "deleted" => Selection::Deleted,
        "suspended" => Selection::Suspended,
        "conflict" => Selection::InConflict,
        "changed since" => Selection::ChangedSince(at(n, 1)),
        "refused" => Selection::WithRefusedKeys,
        _ => Selection::All,
    };
    // A list by id starts anywhere.
    let after =
        matches!(selection, Selection::All | Selection::Suspended | Selection::InConflict).then(|| id(n));
    UserFilter { selection, after, ..UserFilter::default() }
}

fn listed(kind: &str, n: u64, users: u64, entries: u64) -> EventFilter {
    let entry = entry(n, users, entries);
    let until = Some(entry.received_at);
    match kind {
        "user" => EventFilter { user: entry.user, ..EventFilter::default() },
        "type" => EventFilter { kind: Some(entry.kind), until, ..EventFilter::default() },
        "source" => EventFilter { source: Some(entry.source), until, ..EventFilter::default() },
        _ => EventFilter { until, ..EventFilter::default() },
    }
}

/// A number that looks random, the same in each run.
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn name(n: u64) -> String {
    const FIRST: [&str; 16] =
        ["ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va"];
    let part = |shift: u64| FIRST[usize::try_from(mixed(n) >> shift & 15).unwrap_or_default()];
    let text = [part(0), part(4), part(8)].concat();
    text[..1].to_uppercase() + &text[1..]
}

fn email(n: u64) -> String {
    format!("{}.{n}@Example.com", name(n))
}

fn phone(n: u64) -> String {
    format!("+49{n:09}")
}

fn id(n: u64) -> String {
    format!("kp_{:016x}{:016x}", mixed(n), n)
}

fn at(n: u64, of: u64) -> Micros {
    let span = u64::try_from(SPAN.as_micros()).unwrap_or(u64::MAX);
    let offset = if of > 1 { n * (span / of) } else { mixed(n) % span };
    Micros(START + i64::try_from(offset).unwrap_or_default())
}

fn row(n: u64) -> Row {
    let user = UserId::parse(&id(n)).expect("an id");
    let is_deleted = n % 20 == 3;
    let profile = Profile::new()
        .with(Field::Email, &*email(n))
        .with(Field::FirstName, &*name(n))
        .with(Field::LastName, &*name(mixed(n)))
        .with(Field::Phone, &*phone(n))
        .with(Field::ProvidedId, &*format!("own-{n}"))
        .with(Field::IsSuspended, Value::Flag(n % 100 == 7));
    let version = Version::event(Micros(START + 1), format!("e{n}"));
    let observe = |what, version| Observation { user: user.clone(), version, source: Source::Webhook, what };
    let mut state = UserState::of(&observe(What::Fields(profile), version));
    if is_deleted {
        state = state.observe(&observe(What::Deleted, Version::event(at(n, 1), format!("d{n}"))));
    }
    state.directory.add(&format!("org_{}", n / 200), Entry::default());
    let in_conflict = n % 100 == 9;
    let metadata = RowMetadata {
        holds_email: !is_deleted && !in_conflict,
        email_held_by: in_conflict.then(|| id(n + 1)),
        inserted_at: Micros(START),
        updated_at: at(n, 1),
        source: Some(Source::Webhook),
        ..RowMetadata::default()
    };
    Row { state, metadata, ..Row::unknown(user) }
}

fn entry(n: u64, users: u64, entries: u64) -> LogEntry {
    let (user, received_at) = (id(mixed(n) % users), at(n, entries));
    let kind = ["user.updated", "user.updated", "user.authenticated", "user.created", "user.deleted"];
    let payload = format!(
        r#"{{"type":"user.updated","event_id":"event_{n}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"{user}","email":"{}","first_name":"{}","organizations":[{{"code":"org_1","roles":null}}]}}}}}}"#,
        email(n),
        name(n)
    );
    LogEntry {
        id: format!("event_{n}"),
        kind: kind[usize::try_from(n % 5).unwrap_or_default()].into(),
        user: Some(user),
        source: if n.is_multiple_of(10) { LogSource::Reconcile } else { LogSource::Webhook },
        version: Some(Version::event(received_at, format!("event_{n}"))),
        at: Some(received_at),
        received_at,
        scheme: "kinde_jwt".into(),
        payload,
    }
}

/// The median, the 99th percentile and the longest time in milliseconds, and the items of a page.
fn summary(mut times: Vec<Duration>, returned: usize) -> serde_json::Value {
    times.sort_unstable();
    let of = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    let items = returned as f64 / times.len() as f64;
    json!({ "p50": of(50), "p99": of(99), "max": of(100), "items": items, "queries": times.len() })
}
