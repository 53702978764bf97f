//! Starts the local Kinde and the app: first Kinde, because the app loads its keys; then the app; then the webhook,
//! because its address is known only then.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kinde_emulator::{Emulator, WebhookSpec};
use kinsync_engine::internal::random;
use tempfile::TempDir;
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};
use url::Url;

use super::{Options, hints::Addresses, output::Style, view::Title};
use crate::{app::App, config::Config, log};

/// Kinde's retry schedule (5 s, 30 s and so on) runs this many times faster.
const TIME_SCALE: f64 = 10.0;
/// Smallest number of deliveries in the local Kinde's log, and the time that the log covers.
const MIN_LOG: usize = 4096;
const LOG_SECONDS: f64 = 30.0;
/// Shortest interval between scans, and users per additional second.
const SCAN_EVERY: usize = 10;
const USERS_PER_SECOND: usize = 1000;
/// Database in MongoDB if the URI names none.
const DATABASE: &str = "kinsync_dev";

/// The running local Kinde and app.
pub(super) struct Started {
    pub(super) emulator: Emulator,
    pub(super) app: App,
    pub(super) addresses: Addresses,
    pub(super) title: Title,
    /// Seed of the activity: random if the store is not new.
    pub(super) seed: u64,
    /// Removes the temporary folder when dropped.
    _folder: Option<TempDir>,
}

/// The data folder.
struct Folder {
    path: PathBuf,
    temporary: Option<TempDir>,
    is_new: bool,
}

/// Starts the local Kinde and the app.
pub(super) async fn start(options: &Options) -> Result<Started> {
    let folder = folder(options)?;
    start_log(options, &folder.path)?;
    // The same seed would generate the ids and emails of an earlier run again.
    let is_new = folder.is_new && options.mongodb_uri.is_none();
    let seed = if is_new { options.seed } else { random::number() };
    let mut notes = Vec::new();
    let emulator_port = free_port(options.emulator_port, &mut notes)?;
    let emulator = Emulator::start(emulator_config(options, emulator_port, seed)).await?;
    let port = free_port(options.port, &mut notes)?;
    let secrets = Secrets { webhook: secret(), admin: secret() };
    let config = app_config(options, &folder.path, port, &emulator, &secrets)?;
    let app = App::start(config).await?;
    let kinsync = format!("http://{}", app.addr());
    let endpoint: Url = format!("{kinsync}/api/webhook").parse()?;
    emulator.add_webhook(WebhookSpec::new(endpoint));
    let addresses = Addresses {
        kinsync,
        emulator: emulator.issuer().to_owned(),
        jwks: format!("{}/.well-known/jwks.json", emulator.issuer()),
        admin_token: secrets.admin,
        webhook_secret: secrets.webhook,
        store: store_name(options, &folder.path),
        data_dir: folder.path.display().to_string(),
        has_repair: has_repair(options),
    };
    let title = title(options, seed, &notes);
    Ok(Started { emulator, app, addresses, title, seed, _folder: folder.temporary })
}

impl Started {
    /// Stops the local Kinde, which sends deliveries, then the app, which accepts them.
    pub(super) async fn stop(self) {
        self.emulator.shutdown().await;
        self.app.stop().await;
    }
}

fn folder(options: &Options) -> Result<Folder> {
    if let Some(path) = &options.data_dir {
        let about = || format!("cannot use the folder `{}`", path.display());
        fs::create_dir_all(path).with_context(about)?;
        let is_new = fs::read_dir(path).with_context(about)?.next().is_none();
        return Ok(Folder { path: path.clone(), temporary: None, is_new });
    }
    let folder = tempfile::Builder::new().prefix("kinsync-dev-").tempdir();
    let folder = folder.context("cannot create a temporary folder; set one with --data-dir")?;
    Ok(Folder { path: folder.path().to_owned(), temporary: Some(folder), is_new: true })
}

/// Logs to a file while the live view uses the terminal, else to stderr.
fn start_log(options: &Options, folder: &Path) -> Result<()> {
    let filter =
        |default: LevelFilter| options.log.clone().unwrap_or_else(|| Targets::new().with_default(default));
    if options.style != Style::Live {
        // Without an endpoint nothing is exported.
        drop(log::start(&crate::config::Log { filter: filter(LevelFilter::ERROR), ..Default::default() })?);
        return Ok(());
    }
    let path = folder.join("kinsync.log");
    let file = fs::File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    let writer = std::sync::Mutex::new(file);
    // A second run in one process keeps the log of the first.
    let lines = fmt::layer().with_ansi(false).with_writer(writer).with_filter(filter(LevelFilter::INFO));
    _ = tracing_subscriber::registry().with(lines).try_init();
    Ok(())
}

