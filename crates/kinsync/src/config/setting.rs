//! The list of settings: each row is one setting with its key, its variable and its flag.
//!
//! A new setting is a row in the file of its area, a field of [`Config`] and a line in `config/kinsync.full.toml`; tests find what is missing.

use super::Config;

mod client;
mod data_dir;
mod http;
mod http_limits;
mod kinde;
mod log;
mod projections;
mod queue;
mod reconcile;
mod store;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The key in the TOML file, with its table: `http.port`.
    pub key: &'static str,
    /// The environment variable.
    pub env: &'static str,
    /// The flag, without dashes.
    pub flag: &'static str,
    /// The value when no source sets one.
    pub default: Option<&'static str>,
    /// A valid value.
    pub example: &'static str,
    /// How the value is masked when it is shown.
    pub secrecy: Secrecy,
    /// The commands that read it.
    pub reader: Reader,
    /// What it does, for `--help` and the reference.
    pub help: &'static str,
    /// Reads a text into its place in the config.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

/// How a value is masked when it is shown. A masked value may also be given as a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secrecy {
    /// Shown.
    Open,
    /// Shown as stars.
    Hidden,
    /// A URL with a user and a password, which are hidden.
    Credentials,
}

/// The commands that read a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reader {
    /// The commands that take the settings of a server.
    Server,
    /// The commands that use a running server.
    Client,
    /// Both.
    Both,
}

impl Setting {
    /// Whether the value may also be given as `…_FILE`.
    pub fn has_file(&self) -> bool {
        self.secrecy != Secrecy::Open
    }

    /// The variable that names a file with the value.
    pub fn env_file(&self) -> String {
        format!("{}_FILE", self.env)
    }

    /// The setting of this variable.
    ///
    /// # Panics
    /// When there is none: names are constants, and a test calls this with each of them.
    pub fn of(env: &str) -> &'static Self {
        settings().find(|setting| setting.env == env).expect("the name is a constant of the table")
    }
}

/// Defaults for the members of a row.
const ROW: Setting = Setting {
    key: "",
    env: "",
    flag: "",
    default: None,
    example: "",
    secrecy: Secrecy::Open,
    reader: Reader::Server,
    help: "",
    set: |_, _| Ok(()),
};

fn put<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

/// Every setting, in the order in which they are shown.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    let areas = [
        data_dir::ROWS,
        kinde::ROWS,
        store::ROWS,
        queue::ROWS,
        reconcile::ROWS,
        projections::ROWS,
        http::ROWS,
        http_limits::ROWS,
        log::ROWS,
        client::ROWS,
    ];
    areas.into_iter().flatten()
}
