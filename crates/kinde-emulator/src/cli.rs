//! The command line: what can be said. What it does is in `cli/serve.rs` and `cli/remote.rs`.

mod output;
mod remote;
mod serve;

use std::io::Write as _;

use clap::{Args, Parser, Subcommand, ValueEnum};
use url::Url;

/// A local Kinde: keys, tokens, users, signed webhooks on Kinde's retry schedule, and faults on demand.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON for programs.
    #[arg(long, global = true)]
    json: bool,
}

const AFTER_HELP: &str = "\
Run a Kinde that tells your application what happens:
  kinde-emulator --webhook http://localhost:3000/webhook
  kinde-emulator --webhook http://localhost:3000/webhook --activity 5 --time-scale 1000

Speak to it from another terminal (at --url):
  kinde-emulator users create --email ada@example.com --first-name Ada
  kinde-emulator token access kp_…
  kinde-emulator faults set duplicate --chance 0.2
  kinde-emulator faults set rate_limit --with reset=30 --on users --times 3
  kinde-emulator keys rotate --drop
  kinde-emulator stats

Logs go to standard error: RUST_LOG=kinde_emulator=debug shows each delivery.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the emulator (the default).
    Serve(ServeArgs),
    /// Create, change and delete users.
    #[command(subcommand)]
    Users(Users),
    /// Mint tokens.
    #[command(subcommand)]
    Token(Token),
    /// Rotate the signing key.
    #[command(subcommand)]
    Keys(Keys),
    /// Make things go wrong.
    #[command(subcommand)]
    Faults(Faults),
    /// Add, list and enable webhook endpoints.
    #[command(subcommand)]
    Webhooks(Webhooks),
    /// Show the latest deliveries.
    Deliveries(Target),
    /// Show counters of users, deliveries, requests and faults.
    Stats(Target),
    /// Forget users, deliveries, counters and faults.
    Reset(Target),
}

/// How to run the emulator.
#[derive(Debug, Args)]
struct ServeArgs {
    /// Port to listen on; 0 for any. [default: 4620]
    #[arg(long)]
    port: Option<u16>,
    /// An endpoint that receives every webhook; may be given again.
    #[arg(long, value_name = "URL")]
    webhook: Vec<Url>,
    /// Generate this many user actions per second.
    #[arg(long, value_name = "RATE")]
    activity: Option<f64>,
    /// Start with so many generated users, which cost no memory.
    #[arg(long, value_name = "COUNT")]
    generated: Option<u64>,
    /// Settings in TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    /// How many times faster than real retries and auto-disable run.
    #[arg(long, value_name = "FACTOR")]
    time_scale: Option<f64>,
    /// Seed of ids, jitter, faults and generated actions.
    #[arg(long)]
    seed: Option<u64>,
}

/// Which emulator to speak to.
#[derive(Debug, Args)]
struct Target {
    /// The running emulator.
    #[arg(long, env = "KINDE_EMULATOR_URL", default_value = "http://127.0.0.1:4620")]
    url: Url,
}