/// Returns the port if it is free, else 0, which means any port.
fn free_port(wanted: u16, notes: &mut Vec<String>) -> Result<u16> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)) {
        Ok(_) => Ok(wanted),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            notes.push(format!("port {wanted} is in use; using another one"));
            Ok(0)
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on port {wanted}")),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are small and not negative"
)]
fn emulator_config(options: &Options, port: u16, seed: u64) -> kinde_emulator::Config {
    let for_rate = (options.rate * LOG_SECONDS) as usize;
    let for_users = options.users.saturating_mul(16);
    let mut config = kinde_emulator::Config {
        port,
        seed,
        time_scale: TIME_SCALE,
        faults: options.faults.list(),
        ..kinde_emulator::Config::default()
    };
    config.delivery.log = MIN_LOG.max(for_rate).max(for_users);
    config
}

struct Secrets {
    webhook: String,
    admin: String,
}

/// A random secret. It is new in each run because `--mongodb-uri` may name a database with real users.
fn secret() -> String {
    format!("{:016x}", random::number::<u64>())
}

/// The settings of the app, as `serve` would read them from the environment.
///
/// There is no reconciler in a database that `--mongodb-uri` names: it would delete every user that the local Kinde does
/// not have.
fn app_config(
    options: &Options,
    folder: &Path,
    port: u16,
    emulator: &Emulator,
    secrets: &Secrets,
) -> Result<Config> {
    let mut vars = vec![
        ("KINSYNC_DATA_DIR", folder.display().to_string()),
        ("KINDE_DOMAIN", emulator.issuer().to_owned()),
        ("KINDE_WEBHOOK_SECRET", secrets.webhook.clone()),
        ("KINSYNC_ADMIN_TOKEN", secrets.admin.clone()),
        ("PORT", port.to_string()),
    ];
    if has_repair(options) {
        let kinde = emulator.config();
        let every = SCAN_EVERY + options.users / USERS_PER_SECOND;
        vars.extend([
            ("KINDE_M2M_CLIENT_ID", kinde.client_id.clone()),
            ("KINDE_M2M_CLIENT_SECRET", kinde.client_secret.clone()),
            ("KINSYNC_RECONCILE_EVERY", format!("{every}s")),
            // Users of an earlier run in the same store are deleted without approval.
            ("KINSYNC_RECONCILE_MAX_DELETES", u32::MAX.to_string()),
        ]);
    }
    if let Some(uri) = &options.mongodb_uri {
        vars.push(("MONGODB_URI", uri.clone()));
        if !names_a_database(uri) {
            vars.push(("KINSYNC_DATABASE", DATABASE.to_owned()));
        }
    }
    let mut config = Config::from_vars(vars).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    config.http.shutdown_grace = Duration::from_secs(1);
    ensure!(config.http.bind.is_loopback(), "`kinsync dev` listens on loopback only");
    Ok(config)
}

/// Whether scans repair the store: not if the database may hold other users.
fn has_repair(options: &Options) -> bool {
    !options.mongodb_uri.as_deref().is_some_and(names_a_database)
}

/// Whether a URI names a database after its hosts: `mongodb://host,host/name?options`.
fn names_a_database(uri: &str) -> bool {
    let after_scheme = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let path = after_scheme.split_once('/').map_or("", |(_, path)| path);
    !path.split('?').next().unwrap_or_default().is_empty()
}

fn store_name(options: &Options, folder: &Path) -> String {
    match &options.mongodb_uri {
        None => folder.join("store").display().to_string(),
        Some(uri) if names_a_database(uri) => "MongoDB, database of --mongodb-uri".to_owned(),
        Some(_) => format!("MongoDB, database {DATABASE}"),
    }
}

fn title(options: &Options, seed: u64, notes: &[String]) -> Title {
    let store = if options.mongodb_uri.is_some() { "MongoDB" } else { "embedded store" };
    let seed = if seed == options.seed { format!(" · seed {seed}") } else { String::new() };
    let rate = match options.rate {
        1.0 => "1 event/s".to_owned(),
        rate => format!("{rate} events/s"),
    };
    let text = format!("{store} · faults: {} · {rate}{seed}", options.faults.as_str());
    Title { text, note: (!notes.is_empty()).then(|| notes.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_may_name_a_database() {
        assert!(names_a_database("mongodb://a:1,b:2/app?replicaSet=rs0"));
        assert!(names_a_database("mongodb+srv://u:p@host/app"));
        assert!(!names_a_database("mongodb://127.0.0.1:27017"));
        assert!(!names_a_database("mongodb://127.0.0.1:27017/?replicaSet=rs0"));
    }
}
