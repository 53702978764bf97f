//! The command line. `cli/serve.rs` and `cli/remote.rs` run the commands.

mod directory;
mod output;
mod remote;
mod request;
mod serve;

use std::io::Write as _;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::Targets;
use url::Url;

/// Run a local Kinde for development and tests: keys, tokens, users, signed webhooks with Kinde's retry schedule, and
/// injected faults.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Levels of the log by target, such as `info,kinde_emulator=debug`, which logs each delivery.
    #[arg(
        long,
        env = "RUST_LOG",
        hide_env_values = true,
        value_name = "FILTER",
        default_value = "info",
        global = true
    )]
    pub(crate) log: Targets,
}

const AFTER_HELP: &str = "\
Run it and send webhooks to an application:
  kinde-emulator --webhook http://localhost:3000/webhook
  kinde-emulator --webhook http://localhost:3000/webhook --activity 5

Control it from another terminal:
  kinde-emulator users create --email ada@example.com --first-name Ada
  kinde-emulator organizations join kp_… org_1 --role admin
  kinde-emulator token access kp_… --org org_1 --roles
  kinde-emulator faults set duplicate --chance 0.2
  kinde-emulator faults set rate_limit --with reset=30 --times 3
  kinde-emulator keys rotate --drop
  kinde-emulator stats

Logs go to stderr.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the emulator (default).
    Serve(ServeArgs),
    /// Create, change and delete users.
    #[command(subcommand)]
    Users(Users),
    /// Create, change and delete organizations and memberships.
    #[command(subcommand)]
    Organizations(directory::Organizations),
    /// Create, change and delete roles.
    #[command(subcommand)]
    Roles(directory::Roles),
    /// Create, change and delete permissions.
    #[command(subcommand)]
    Permissions(directory::Permissions),
    /// List and create the properties that users can have; `users set-properties` sets values.
    #[command(subcommand)]
    Properties(directory::Properties),
    /// Create tokens.
    #[command(subcommand)]
    Token(Token),
    /// Rotate the signing key.
    #[command(subcommand)]
    Keys(Keys),
    /// Inject faults.
    #[command(subcommand)]
    Faults(Faults),
    /// Add, list and enable webhook endpoints.
    #[command(subcommand)]
    Webhooks(Webhooks),
    /// Show the latest deliveries.
    Deliveries(Target),
    /// Show counters of users, deliveries, requests and faults.
    Stats(Target),
    /// Remove users, deliveries, counters and faults.
    Reset(Target),
}