#[derive(Debug, Subcommand)]
enum Users {
    /// Create a user as an administrator: `user.created`.
    Create {
        #[command(flatten)]
        fields: Fields,
        /// Let the user sign up instead: the events of a sign-up.
        #[arg(long)]
        sign_up: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Change a user: `user.updated`. An empty text removes a value.
    Update {
        id: String,
        #[command(flatten)]
        fields: Fields,
        #[command(flatten)]
        target: Target,
    },
    /// Suspend a user, or end it: `user.updated`.
    Suspend {
        id: String,
        /// End the suspension.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a user: `user.deleted`.
    Delete {
        id: String,
        /// Keep the profile as a subscriber's record.
        #[arg(long)]
        keep_profile: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Import users as Kinde's bulk import does, without any event: one from flags, or many from JSON.
    Import {
        #[command(flatten)]
        fields: Fields,
        /// A JSON file with a list of users.
        #[arg(long)]
        file: Option<std::path::PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// List users in the order of their creation, at most 1000 of them.
    List {
        /// Those behind this user.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Sign a user in: `user.authenticated`.
    SignIn {
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

/// What a user is made of.
#[derive(Debug, Args)]
struct Fields {
    #[arg(long)]
    email: Option<String>,
    #[arg(long)]
    first_name: Option<String>,
    #[arg(long)]
    last_name: Option<String>,
    #[arg(long)]
    phone: Option<String>,
    #[arg(long)]
    username: Option<String>,
    #[arg(long)]
    picture: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Token {
    /// An access token, as a user's application would send it.
    Access(UserToken),
    /// An ID token, which no API should accept.
    Id(UserToken),
    /// A machine-to-machine token for the Management API.
    M2m {
        #[command(flatten)]
        spec: Spec,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
struct UserToken {
    /// The user's id.
    user: String,
    #[command(flatten)]
    spec: Spec,
    #[command(flatten)]
    target: Target,
}

/// How a token differs from an ordinary one.
#[derive(Debug, Args)]
struct Spec {
    /// Seconds until it expires; negative for one that has expired.
    #[arg(long, allow_negative_numbers = true)]
    expires_in: Option<i64>,
    /// `aud`; may be given again.
    #[arg(long)]
    audience: Vec<String>,
    /// `scp`; may be given again.
    #[arg(long)]
    scope: Vec<String>,
    /// A claim as KEY=VALUE, where VALUE is JSON or text and `null` removes it; may be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = output::key_value)]
    claim: Vec<(String, serde_json::Value)>,
    /// Sign with a key that the tenant never published.
    #[arg(long)]
    foreign: bool,
    /// Algorithm: RS256, HS256 (with the public key as secret) or none.
    #[arg(long, default_value = "RS256")]
    alg: String,
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Sign with a new key; the old one stays published.
    Rotate {
        /// Withdraw the old keys at once.
        #[arg(long)]
        drop: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
enum Faults {
    /// Turn a fault on.
    Set {
        /// What goes wrong.
        kind: Kind,
        /// Probability per occasion.
        #[arg(long, default_value_t = 1.0)]
        chance: f64,
        /// Strike so many times and then no more.
        #[arg(long)]
        times: Option<u64>,
        /// The route (jwks, token, profile, users, user, management, …) or event type; all otherwise.
        #[arg(long)]
        on: Option<String>,
        /// A setting of the fault, e.g. copies=2, min=100ms, max=2s, reset=30, status=503, by=-1.
        #[arg(long, value_name = "KEY=VALUE", value_parser = output::key_value)]
        with: Vec<(String, serde_json::Value)>,
        #[command(flatten)]
        target: Target,
    },
    /// Turn all faults off.
    Clear(Target),
    /// Show the faults that are on and how often each struck.
    Show(Target),
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    /// Webhooks: extra copies (copies=1).
    Duplicate,
    /// Webhooks: held back until others overtook it (behind=1, hold=1s).
    Reorder,
    /// Webhooks: late (min, max).
    Delay,
    /// Webhooks: never sent.
    Drop,
    /// Changes without any event.
    Silent,
    /// HTTP: 429 with `RateLimit-Reset` (reset).
    RateLimit,
    /// HTTP: this status (status).
    Status,
    /// HTTP: late (min, max).
    Slow,
    /// HTTP: `Date` by another clock (ahead, in seconds; negative: behind).
    WrongDate,
    /// HTTP: the connection is cut in the body.
    CutBody,
    /// HTTP: half of the JSON.
    TruncatedJson,
    /// HTTP: not JSON at all.
    Garbage,
    /// List of users: empty.
    EmptyList,
    /// List of users: the next page is this page.
    RepeatedNextToken,
    /// List of users: the next page starts too early or too late (by).
    PaginationDrift,
    /// List of users: an empty page with a token that goes on.
    EmptyPage,
    /// List of users: the last page leads to the first.
    EndlessTokens,
    /// Reading users: the state of some time ago (lag).
    StaleReplica,
    /// Reading one user: no such user (status=404, id of whom; everybody otherwise).
    UserGone,
}

#[derive(Debug, Subcommand)]
enum Webhooks {
    /// Add an endpoint.
    Add {
        endpoint: Url,
        /// Send this event type alone; may be given again.
        #[arg(long)]
        event: Vec<String>,
        /// Sign as a relay with HMAC-SHA256 in `x-kinde-signature`, with this secret.
        #[arg(long, value_name = "SECRET", conflicts_with = "standard")]
        hmac: Option<String>,
        /// Sign as Standard Webhooks, with this secret.
        #[arg(long, value_name = "SECRET")]
        standard: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// List endpoints, and which of them are disabled.
    List(Target),
    /// Enable an endpoint that was disabled.
    Enable {
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Disable an endpoint, as Kinde does after 72 hours of failures.
    Disable {
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

/// One line on standard error, with every cause.
pub(crate) fn say_error(error: &anyhow::Error) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "kinde-emulator: {error:#}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What stands between backticks.
    fn named(text: &str) -> BTreeSet<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_commands_and_the_readme_name_every_kind_of_fault() {
        let refusal = serde_json::from_str::<kinde_emulator::Fault>(r#"{"kind": "none"}"#).unwrap_err();
        let refusal = refusal.to_string();
        let known = named(refusal.split_once("expected one of").expect("a list of kinds").1);
        assert!(known.contains("wrong_date"), "{refusal}");
        let commands = Kind::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        assert_eq!(commands.map(|kind| kind.get_name().to_owned()).collect::<BTreeSet<_>>(), known);
        let readme = include_str!("../README.md");
        let table =
            readme.split_once("## Faults").and_then(|(_, rest)| rest.split_once("\nRoutes:")).unwrap().0;
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
        let kinds = rows.filter_map(|row| row.split('|').next()).map(|kinds| format!("`{kinds}"));
        assert_eq!(kinds.flat_map(|kinds| named(&kinds)).collect::<BTreeSet<_>>(), known);
    }
}
