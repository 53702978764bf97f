//! `kinsync webhook setup`

use std::process::ExitCode;

use clap::Subcommand;
use kinde::management::{Client, Webhook};
use serde_json::{Value, json};
use url::Url;

use super::{exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    app::management,
    config::{Config, Problem, Problems, Setting, Sources, value},
    registration::{self, Plan, Registration},
};

const AFTER_HELP: &str = "\
Makes the webhook that is missing, or adds the event types that it lacks: all that kinsync can read and your Kinde
environment has. Run it as often as you like: the second time there is nothing to do. Webhooks of other addresses are
left alone and named, and event types that somebody added stay.

Needs KINDE_DOMAIN (the kinde.com one), KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET: a machine-to-machine
application that is authorised for the Kinde Management API with the scopes read:webhooks, read:event_types,
create:webhooks and update:webhooks. Kinde counts one token for each run.

Examples:
  kinsync webhook setup --public-url https://app.example.com      for https://app.example.com/api/webhook
  kinsync webhook setup --url https://app.example.com/hooks/kinde where a proxy leads to /api/webhook; KINSYNC_WEBHOOK_URL
                                                                  says the same, also to `kinsync doctor`
  kinsync webhook setup --dry-run --json                          what it would do, for a program

Exit codes: 0 done, or nothing to do; 1 failed; 78 wrong settings";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Let Kinde deliver to this server, with every event type that it needs
    Setup(Setup),
}

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Setup {
    /// The whole address of the webhook [default: `KINSYNC_WEBHOOK_URL`, else /api/webhook below the public URL]
    #[arg(long)]
    url: Option<String>,
    /// Say what would change; change nothing
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
    let config = Config::load(&Sources::of_process(args.flags.0))?.config;
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
            "\nFor `kinsync doctor`, and to run this without --url: set KINSYNC_WEBHOOK_URL={}",
            found.endpoint
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the command cannot do without; all that is missing is said at once.
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
        let text = "is not set: say where Kinde reaches this server, here or with --url";
        problems.push(Problem::of(Setting::of("KINSYNC_PUBLIC_URL"), text));
    }
    let client = management::client(config).map_err(anyhow::Error::from)?;
    match (client, endpoint) {
        (Some(client), Some(endpoint)) if problems.is_empty() => Ok((client, endpoint)),
        _ => Err(Problems(problems).into()),
    }
}

fn missing(config: &Config) -> Vec<Problem> {
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

fn show(found: &Registration, id: Option<&str>, dry_run: bool, as_json: bool) {
    let (action, added) = match found.plan() {
        Plan::Nothing => ("nothing", Vec::new()),
        Plan::Add(added) => ("update", added),
        Plan::Create => ("create", found.wanted.clone()),
    };
    let named = |webhooks: &[Webhook]| -> Vec<Value> {
        let each = webhooks.iter();
        each.map(|one| json!({ "id": one.id, "name": one.name, "endpoint": one.endpoint })).collect()
    };
    let (twins, others) = (named(&found.twins), named(&found.others));
    if as_json {
        return output::json(&json!({
            "action": action, "dryRun": dry_run, "endpoint": found.endpoint.as_str(), "webhook": id,
            "eventTypes": found.event_types(), "added": added, "notOffered": found.not_offered,
            "sameEndpoint": twins, "others": others,
        }));
    }
    let endpoint = &found.endpoint;
    output::say(&match (action, dry_run) {
        ("create", false) => format!("made a webhook: Kinde delivers to {endpoint}"),
        ("create", true) => format!("would make a webhook: Kinde does not deliver to {endpoint}"),
        ("update", false) => format!("added event types to the webhook of {endpoint}"),
        ("update", true) => format!("would add event types to the webhook of {endpoint}"),
        _ => format!("nothing to do: Kinde delivers to {endpoint}, with every event type that kinsync reads"),
    });
    if !added.is_empty() {
        output::say(&format!("  {}", added.join("\n  ")));
    }
    let columns = [("WEBHOOK", "id"), ("NAME", "name"), ("DELIVERS TO", "endpoint")];
    if !twins.is_empty() {
        output::say(
            "\nMore webhooks with this address: every event comes more than once, which changes nothing.",
        );
        output::say("Remove them in Kinde under Settings > Webhooks:");
        output::table(&twins, &columns);
    }
    if !others.is_empty() {
        output::say("\nLeft alone:");
        output::table(&others, &columns);
    }
}
