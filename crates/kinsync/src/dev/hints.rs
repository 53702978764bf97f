//! Where everything is, and what to try next: lines to paste, each no wider than a small terminal.

use serde::Serialize;

/// Where everything is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Addresses {
    /// kinsync, without a slash at the end.
    pub(crate) kinsync: String,
    /// The local Kinde, without a slash at the end.
    pub(crate) emulator: String,
    /// The keys that Kinde's webhooks are signed with.
    pub(crate) jwks: String,
    /// Opens kinsync's admin routes.
    pub(crate) admin_token: String,
    /// Signs deliveries by HMAC.
    pub(crate) webhook_secret: String,
    /// Where users are kept.
    pub(crate) store: String,
    /// Where the queue and the log are.
    pub(crate) data_dir: String,
}

impl Addresses {
    /// The addresses as a table.
    pub(crate) fn table(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("kinsync", &self.kinsync),
            ("local Kinde", &self.emulator),
            ("its keys", &self.jwks),
            ("users in", &self.store),
            ("files in", &self.data_dir),
            ("admin token", &self.admin_token),
            ("webhook secret", &self.webhook_secret),
        ]
    }
}

/// Something to try.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// What it shows.
    pub(crate) title: &'static str,
    /// What to paste into a shell.
    pub(crate) command: String,
}

/// What to try, in this order.
pub(crate) fn steps(at: &Addresses) -> Vec<Step> {
    let Addresses { kinsync, emulator, admin_token, webhook_secret, .. } = at;
    let json = r#"-H "Content-Type: application/json""#;
    let admin = format!(r#"-H "Authorization: Bearer {admin_token}""#);
    let step = |title, command| Step { title, command };
    let user = r#"{"type":"user.created","user":{"id":"test","email":"test@example.com"}}"#;
    vec![
        step(
            "A delivery that is not signed: 401, and how to sign it",
            format!(
                "curl -X POST {kinsync}/api/webhook \\\n  {json} -H \"x-kinde-signature: test\" \\\n  -d '{user}'"
            ),
        ),
        step(
            "The same, signed over exactly these bytes: 200",
            format!(
                "BODY='{user}'\n\
                 SIGNATURE=$(printf %s \"$BODY\" |\n  \
                 openssl dgst -sha256 -hmac {webhook_secret} -r | cut -c-64)\n\
                 curl -X POST {kinsync}/api/webhook -d \"$BODY\" \\\n  \
                 {json} -H \"x-kinde-signature: $SIGNATURE\""
            ),
        ),
        step("The user is there", format!("curl {kinsync}/api/admin/users/test \\\n  {admin}")),
        step(
            "The users of the town, three of them",
            format!("curl \"{kinsync}/api/admin/users?limit=3\" \\\n  {admin}"),
        ),
        step("How everything is", format!("curl {kinsync}/health")),
        step("What Prometheus reads", format!("curl -s {kinsync}/metrics | grep ^kinsync_")),
        step(
            "A new user at Kinde, who then comes by webhook",
            format!(
                "curl -X POST {emulator}/_emulator/users \\\n  {json} \\\n  \
                 -d '{{\"email\":\"grace@example.com\",\"first_name\":\"Grace\"}}'"
            ),
        ),
        step(
            "A moment later, in the store",
            format!("curl \"{kinsync}/api/admin/users?email=grace@example.com\" \\\n  {admin}"),
        ),
        step(
            "A new signing key: 401 until kinsync asks for it, 30 s at most",
            format!(
                "curl -X POST {emulator}/_emulator/keys/rotate \\\n  {json} \\\n  -d '{{\"overlap\":\"keep\"}}'"
            ),
        ),
        step(
            "Kinde loses the next ten deliveries: watch the drift",
            format!(
                "curl -X POST {emulator}/_emulator/faults \\\n  {json} \\\n  -d '{{\"kind\":\"drop\",\"times\":10}}'"
            ),
        ),
        step("Nothing goes wrong on purpose any more", format!("curl -X DELETE {emulator}/_emulator/faults")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_can_be_pasted_from_a_terminal_of_80_columns() {
        let at = Addresses {
            kinsync: "http://127.0.0.1:65535".into(),
            emulator: "http://127.0.0.1:65535".into(),
            jwks: "http://127.0.0.1:65535/.well-known/jwks.json".into(),
            admin_token: "0123456789abcdef".into(),
            webhook_secret: "0123456789abcdef".into(),
            store: "a file".into(),
            data_dir: "/tmp".into(),
        };
        for step in steps(&at) {
            assert!(step.title.len() < 74, "{}", step.title);
            for line in step.command.lines() {
                assert!(line.len() <= 80, "{} columns: {line}", line.len());
            }
        }
    }
}
