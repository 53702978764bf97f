//! `kinsync webhook setup`

use std::process::ExitCode;

use clap::Subcommand;
use kinde::management::{Client, Webhook};
use serde::Serialize;
use url::Url;

use super::{exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    app::management,
    config::{Config, Problem, Problems, Setting, Sources, value},
    registration::{self, Plan, Registration},
};

const AFTER_HELP: &str = "\
Creates the webhook if it is missing, or adds the event types that it lacks: every type that kinsync reads and your Kinde environment has. \
Running it again changes nothing. Webhooks with another address are listed and not changed, and event types that an operator added are \
kept.

Needs KINDE_DOMAIN (the kinde.com one), KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET: a machine-to-machine application that is \
authorised for the Kinde Management API with the scopes read:webhooks, read:event_types, create:webhooks and update:webhooks. Kinde counts \
one token for each run.

Examples:
  kinsync webhook setup --public-url https://app.example.com
      use https://app.example.com/api/webhook
  kinsync webhook setup --url https://app.example.com/hooks/kinde
      use another path that a proxy forwards to /api/webhook;
      KINSYNC_WEBHOOK_URL sets the same, also for `kinsync doctor`
  kinsync webhook setup --dry-run --json
      print what would change

Exit codes: 0 done, or nothing to do; 1 failed; 78 wrong settings";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register the webhook of this server at Kinde, with every event type that kinsync reads
    Setup(Setup),
}

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Setup {
    /// The complete address of the webhook [default: `KINSYNC_WEBHOOK_URL`, else /api/webhook below the public URL]
    #[arg(long)]
    url: Option<String>,
    /// Print what would change and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    let Command::Setup(args) = command;
    block_on(setup(args))
}

async fn setup(args: Setup) -> Result<ExitCode, Exit> {
    let config = Config::of_command(&Sources::of_process(args.flags.0))?;
    let (client, endpoint) = needs(&config, args.url.as_deref())?;
    let found = Registration::read(&client, endpoint).await.map_err(anyhow::Error::from)?;
    let id = if args.dry_run {
        found.check().map_err(anyhow::Error::from)?;
        found.ours.as_ref().map(|ours| ours.id.clone())
    } else {
        Some(found.carry_out(&client).await.map_err(anyhow::Error::from)?)
    };
    show(&found, id.as_deref(), args.dry_run, args.json);
    if !args.json && registration::endpoint(&config.http).as_ref() != Some(&found.endpoint) {
        output::say(&format!(
            "\nTo run this without --url, and for `kinsync doctor`: set KINSYNC_WEBHOOK_URL={}",
            found.endpoint
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Collects what the command needs; the error names everything that is missing.
fn needs(config: &Config, url: Option<&str>) -> Result<(Client, Url), Exit> {
    let mut problems: Vec<Problem> = missing(config);
    let given = url.map(value::public_url).transpose();
    let endpoint = match given {
        Ok(given) => given.or_else(|| registration::endpoint(&config.http)),
        Err(wrong) => {
            problems.push(Problem::new("--url", wrong));
            None
        }
    };
    if endpoint.is_none() && url.is_none() {
        let text = "is not set: set the address at which Kinde reaches this server, here or with --url";
        problems.push(Problem::of(Setting::of("KINSYNC_PUBLIC_URL"), text));
    }
    let client = management::client(config).map_err(anyhow::Error::from)?;
    match (client, endpoint) {
        (Some(client), Some(endpoint)) if problems.is_empty() => Ok((client, endpoint)),
        _ => Err(Problems(problems).into()),
    }
}

/// Returns the settings that the Management API needs and that are not set.
pub(super) fn missing(config: &Config) -> Vec<Problem> {
    let kinde = &config.kinde;
    let text = "is not set, and Kinde's Management API needs it";
    let needed = [
        (kinde.domain.is_none(), "KINDE_DOMAIN"),
        (kinde.m2m_client_id.is_none(), "KINDE_M2M_CLIENT_ID"),
        (kinde.m2m_client_secret.is_none(), "KINDE_M2M_CLIENT_SECRET"),
    ];
    let missing = needed.into_iter().filter(|(missing, _)| *missing);
    missing.map(|(_, name)| Problem::of(Setting::of(name), text)).collect()
}

/// What was done, or would be.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Nothing,
    Update,
    Create,
}

/// The result, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    action: Action,
    dry_run: bool,
    endpoint: &'a str,
    /// The id of the webhook; absent when it would only be created.
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<&'a str>,
    event_types: Vec<String>,
    added: Vec<String>,
    not_offered: &'a [&'static str],
    same_endpoint: Vec<NamedWebhook<'a>>,
    others: Vec<NamedWebhook<'a>>,
}

#[derive(Serialize)]
struct NamedWebhook<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
}

impl<'a> From<&'a Webhook> for NamedWebhook<'a> {
    fn from(webhook: &'a Webhook) -> Self {
        Self { id: &webhook.id, name: webhook.name.as_deref(), endpoint: webhook.endpoint.as_deref() }
    }
}

fn show(found: &Registration, id: Option<&str>, dry_run: bool, as_json: bool) {
    let (action, added) = match found.plan() {
        Plan::Nothing => (Action::Nothing, Vec::new()),
        Plan::Add(added) => (Action::Update, added),
        Plan::Create => (Action::Create, found.wanted.clone()),
    };
    let report = Report {
        action,
        dry_run,
        endpoint: found.endpoint.as_str(),
        webhook: id,
        event_types: found.event_types(),
        added,
        not_offered: &found.not_offered,
        same_endpoint: found.twins.iter().map(Into::into).collect(),
        others: found.others.iter().map(Into::into).collect(),
    };
    if as_json { output::json(&report) } else { print(&report) }
}

fn print(report: &Report<'_>) {
    let endpoint = report.endpoint;
    output::say(&match (report.action, report.dry_run) {
        (Action::Create, false) => format!("created the webhook: Kinde delivers to {endpoint}"),
        (Action::Create, true) => format!("would create the webhook: Kinde does not deliver to {endpoint}"),
        (Action::Update, false) => format!("added event types to the webhook for {endpoint}"),
        (Action::Update, true) => format!("would add event types to the webhook for {endpoint}"),
        (Action::Nothing, _) => {
            format!("nothing to do: Kinde delivers every event type that kinsync reads to {endpoint}")
        }
    });
    if !report.added.is_empty() {
        output::say(&format!("  {}", report.added.join("\n  ")));
    }
    if !report.same_endpoint.is_empty() {
        output::say(
            "\nMore webhooks have this address, so each event is delivered more than once. This changes nothing. Remove \
             them in Kinde under Settings > Webhooks:",
        );
        print_webhooks(&report.same_endpoint);
    }
    if !report.others.is_empty() {
        output::say("\nWebhooks with another address, not changed:");
        print_webhooks(&report.others);
    }
}

fn print_webhooks(webhooks: &[NamedWebhook<'_>]) {
    let rows = webhooks.iter().map(|webhook| {
        let (name, endpoint) = (webhook.name.as_ref(), webhook.endpoint.as_ref());
        [webhook.id.to_owned(), output::cell(name), output::cell(endpoint)]
    });
    output::table(["WEBHOOK", "NAME", "ADDRESS"], rows);
}
