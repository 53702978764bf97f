//! A local Kinde, so that the example runs without an account. Not needed in an application.

use anyhow::Result;
use kinde_emulator::{Config, Emulator, NewUser, TokenSpec, WebhookSpec};
use tempfile::TempDir;

/// A local Kinde with one user.
pub(crate) struct Demo {
    pub(crate) kinde: Emulator,
    /// Removed on drop.
    pub(crate) folder: TempDir,
    user: String,
    token: String,
}

impl Demo {
    /// Starts a local Kinde that delivers to the application at this address.
    pub(crate) async fn start(application: &str) -> Result<Self> {
        // Other ids and addresses in each run, because the database may contain those of an earlier run.
        #[expect(clippy::disallowed_methods, reason = "the demonstration differs in each run")]
        let seed: u32 = rand::random();
        let kinde = Emulator::start(Config { seed: seed.into(), ..Config::default() }).await?;
        kinde.add_webhook(WebhookSpec::new(format!("{application}/api/webhook").parse()?));
        // An import sends no webhook.
        let ada = NewUser::named(&format!("ada-{seed:x}@example.com"), "Ada", "Lovelace");
        let user = kinde.import_user(ada)?.id;
        let token = kinde.access_token(&user, &TokenSpec::default())?;
        Ok(Self { kinde, folder: tempfile::tempdir()?, user, token })
    }

    /// Returns commands to try.
    pub(crate) fn steps(&self, application: &str) -> String {
        let (kinde, Self { user, token, .. }) = (self.kinde.issuer(), self);
        format!(
            r#"
Ada was imported at Kinde, and no webhook was sent. Her first request creates her document:

  TOKEN={token}

  curl -H "Authorization: Bearer $TOKEN" {application}/me

A moment later the same command returns her name, which was read from Kinde. Add a note:

  curl -H "Authorization: Bearer $TOKEN" -d "buy milk" {application}/notes

A request without a token gets 401. Delete her at Kinde, and repeat the request: 403.

  curl {application}/notes
  curl -X DELETE {kinde}/_emulator/users/{user}
  curl -H "Authorization: Bearer $TOKEN" {application}/me

Ctrl-C ends it."#
        )
    }
}
