//! Runs the emulator until SIGINT or SIGTERM.

use anyhow::{Context as _, anyhow};
use kinde_emulator::{Activity, Config, Emulator, WebhookSpec};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::ServeArgs;
use super::output::print;

const DEFAULT_PORT: u16 = 4620;

pub(super) async fn run(args: ServeArgs, json: bool) -> anyhow::Result<()> {
    let rate = args.activity;
    let config = config(args)?;
    let seed = config.seed;
    let cancel = CancellationToken::new();
    let emulator = Emulator::start_until(config, cancel.clone()).await?;
    print(&if json { summary(&emulator) } else { introduction(&emulator) });
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut activity = Activity::new(seed);
    let running = async {
        match rate {
            Some(rate) => activity.run(&emulator, rate, &cancel).await,
            None => emulator.stopped().await,
        }
    };
    tokio::select! {
        () = running => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    emulator.shutdown().await;
    Ok(())
}

/// Reads the settings file and applies the options.
fn config(args: ServeArgs) -> anyhow::Result<Config> {
    let mut config = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the settings in `{}`", path.display()))?;
            toml::from_str(&text)
                .map_err(|error| anyhow!("cannot parse `{}`: {}", path.display(), place(&text, &error)))?
        }
        None => Config::default(),
    };
    match (args.port, config.port) {
        (Some(port), _) => config.port = port,
        (None, 0) => config.port = DEFAULT_PORT,
        (None, _) => {}
    }
    config.seed = args.seed.unwrap_or(config.seed);
    config.time_scale = args.time_scale.unwrap_or(config.time_scale);
    config.generated.users = args.generated.unwrap_or(config.generated.users);
    config.webhooks.extend(args.webhook.into_iter().map(WebhookSpec::new));
    Ok(config)
}

/// The line and the message of an error in the settings, without values of the file, which may be secrets.
fn place(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message();
    let Some((before, rest)) = message.split_once('"') else { return format!("line {line}: {message}") };
    let after = rest.rsplit_once('"').map_or("", |(_, after)| after);
    format!("line {line}: {before}\"…\"{after}")
}

/// The client secret if it is the documented default. Another one is not printed, because the output may be kept as a log.
fn printable_secret(config: &Config) -> Option<String> {
    let Config { client_secret: default, .. } = Config::default();
    (config.client_secret == default).then_some(default)
}

fn summary(emulator: &Emulator) -> String {
    json!({
        "issuer": emulator.issuer(),
        "jwks": format!("{}/.well-known/jwks.json", emulator.issuer()),
        "client_id": emulator.config().client_id,
        "client_secret": printable_secret(emulator.config()),
        "app_client_id": emulator.config().app_client_id,
        "audience": emulator.api_audience(),
    })
    .to_string()
}

fn introduction(emulator: &Emulator) -> String {
    let (issuer, config) = (emulator.issuer(), emulator.config());
    let endpoints: Vec<String> =
        emulator.webhooks().iter().map(|webhook| webhook.spec.endpoint.to_string()).collect();
    let endpoints = if endpoints.is_empty() { "none".to_owned() } else { endpoints.join(", ") };
    let app = &config.app_client_id;
    let (id, audience) = (&config.client_id, emulator.api_audience());
    let secret = printable_secret(config).unwrap_or_else(|| "<as in the settings file>".to_owned());
    format!(
        "A local Kinde is running. Press Ctrl-C to stop it.

  issuer         {issuer}
  JWKS           {issuer}/.well-known/jwks.json
  client id      {id}
  client secret  {secret}
  audience       {audience}
  sign-in        {issuer}/oauth2/auth for the client id {app}
  webhooks       {endpoints}

Try:
  curl -X POST {issuer}/_emulator/webhooks -H 'Content-Type: application/json' \\
    -d '{{\"endpoint\":\"http://localhost:3000/webhook\"}}'
  curl -X POST {issuer}/_emulator/sign-up -H 'Content-Type: application/json' \\
    -d '{{\"email\":\"ada@example.com\",\"first_name\":\"Ada\",\"last_name\":\"Lovelace\"}}'
  TOKEN=$(curl -s {issuer}/oauth2/token -d grant_type=client_credentials -d client_id={id} \\
    -d 'client_secret={secret}' -d audience={audience} | sed 's/.*\"access_token\":\"\\([^\"]*\\).*/\\1/')
  curl -H \"Authorization: Bearer $TOKEN\" '{issuer}/api/v1/users?page_size=5'
  kinde-emulator stats --url {issuer}
"
    )
}
