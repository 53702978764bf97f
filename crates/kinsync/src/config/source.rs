//! Where a value comes from: flags > environment > file > default. An empty variable is not set.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use super::{
    Config,
    file::{self, File},
    problem::Problem,
    setting::{SETTINGS, Setting},
};

/// The variable that names the TOML file.
pub const CONFIG_VAR: &str = "KINSYNC_CONFIG";

/// Values given as flags, by the name of the flag; a secret's file is under `<flag>-file`.
pub type Flags = BTreeMap<String, String>;

/// Everything that settings are read from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Flags of the command line, `config` included.
    pub flags: Flags,
    /// Variables of the environment.
    pub vars: BTreeMap<String, String>,
    /// Variables whose value is not UTF-8, by name.
    pub unreadable: Vec<String>,
}

/// Which source decided a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A flag of the command line.
    Flag(String),
    /// A variable of the environment.
    Env(String),
    /// The TOML file.
    File(String),
    /// Nobody: it is the default.
    Default,
    /// Nobody, and there is no default.
    Unset,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::File(key) => write!(f, "file {key}"),
            Self::Default => f.write_str("default"),
            Self::Unset => f.write_str("not set"),
        }
    }
}

/// One setting and the text that holds for it.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Which setting.
    pub setting: &'static Setting,
    /// The text; `None` when nothing holds.
    pub text: Option<String>,
    /// Who decided.
    pub origin: Origin,
}

impl Resolved {
    /// Puts the value where it belongs.
    pub fn apply(&self, config: &mut Config) -> Result<(), Problem> {
        let Some(text) = &self.text else { return Ok(()) };
        (self.setting.set)(config, text)
            .map_err(|wrong| Problem::of(self.setting, format!("{wrong} (from {})", self.origin)))
    }
}

/// The merge of all sources.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Every setting of the table, in its order.
    pub settings: Vec<Resolved>,
    /// The field mapping of the file.
    pub fields: BTreeMap<String, String>,
    /// What was ignored, and why.
    pub warnings: Vec<String>,
}

impl Sources {
    /// What this process was started with.
    pub fn of_process(flags: Flags) -> Self {
        let mut sources = Self { flags, ..Self::default() };
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => _ = sources.vars.insert(name, value),
                Err(_) => sources.unreadable.push(name),
            }
        }
        sources
    }

    /// These variables alone.
    pub fn from_vars<K: Into<String>, V: Into<String>>(vars: impl IntoIterator<Item = (K, V)>) -> Self {
        let vars = vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { vars, ..Self::default() }
    }

    /// One value for every setting. What is wrong is added to the problems.
    pub fn merge(&self, problems: &mut Vec<Problem>) -> Merged {
        let file = self.file(problems);
        self.check_unreadable(problems);
        let settings = SETTINGS.iter().map(|setting| self.resolve(setting, &file, problems)).collect();
        Merged { settings, fields: file.fields, warnings: self.unknown_vars() }
    }

    fn file(&self, problems: &mut Vec<Problem>) -> File {
        let Some(path) = self.flags.get("config").or_else(|| self.var(CONFIG_VAR)) else {
            return File::default();
        };
        match fs::read_to_string(path) {
            Ok(text) => file::parse(path, &text, problems),
            Err(error) => {
                problems.push(Problem {
                    name: CONFIG_VAR.into(),
                    message: format!("`{path}` could not be read: {error}"),
                    example: Some(format!("{CONFIG_VAR}=/etc/kinsync/kinsync.toml")),
                });
                File::default()
            }
        }
    }

    fn resolve(&self, setting: &'static Setting, file: &File, problems: &mut Vec<Problem>) -> Resolved {
        let layers = [
            Self::layer(setting, &|name| self.flags.get(name), setting.flag, "-file", Origin::Flag),
            Self::layer(setting, &|name| self.var(name), setting.env, "_FILE", Origin::Env),
            Self::layer(setting, &|name| file.values.get(name), setting.key, "_file", Origin::File),
        ];
        for layer in layers {
            match layer {
                Ok(Some(resolved)) => return resolved,
                Ok(None) => {}
                Err(problem) => {
                    problems.push(problem);
                    return Resolved { setting, text: None, origin: Origin::Unset };
                }
            }
        }
        let text = setting.default.map(str::to_owned);
        let origin = if text.is_some() { Origin::Default } else { Origin::Unset };
        Resolved { setting, text, origin }
    }

    /// What one source says of a setting: the value itself, or a file with the value.
    fn layer<'a>(
        setting: &'static Setting,
        find: &dyn Fn(&str) -> Option<&'a String>,
        name: &str,
        suffix: &str,
        origin: fn(String) -> Origin,
    ) -> Result<Option<Resolved>, Problem> {
        let file_name = format!("{name}{suffix}");
        let path = if setting.has_file() { find(&file_name) } else { None };
        match (find(name), path) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(Problem::of(
                setting,
                format!("`{name}` and `{file_name}` are both set; keep one of them"),
            )),
            (Some(text), None) => {
                Ok(Some(Resolved { setting, text: Some(text.clone()), origin: origin(name.to_owned()) }))
            }
            (None, Some(path)) => {
                let text = secret_in(path).map_err(|wrong| Problem {
                    name: setting.env_file(),
                    message: format!("{wrong} (from {})", origin(file_name.clone())),
                    example: Some(format!("{}=/run/secrets/{}", setting.env_file(), setting.flag)),
                })?;
                Ok(Some(Resolved { setting, text: Some(text), origin: origin(file_name) }))
            }
        }
    }

    /// A variable that is set and not empty.
    fn var(&self, name: &str) -> Option<&String> {
        self.vars.get(name).filter(|value| !value.is_empty())
    }

    fn check_unreadable(&self, problems: &mut Vec<Problem>) {
        for name in &self.unreadable {
            if let Some(setting) = SETTINGS.iter().find(|s| s.env == name || s.env_file() == *name) {
                problems.push(Problem::of(setting, "is not UTF-8 text"));
            }
        }
    }

    /// Variables that look like ours and are not: a typo there would be silent.
    fn unknown_vars(&self) -> Vec<String> {
        let known: Vec<String> = SETTINGS
            .iter()
            .flat_map(|s| [s.env.to_owned(), s.env_file()])
            .chain([CONFIG_VAR.to_owned()])
            .collect();
        self.vars
            .keys()
            .filter(|name| name.starts_with("KINSYNC_") && !known.contains(name))
            .map(|name| match file::nearest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("{name} is not a setting and is ignored; did you mean {near}?"),
                None => format!("{name} is not a setting and is ignored"),
            })
            .collect()
    }
}

/// The content of a secret file, without the line end that editors add.
fn secret_in(path: &str) -> Result<String, String> {
    let text = fs::read_to_string(Path::new(path)).map_err(|e| format!("`{path}` could not be read: {e}"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(format!("`{path}` is empty")) } else { Ok(text.to_owned()) }
}