/// Options of `serve`.
#[derive(Debug, Args)]
struct ServeArgs {
    /// Port to listen on; 0 is any free port [default: 4620]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Endpoint that receives all webhooks; repeatable.
    #[arg(long, value_name = "URL")]
    webhook: Vec<Url>,
    /// Generate this many user actions per second.
    #[arg(long, value_name = "RATE")]
    activity: Option<f64>,
    /// Number of generated users at the start; they use no memory.
    #[arg(long, value_name = "COUNT")]
    generated: Option<u64>,
    /// Settings file in TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    /// Factor by which retries and the disabling of endpoints run faster.
    #[arg(long, value_name = "FACTOR")]
    time_scale: Option<f64>,
    /// Seed of ids, jitter, faults and generated actions.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// The emulator to control.
#[derive(Debug, Args)]
struct Target {
    /// URL of the running emulator.
    #[arg(long, env = "KINDE_EMULATOR_URL", hide_env_values = true, default_value = "http://127.0.0.1:4620")]
    url: Url,
}

#[derive(Debug, Subcommand)]
enum Users {
    /// Create a user as an administrator; sends `user.created`.
    Create {
        #[command(flatten)]
        fields: Fields,
        /// Create the user as a sign-up; sends the events of a sign-up.
        #[arg(long)]
        sign_up: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Change a user; sends `user.updated`. An empty text removes a value.
    Update {
        /// Id of the user.
        id: String,
        #[command(flatten)]
        fields: Fields,
        #[command(flatten)]
        target: Target,
    },
    /// Suspend a user; sends `user.updated`.
    Suspend {
        /// Id of the user.
        id: String,
        /// End the suspension instead.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a user; sends `user.deleted`.
    Delete {
        /// Id of the user.
        id: String,
        /// Keep the profile as a subscriber's record.
        #[arg(long)]
        keep_profile: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Import users without events, as Kinde's bulk import does: one user from options, or a file.
    Import {
        #[command(flatten)]
        fields: Fields,
        /// JSON file with a list of users.
        #[arg(long, value_name = "FILE")]
        file: Option<std::path::PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// List users in the order of creation, up to 1000 per page.
    List {
        /// Id of the last user of the page before.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Set properties of a user; sends no event. An empty text removes a value.
    SetProperties {
        /// Id of the user.
        id: String,
        /// Property and value.
        #[arg(value_name = "KEY=VALUE", value_parser = directory::key_text, required = true)]
        values: Vec<(String, String)>,
        #[command(flatten)]
        target: Target,
    },
    /// Sign a user in; sends `user.authenticated`.
    SignIn {
        /// Id of the user.
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Fields of a user.
#[derive(Debug, Args)]
struct Fields {
    /// Email.
    #[arg(long)]
    email: Option<String>,
    /// First name.
    #[arg(long, value_name = "NAME")]
    first_name: Option<String>,
    /// Last name.
    #[arg(long, value_name = "NAME")]
    last_name: Option<String>,
    /// Phone number.
    #[arg(long, value_name = "NUMBER")]
    phone: Option<String>,
    /// Username.
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// URL of a picture.
    #[arg(long, value_name = "URL")]
    picture: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Create an access token of a user.
    Access {
        #[command(flatten)]
        user: UserToken,
        /// Organization of the token, of which the user must be a member [default: the first]
        #[arg(long, value_name = "CODE")]
        org: Option<String>,
        /// Add the roles in the organization, which applications get by token customization.
        #[arg(long)]
        roles: bool,
    },
    /// Create an ID token of a user, which no API should accept.
    Id(UserToken),
    /// Create a machine-to-machine token for the Management API.
    M2m {
        #[command(flatten)]
        spec: Spec,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
struct UserToken {
    /// Id of the user.
    user: String,
    #[command(flatten)]
    spec: Spec,
    #[command(flatten)]
    target: Target,
}

/// Changes to a token.
#[derive(Debug, Args)]
struct Spec {
    /// Seconds until it expires; negative for an expired token.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    expires_in: Option<i64>,
    /// Audience, in `aud`; repeatable.
    #[arg(long)]
    audience: Vec<String>,
    /// Scope, in `scp`; repeatable.
    #[arg(long)]
    scope: Vec<String>,
    /// Claim; VALUE is JSON or text, `null` removes the claim; repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = output::key_value)]
    claim: Vec<(String, serde_json::Value)>,
    /// Sign with a key that is not published.
    #[arg(long)]
    foreign: bool,
    /// Algorithm: RS256, HS256 (with the public key as secret) or none.
    #[arg(long, default_value = "RS256")]
    alg: String,
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Sign with a new key; the old keys stay published.
    Rotate {
        /// Remove the old keys from the JWKS immediately.
        #[arg(long)]
        drop: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
enum Faults {
    /// Add a fault.
    Set {
        /// Kind of the fault.
        kind: Kind,
        /// Probability per delivery or request, from 0 to 1.
        #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
        chance: f64,
        /// Number of occurrences [default: unlimited]
        #[arg(long, value_name = "N")]
        times: Option<u64>,
        /// Route (jwks, token, profile, users, user, management, …) or event type [default: all]
        #[arg(long, value_name = "NAME")]
        on: Option<String>,
        /// Setting of the fault, such as copies=2, min=100ms, reset=30 or status=503; repeatable.
        #[arg(long, value_name = "KEY=VALUE", value_parser = output::key_value)]
        with: Vec<(String, serde_json::Value)>,
        #[command(flatten)]
        target: Target,
    },
    /// Remove all faults.
    Clear(Target),
    /// Show the active faults and how often each occurred.
    Show(Target),
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    /// Webhooks: send extra copies (copies=1).
    Duplicate,
    /// Webhooks: hold back until later ones were sent (behind=1, hold=1s).
    Reorder,
    /// Webhooks: delay (min, max).
    Delay,
    /// Webhooks: do not send.
    Drop,
    /// Changes: create no event.
    Silent,
    /// HTTP: respond with 429 and `RateLimit-Reset` (reset).
    RateLimit,
    /// HTTP: respond with a status (status).
    Status,
    /// HTTP: delay the response (min, max).
    Slow,
    /// HTTP: wrong `Date` (ahead, in seconds; negative is behind).
    WrongDate,
    /// HTTP: a `Date` without a value, which counts as none.
    MissingDate,
    /// HTTP: close the connection in the middle of the body.
    CutBody,
    /// HTTP: send half of the JSON.
    TruncatedJson,
    /// HTTP: send text that is not JSON.
    Garbage,
    /// Lists: no entries.
    EmptyList,
    /// Members: no role of any member. Permissions of a member: without the roles that give them.
    NoRoles,
    /// Search, properties of a user: no property of any user.
    NoProperties,
    /// Lists: repeat the page.
    RepeatedNextToken,
    /// Lists: start the next page too early or too late (by).
    PaginationDrift,
    /// Lists: an empty page with a token for the next page.
    EmptyPage,
    /// Lists: continue with the first page after the last one.
    EndlessTokens,
    /// Reading users and members: respond with an earlier state (lag).
    StaleReplica,
    /// Reading one user: respond as if it did not exist (status=404, id).
    UserNotFound,
}

#[derive(Debug, Subcommand)]
enum Webhooks {
    /// Add an endpoint.
    Add {
        /// URL of the endpoint.
        endpoint: Url,
        /// Event type to send; repeatable [default: all]
        #[arg(long, value_name = "TYPE")]
        event: Vec<String>,
        /// Sign by HMAC-SHA256 in `x-kinde-signature` with this secret.
        #[arg(long, value_name = "SECRET", conflicts_with = "standard")]
        hmac: Option<String>,
        /// Sign by Standard Webhooks with this secret.
        #[arg(long, value_name = "SECRET")]
        standard: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// List endpoints and whether they are disabled.
    List(Target),
    /// Enable an endpoint that was disabled.
    Enable {
        /// Id of the endpoint.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Disable an endpoint, as Kinde does after 72 hours of failures.
    Disable {
        /// Id of the endpoint.
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

impl Cli {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            None => serve::run(self.serve, self.json).await,
            Some(Command::Serve(args)) => serve::run(args, self.json).await,
            Some(command) => remote::run(command, self.json).await,
        }
    }
}

/// Prints an error with its causes to stderr.
pub(crate) fn print_error(error: &anyhow::Error) {
    // A closed stderr is ignored.
    let _ = writeln!(std::io::stderr(), "kinde-emulator: {error:#}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The texts between backticks.
    fn quoted(text: &str) -> BTreeSet<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_commands_and_the_readme_name_every_kind_of_fault() {
        let error = serde_json::from_str::<kinde_emulator::Fault>(r#"{"kind": "none"}"#).unwrap_err();
        let error = error.to_string();
        let known = quoted(error.split_once("expected one of").expect("a list of kinds").1);
        assert!(known.contains("wrong_date"), "{error}");
        let commands = Kind::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        assert_eq!(commands.map(|kind| kind.get_name().to_owned()).collect::<BTreeSet<_>>(), known);
        let readme = include_str!("../README.md");
        let table =
            readme.split_once("## Faults").and_then(|(_, rest)| rest.split_once("\nRoutes:")).unwrap().0;
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
        let kinds = rows.filter_map(|row| row.split('|').next()).map(|kinds| format!("`{kinds}"));
        assert_eq!(kinds.flat_map(|kinds| quoted(&kinds)).collect::<BTreeSet<_>>(), known);
    }
}
