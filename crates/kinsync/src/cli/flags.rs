//! Settings as flags, made from the table, so that no flag can be missing or mean something else.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{
    Flags, Setting,
    setting::{Reader, Secrecy},
    settings,
};

/// The flags of `serve` and `config`: every setting.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerFlags(pub(super) Flags);

/// The flags of the commands that talk to a running server.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientFlags(pub(super) Flags);

fn for_server(setting: &Setting) -> bool {
    setting.reader != Reader::Client
}

fn for_client(setting: &Setting) -> bool {
    setting.reader != Reader::Server
}

impl Args for ServerFlags {
    fn augment_args(command: Command) -> Command {
        augment(command, for_server)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServerFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(collect(matches, for_server)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = collect(matches, for_server);
        Ok(())
    }
}

impl Args for ClientFlags {
    fn augment_args(command: Command) -> Command {
        augment(command, for_client)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ClientFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(collect(matches, for_client)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = collect(matches, for_client);
        Ok(())
    }
}

fn augment(command: Command, wanted: fn(&Setting) -> bool) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("A TOML file with settings [env: KINSYNC_CONFIG]")
        .help_heading("Settings");
    settings().filter(|setting| wanted(setting)).fold(command.arg(file), |command, setting| {
        let command = command.arg(flag(setting));
        if setting.has_file() { command.arg(file_flag(setting)) } else { command }
    })
}

fn flag(setting: &'static Setting) -> Arg {
    let default = setting.default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let hidden =
        if setting.secrecy == Secrecy::Hidden { "; other users can read flags with `ps`" } else { "" };
    Arg::new(setting.flag)
        .long(setting.flag)
        .value_name("VALUE")
        .allow_hyphen_values(true)
        .help(format!("{}{hidden}{default} [env: {}]", setting.help, setting.env))
        .help_heading("Settings")
}

fn file_flag(setting: &'static Setting) -> Arg {
    let name = format!("{}-file", setting.flag);
    Arg::new(name.clone())
        .long(name)
        .value_name("FILE")
        .help(format!("The same, from a file [env: {}]", setting.env_file()))
        .help_heading("Settings")
}

fn collect(matches: &ArgMatches, wanted: fn(&Setting) -> bool) -> Flags {
    let of_setting = |setting: &Setting| {
        let file = setting.has_file().then(|| format!("{}-file", setting.flag));
        std::iter::once(setting.flag.to_owned()).chain(file)
    };
    let names = settings().filter(|setting| wanted(setting)).flat_map(of_setting);
    std::iter::once("config".to_owned())
        .chain(names)
        .filter_map(|name| matches.get_one::<String>(&name).cloned().map(|value| (name, value)))
        .collect()
}
