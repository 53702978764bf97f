//! Addresses of a run, and commands to try. Each line fits into a terminal of 80 columns.

use serde::Serialize;

/// Addresses and secrets of a run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Addresses {
    /// Base URL of kinsync, without a trailing slash.
    pub(crate) kinsync: String,
    /// Base URL of the local Kinde, without a trailing slash.
    pub(crate) emulator: String,
    /// URL of the keys that sign tokens and webhooks.
    pub(crate) jwks: String,
    /// Token of kinsync's admin API.
    pub(crate) admin_token: String,
    /// Secret of webhooks signed by HMAC.
    pub(crate) webhook_secret: String,
    /// Where users are stored.
    pub(crate) store: String,
    /// Folder of the queue and the log.
    pub(crate) data_dir: String,
    /// Whether scans repair the store.
    pub(crate) has_repair: bool,
}

impl Addresses {
    /// The addresses as labels and values.
    pub(crate) fn table(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("kinsync", &self.kinsync),
            ("local Kinde", &self.emulator),
            ("JWKS", &self.jwks),
            ("store", &self.store),
            ("data folder", &self.data_dir),
            ("admin token", &self.admin_token),
            ("webhook secret", &self.webhook_secret),
        ]
    }
}

/// A command to try.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// What it shows.
    pub(crate) title: &'static str,
    /// Text to paste into a shell.
    pub(crate) command: String,
}

const JSON: &str = r#"-H "Content-Type: application/json""#;

/// The commands in the order in which they build on each other.
pub(crate) fn steps(at: &Addresses) -> Vec<Step> {
    [sign_in(at), repair(at), signatures(at), operation(at)].concat()
}

fn step(title: &'static str, command: String) -> Step {
    Step { title, command }
}

fn admin(at: &Addresses) -> String {
    format!(r#"-H "Authorization: Bearer {}""#, at.admin_token)
}

fn sign_in(at: &Addresses) -> Vec<Step> {
    let Addresses { kinsync, emulator, .. } = at;
    let me = format!("curl -i {kinsync}/api/me \\\n  -H \"Authorization: Bearer $TOKEN\"");
    vec![
        step(
            "Sign up a user at the local Kinde; a webhook brings it to kinsync",
            format!(
                "ID=$(curl -s {emulator}/_emulator/sign-up \\\n  {JSON} \\\n  \
                 -d '{{\"email\":\"grace@example.com\",\"first_name\":\"Grace\"}}' |\n  \
                 sed 's/.*\"id\":\"\\(kp_[^\"]*\\).*/\\1/'); echo $ID"
            ),
        ),
        step(
            "Sign in: an access token as the front end would get it",
            format!(
                "TOKEN=$(curl -s {emulator}/_emulator/tokens/access \\\n  {JSON} \\\n  \
                 -d \"{{\\\"user\\\":\\\"$ID\\\"}}\" | cut -d '\"' -f 4); echo $TOKEN"
            ),
        ),
        step("Send a request with this token: 200 and the stored user", me.clone()),
        step("Delete the user at Kinde", format!("curl -X DELETE {emulator}/_emulator/users/$ID")),
        step("Send the same request: 403, although the token has not expired", me),
    ]
}

fn repair(at: &Addresses) -> Vec<Step> {
    let Addresses { kinsync, emulator, has_repair, .. } = at;
    if !has_repair {
        return Vec::new();
    }
    let admin = admin(at);
    vec![
        step(
            "Lose the next ten deliveries: the drift rises, then a scan repairs it",
            format!(
                "curl {emulator}/_emulator/faults \\\n  {JSON} \\\n  -d '{{\"kind\":\"drop\",\"times\":10}}'"
            ),
        ),
        step(
            "Scan now instead of waiting for the next scan",
            format!("curl -X POST {kinsync}/api/admin/reconcile \\\n  {admin}"),
        ),
        step(
            "What the last scan found and repaired",
            format!("curl {kinsync}/api/admin/drift \\\n  {admin}"),
        ),
    ]
}

fn signatures(at: &Addresses) -> Vec<Step> {
    let Addresses { kinsync, emulator, webhook_secret, .. } = at;
    let user = "{\"type\":\"user.created\",\"event_id\":\"event_1\",\n\
        \"timestamp\":\"2026-01-01T00:00:00Z\",\n\
        \"user\":{\"id\":\"test\",\"email\":\"test@example.com\"}}";
    vec![
        step(
            "A delivery with a wrong signature: 401",
            format!(
                "curl {kinsync}/api/webhook \\\n  {JSON} -H \"x-kinde-signature: test\" \\\n  -d '{user}'"
            ),
        ),
        step(
            "The same delivery, signed by HMAC-SHA256: 200",
            format!(
                "BODY='{user}'\n\
                 SIGNATURE=$(printf %s \"$BODY\" |\n  \
                 openssl dgst -sha256 -hmac {webhook_secret} -r | cut -c-64)\n\
                 curl {kinsync}/api/webhook -d \"$BODY\" \\\n  \
                 {JSON} -H \"x-kinde-signature: $SIGNATURE\""
            ),
        ),
        step(
            "Its user, until a scan finds that Kinde does not have it",
            format!("curl {kinsync}/api/admin/users/test \\\n  {}", admin(at)),
        ),
        step(
            "A new signing key at Kinde: 401 until kinsync loads it, 30 s at most",
            format!("curl {emulator}/_emulator/keys/rotate \\\n  {JSON} \\\n  -d '{{\"overlap\":\"keep\"}}'"),
        ),
    ]
}

fn operation(at: &Addresses) -> Vec<Step> {
    let Addresses { kinsync, emulator, .. } = at;
    vec![
        step(
            "The first three users of the store",
            format!("curl \"{kinsync}/api/admin/users?limit=3\" \\\n  {}", admin(at)),
        ),
        step("The health of each component", format!("curl {kinsync}/health")),
        step("The metrics for Prometheus", format!("curl -s {kinsync}/metrics | grep ^kinsync_")),
        step("Stop injecting faults", format!("curl -X DELETE {emulator}/_emulator/faults")),
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
            has_repair: true,
        };
        for step in steps(&at) {
            assert!(step.title.len() < 74, "{}", step.title);
            for line in step.command.lines() {
                assert!(line.len() <= 80, "{} columns: {line}", line.len());
            }
        }
    }
}
