//! The sources of a value: flags > environment > file > default. An empty variable counts as not set.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use super::{
    Config,
    file::{self, File},
    problem::Problem,
    setting::{Setting, settings},
};

/// The variable that names the TOML file.
pub const CONFIG_VAR: &str = "KINSYNC_CONFIG";

/// Prefixes of settings that other programs have variables with too.
const SHARED_PREFIXES: [&str; 2] = ["KINDE_", "MONGO"];

/// Values given as flags, by the name of the flag; a secret's file is under `<flag>-file`.
pub type Flags = BTreeMap<String, String>;

/// The sources of settings.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Flags of the command line, `config` included.
    pub flags: Flags,
    /// Variables of the environment.
    pub vars: BTreeMap<String, String>,
    /// Variables with a value that is not UTF-8, by name.
    pub unreadable: Vec<String>,
}

/// The source of a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A flag of the command line.
    Flag(String),
    /// A variable of the environment.
    Env(String),
    /// The TOML file.
    File(String),
    /// The default of the list.
    Default,
    /// None, and there is no default.
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

/// One setting and its text.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The setting.
    pub setting: &'static Setting,
    /// The text; `None` when no source sets one.
    pub text: Option<String>,
    /// Its source.
    pub origin: Origin,
}

impl Resolved {
    /// Parses the text into its place in the config.
    pub fn apply(&self, config: &mut Config) -> Result<(), Problem> {
        let Some(text) = &self.text else { return Ok(()) };
        (self.setting.set)(config, text)
            .map_err(|wrong| Problem::of(self.setting, format!("{wrong} (from {})", self.origin)))
    }
}

/// The merge of all sources.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Every setting, in the order of the list.
    pub settings: Vec<Resolved>,
    /// The keys of the user document, as in the file.
    pub fields: BTreeMap<String, serde_json::Value>,
    /// The keys of other documents, as in the file, by the name of the table.
    pub other_fields: BTreeMap<String, BTreeMap<String, serde_json::Value>>,
    /// The defaults of inserted documents, as in the file.
    pub defaults: BTreeMap<String, serde_json::Value>,
    /// Variables that are probably misspelled settings.
    pub misspelled: Vec<Problem>,
    /// Settings with an empty variable, which counts as not set.
    pub empty: Vec<&'static str>,
}

impl Sources {
    /// The flags and the environment of this process.
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

    /// Finds one text for every setting. Adds what is wrong to the problems.
    pub fn merge(&self, problems: &mut Vec<Problem>) -> Merged {
        let file = self.file(problems);
        self.check_unreadable(problems);
        let resolved: Vec<Resolved> =
            settings().map(|setting| self.resolve(setting, &file, problems)).collect();
        Merged {
            misspelled: self.misspelled(&resolved),
            empty: self.empty(),
            settings: resolved,
            fields: file.fields,
            other_fields: file.other_fields,
            defaults: file.defaults,
        }
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

    /// Finds the text of a setting in one source: the value itself, or a file with the value.
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

    fn empty(&self) -> Vec<&'static str> {
        let is_empty = |name: &str| self.vars.get(name).is_some_and(String::is_empty);
        let empty = settings().filter(|s| is_empty(s.env) || (s.has_file() && is_empty(&s.env_file())));
        empty.map(|setting| setting.env).collect()
    }

    fn check_unreadable(&self, problems: &mut Vec<Problem>) {
        for name in &self.unreadable {
            if let Some(setting) = settings().find(|s| s.env == name || s.env_file() == *name) {
                problems.push(Problem::of(setting, "is not UTF-8 text"));
            }
        }
    }

    /// Variables that are probably misspelled settings: a typo would have no effect otherwise. Every
    /// `KINSYNC_…` is one. Of the others, which belong to more programs than this one, only a name close to a setting that is
    /// not set.
    fn misspelled(&self, resolved: &[Resolved]) -> Vec<Problem> {
        let known: Vec<String> = settings()
            .flat_map(|s| [s.env.to_owned(), s.env_file()])
            .chain([CONFIG_VAR.to_owned()])
            .collect();
        let is_unset = |name: &str| {
            let of = |one: &&Resolved| one.setting.env == name || one.setting.env_file() == name;
            resolved.iter().find(of).is_some_and(|one| one.text.is_none())
        };
        let unknown = self.vars.keys().filter(|name| !known.contains(name));
        let problem = |name: &String| {
            // Some settings have names that other programs use too, without the prefix.
            let without_prefix =
                name.strip_prefix("KINSYNC_").filter(|rest| known.iter().any(|one| one == rest));
            let near = without_prefix.or_else(|| file::nearest(name, known.iter().map(String::as_str)));
            match near {
                _ if name.starts_with("KINSYNC_") => {}
                Some(near) if SHARED_PREFIXES.iter().any(|p| name.starts_with(p)) && is_unset(near) => {}
                _ => return None,
            }
            let hint = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
            Some(Problem::new(name, format!("is not a setting of kinsync and is ignored{hint}")))
        };
        unknown.filter_map(problem).collect()
    }
}

/// The content of a secret file, without the line end that editors add.
fn secret_in(path: &str) -> Result<String, String> {
    let text = fs::read_to_string(Path::new(path)).map_err(|e| format!("`{path}` could not be read: {e}"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(format!("`{path}` is empty")) } else { Ok(text.to_owned()) }
}
