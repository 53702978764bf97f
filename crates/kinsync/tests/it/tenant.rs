//! A local Kinde, and commands of the real binary with settings for it.

use std::collections::BTreeMap;

use kinde_emulator::{Config, Emulator, WebhookSpec};
use serde_json::Value;

use crate::server::{SECRET, kinsync};

pub(crate) struct Tenant {
    pub(crate) kinde: Emulator,
    pub(crate) folder: tempfile::TempDir,
    vars: BTreeMap<String, String>,
}

/// How a command ended.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{}\n{}", self.stdout, self.stderr))
    }
}

impl Tenant {
    pub(crate) async fn start() -> Self {
        Self::with(Config::default()).await
    }

    /// With its machine-to-machine application in the settings, and a port without a server.
    pub(crate) async fn with(config: Config) -> Self {
        let kinde = Emulator::start(config).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let mut tenant = Self { kinde, folder, vars: BTreeMap::new() };
        let (id, secret) =
            (tenant.kinde.config().client_id.clone(), tenant.kinde.config().client_secret.clone());
        let issuer = tenant.kinde.issuer().to_owned();
        tenant
            .set("KINDE_DOMAIN", issuer)
            .set("KINDE_M2M_CLIENT_ID", id)
            .set("KINDE_M2M_CLIENT_SECRET", secret);
        tenant.set("KINDE_WEBHOOK_SECRET", SECRET).set("KINSYNC_DATA_DIR", data.display().to_string());
        let application = tenant.kinde.config().app_client_id.clone();
        tenant.set("KINDE_ALLOWED_CLIENT_IDS", application);
        // Port 9 is `discard`, where nothing listens.
        tenant.set("PORT", "9");
        tenant
    }

    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.vars.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn unset(&mut self, name: &str) -> &mut Self {
        self.vars.remove(name);
        self
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let vars: Vec<(&str, &str)> = self.vars.iter().map(|(name, value)| (&**name, &**value)).collect();
        let output = kinsync(args, &vars).current_dir(self.folder.path()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Adds a webhook with some event types; without any: all.
    pub(crate) fn add_webhook(&self, endpoint: &str, event_types: &[&str]) -> String {
        let event_types = event_types.iter().map(|kind| (*kind).to_owned()).collect();
        let spec = WebhookSpec { event_types, ..WebhookSpec::new(endpoint.parse().unwrap()) };
        self.kinde.add_webhook(spec)
    }

    /// The endpoint and the event types of each webhook, sorted.
    pub(crate) fn webhooks(&self) -> Vec<(String, Vec<String>)> {
        let webhooks = self.kinde.webhooks().into_iter();
        let mut webhooks: Vec<_> =
            webhooks.map(|one| (one.spec.endpoint.to_string(), one.spec.event_types)).collect();
        webhooks.sort();
        webhooks
    }
}

/// Kinde's event types without some, and with others.
pub(crate) fn event_types(without: &[&str], with: &[&str]) -> Vec<String> {
    let all = kinde_emulator::EVENT_TYPES.iter().map(|(code, _)| *code);
    all.filter(|code| !without.contains(code)).chain(with.iter().copied()).map(str::to_owned).collect()
}
