//! The local Kinde and the app, started for each other: Kinde first, because the app asks it for keys; then the app;
//! then the webhook, because only now its address is known.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kinde_emulator::{Emulator, WebhookSpec};
use tempfile::TempDir;
use url::Url;

use super::{Options, hints::Addresses, output::Style, view::Title};
use crate::{app::App, config::Config, log, random};

/// Kinde's retries after 5 s, 30 s and so on come so many times sooner.
const TIME_SCALE: f64 = 10.0;
/// Deliveries that the local Kinde remembers, at least, and for how many seconds' worth of events.
const REMEMBERED: usize = 4096;
const REMEMBERED_SECONDS: f64 = 30.0;
/// In a MongoDB that has no database in its URI, so that nobody's own is touched.
const DATABASE: &str = "kinsync_dev";

/// Both, running.
pub(super) struct Started {
    pub(super) emulator: Emulator,
    pub(super) app: App,
    pub(super) addresses: Addresses,
    pub(super) title: Title,
    /// The dice that are used: others than asked for in a store that is not new.
    pub(super) seed: u64,
    /// Removed with all that is in it when this goes.
    _folder: Option<TempDir>,
}

/// Where files are kept.
struct Folder {
    path: PathBuf,
    temporary: Option<TempDir>,
    is_new: bool,
}

/// Starts both.
pub(super) async fn start(options: &Options) -> Result<Started> {
    let folder = folder(options)?;
    start_log(options, &folder.path)?;
    // Ids and addresses of an earlier town with the same seed would be taken for its own.
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
    };
    let title = title(options, seed, &notes);
    Ok(Started { emulator, app, addresses, title, seed, _folder: folder.temporary })
}

impl Started {
    /// Stops both: first who delivers, then who accepts.
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
    let folder = folder.context("cannot make a temporary folder; name one with --data-dir")?;
    Ok(Folder { path: folder.path().to_owned(), temporary: Some(folder), is_new: true })
}

/// Beside a live view the log goes to a file, else to stderr.
fn start_log(options: &Options, folder: &Path) -> Result<()> {
    let filter = |default: &str| options.log.clone().unwrap_or_else(|| default.to_owned());
    if options.style != Style::Live {
        log::start(&crate::config::Log { filter: filter("error"), format: None });
        return Ok(());
    }
    let filter = tracing_subscriber::EnvFilter::try_new(filter("info")).context("cannot read --log")?;
    let path = folder.join("kinsync.log");
    let file = fs::File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    let writer = std::sync::Mutex::new(file);
    // A second run in one process keeps the first log.
    _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer).try_init();
    Ok(())
}

/// The port, if it is free; else 0, for any.
fn free_port(wanted: u16, notes: &mut Vec<String>) -> Result<u16> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)) {
        Ok(_) => Ok(wanted),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            notes.push(format!("port {wanted} is taken, so another one is used"));
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
    let of_rate = (options.rate * REMEMBERED_SECONDS) as usize;
    let of_users = options.users.saturating_mul(16);
    let mut config = kinde_emulator::Config {
        port,
        seed,
        time_scale: TIME_SCALE,
        faults: options.faults.list(),
        ..kinde_emulator::Config::default()
    };
    config.delivery.log = REMEMBERED.max(of_rate).max(of_users);
    config
}

struct Secrets {
    webhook: String,
    admin: String,
}

/// New in each run: with `--mongodb-uri` the users behind the door may be somebody's.
fn secret() -> String {
    format!("{:016x}", random::number::<u64>())
}

/// The settings as `serve` would read them from an environment that holds nothing else.
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
    if let Some(uri) = &options.mongodb_uri {
        vars.push(("MONGODB_URI", uri.clone()));
        if !names_a_database(uri) {
            vars.push(("KINSYNC_DATABASE", DATABASE.to_owned()));
        }
    }
    let mut config = Config::from_vars(vars).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    config.http.shutdown_grace = Duration::from_secs(1);
    ensure!(config.http.bind.is_loopback(), "`kinsync dev` is for this machine alone");
    Ok(config)
}

/// Whether a URI goes on after its hosts: `mongodb://host,host/name?options`.
fn names_a_database(uri: &str) -> bool {
    let after_scheme = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let path = after_scheme.split_once('/').map_or("", |(_, path)| path);
    !path.split('?').next().unwrap_or_default().is_empty()
}

fn store_name(options: &Options, folder: &Path) -> String {
    match &options.mongodb_uri {
        None => folder.join("store").display().to_string(),
        Some(uri) if names_a_database(uri) => "MongoDB, the database of --mongodb-uri".to_owned(),
        Some(_) => format!("MongoDB, database {DATABASE}"),
    }
}

fn title(options: &Options, seed: u64, notes: &[String]) -> Title {
    let store = if options.mongodb_uri.is_some() { "MongoDB" } else { "embedded store" };
    let dice = if seed == options.seed { format!(" · seed {seed}") } else { String::new() };
    let text = format!("{store} · faults {} · {} events/s{dice}", options.faults.as_str(), options.rate);
    Title { text, note: (!notes.is_empty()).then(|| notes.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_a_database_or_does_not() {
        assert!(names_a_database("mongodb://a:1,b:2/app?replicaSet=rs0"));
        assert!(names_a_database("mongodb+srv://u:p@host/app"));
        assert!(!names_a_database("mongodb://127.0.0.1:27017"));
        assert!(!names_a_database("mongodb://127.0.0.1:27017/?replicaSet=rs0"));
    }
}
