//! A local Kinde, so that this runs without an account. Not for copying.

use anyhow::Result;
use kinde_emulator::{Config, Emulator, NewUser, TokenSpec, WebhookSpec};
use tempfile::TempDir;

/// A local Kinde with one user.
pub(crate) struct Demo {
    pub(crate) kinde: Emulator,
    /// Removed when this goes.
    pub(crate) folder: TempDir,
    user: String,
    token: String,
}

impl Demo {
    /// Its webhook leads to the application at this address.
    pub(crate) async fn start(application: &str) -> Result<Self> {
        // Other ids and addresses in each run: a database may know those of the last one.
        #[expect(clippy::disallowed_methods, reason = "the demonstration differs in each run")]
        let seed: u32 = rand::random();
        let kinde = Emulator::start(Config { seed: seed.into(), ..Config::default() }).await?;
        kinde.add_webhook(WebhookSpec::new(format!("{application}/api/webhook").parse()?));
        // A bulk import: no webhook tells of her.
        let ada = NewUser::named(&format!("ada-{seed:x}@example.com"), "Ada", "Lovelace");
        let user = kinde.import_user(ada)?.id;
        let token = kinde.access_token(&user, &TokenSpec::default())?;
        Ok(Self { kinde, folder: tempfile::tempdir()?, user, token })
    }

    /// What to try.
    pub(crate) fn steps(&self, application: &str) -> String {
        let (kinde, Self { user, token, .. }) = (self.kinde.issuer(), self);
        format!(
            r#"
Ada is at Kinde and nowhere else, and no webhook told of her. Her first request finds her:

  TOKEN={token}

  curl -H "Authorization: Bearer $TOKEN" {application}/me

A moment later the same line knows her name: Kinde was asked for it. She takes a note:

  curl -H "Authorization: Bearer $TOKEN" -d "buy milk" {application}/notes

Without a token nobody gets in. Then delete her at Kinde, and ask again:

  curl {application}/notes
  curl -X DELETE {kinde}/_emulator/users/{user}
  curl -H "Authorization: Bearer $TOKEN" {application}/me

Ctrl-C ends it."#
        )
    }
}
