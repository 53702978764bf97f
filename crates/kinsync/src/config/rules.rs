//! Rules between settings, warnings, and the parts that a setting disables.

use kinsync_engine::{Roles, internal::queue};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::{Config, Kinde, QueueKind, problem::Problem, setting::Setting, source::Merged};

/// Shorter secrets can be guessed; RFC 2104 section 3 advises the length of the hash.
const SHORT_SECRET: usize = 16;

/// Adds the violated rules of a server to the problems. A setting with an invalid value is not reported again as missing.
pub fn check(config: &Config, merged: &Merged, problems: &mut Vec<Problem>) {
    let found = names(problems);
    let unread = |env: &str| is_unread(&found, env);
    check_verification(config, merged, &unread, problems);
    check_roles(config, &unread, problems);
    check_m2m(config, &unread, problems);
    check_tls(config, &unread, problems);
    check_admin_tokens(config, problems);
    check_body_limit(config, &unread, problems);
}

/// Adds the violated rules of a command that accepts no requests, as [`check`] does.
pub fn check_command(config: &Config, _: &Merged, problems: &mut Vec<Problem>) {
    let found = names(problems);
    check_m2m(config, &|env: &str| is_unread(&found, env), problems);
}

fn names(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|problem| problem.name.clone()).collect()
}

/// Whether the setting has an invalid value, by the names of the problems.
fn is_unread(found: &[String], env: &str) -> bool {
    found.iter().any(|name| name == env || name.strip_suffix("_FILE") == Some(env))
}

/// What the queue never accepts must not be read. The rest is for the id of the event.
fn check_body_limit(config: &Config, unread: &dyn Fn(&str) -> bool, problems: &mut Vec<Problem>) {
    const FOR_THE_ID: usize = 1 << 20;
    let name = "KINSYNC_BODY_LIMIT";
    let (max, queue) = match config.queue.kind {
        #[cfg(feature = "rabbitmq")]
        QueueKind::Rabbitmq(_) => (queue::rabbitmq::MAX_ENTRY - FOR_THE_ID, " in RabbitMQ"),
        _ => (queue::MAX_ENTRY - FOR_THE_ID, ""),
    };
    if config.http.body_limit > max && !unread(name) {
        let mib = max >> 20;
        problems.push(Problem::of(
            Setting::of(name),
            format!("is more than the queue{queue} accepts: set at most {mib}MiB"),
        ));
    }
}

/// Without a domain and without a secret the server could accept no delivery.
fn check_verification(
    config: &Config,
    merged: &Merged,
    unread: &dyn Fn(&str) -> bool,
    problems: &mut Vec<Problem>,
) {
    let (domain, secret) = ("KINDE_DOMAIN", "KINDE_WEBHOOK_SECRET");
    let is_set = config.kinde.domain.is_some()
        || !config.kinde.webhook_secrets.is_empty()
        || !config.kinde.standard_webhooks_secrets.is_empty();
    let is_unread = [domain, secret, "KINSYNC_STANDARD_WEBHOOKS_SECRET"].into_iter().any(unread);
    if is_set || !config.roles.ingest || is_unread {
        return;
    }
    // The one that the operator tried to set comes first.
    let (name, other) = if merged.empty.contains(&secret) && !merged.empty.contains(&domain) {
        (secret, domain)
    } else {
        (domain, secret)
    };
    let state = if merged.empty.contains(&name) { "is empty" } else { "is not set" };
    let mut problem = Problem::of(
        Setting::of(name),
        format!(
            "{state}, and {other} is not set, so no delivery could be verified: set {domain} for webhooks that Kinde \
             signs, {secret} for deliveries signed by HMAC-SHA256, KINSYNC_STANDARD_WEBHOOKS_SECRET for those signed \
             by Standard Webhooks, or several of them"
        ),
    );
    let other = Setting::of(other);
    problem.example = problem.example.map(|line| format!("{line}   or   {}={}", other.env, other.example));
    problems.push(problem);
}

/// Processes with different roles share a queue, and a MongoDB where they use users.
fn check_roles(config: &Config, unread: &dyn Fn(&str) -> bool, problems: &mut Vec<Problem>) {
    let (roles, role) = (config.roles, "KINSYNC_ROLE");
    if unread(role) {
        return;
    }
    if roles.needs_shared_queue()
        && matches!(config.queue.kind, QueueKind::Embedded)
        && !unread("KINSYNC_QUEUE")
    {
        let missing = if roles.project {
            "no process fills the embedded queue, which other processes cannot use"
        } else {
            "no process empties the embedded queue, which other processes cannot use"
        };
        problems.push(Problem::of(
            Setting::of(role),
            format!("splits the work, and {missing}: set KINSYNC_QUEUE to a queue that all processes share, or add the role"),
        ));
    }
    if roles != Roles::ALL
        && roles.uses_store()
        && config.store.mongodb_uri.is_none()
        && !unread("MONGODB_URI")
    {
        problems.push(Problem::of(
            Setting::of(role),
            "splits the work, and other processes cannot use the users in this data folder: set MONGODB_URI"
                .to_owned(),
        ));
    }
    if roles == Roles::ALL || !roles.reconcile {
        return;
    }
    let Kinde { domain, m2m_client_id, .. } = &config.kinde;
    for (name, is_set) in
        [("KINDE_DOMAIN", domain.is_some()), ("KINDE_M2M_CLIENT_ID", m2m_client_id.is_some())]
    {
        if !is_set && !unread(name) {
            problems.push(Problem::of(
                Setting::of(name),
                format!("is not set, and the role `reconcile` in {role} needs it"),
            ));
        }
    }
}

fn check_m2m(config: &Config, unread: &dyn Fn(&str) -> bool, problems: &mut Vec<Problem>) {
    let (id, secret) = ("KINDE_M2M_CLIENT_ID", "KINDE_M2M_CLIENT_SECRET");
    let missing = match (&config.kinde.m2m_client_id, &config.kinde.m2m_client_secret) {
        (Some(_), None) if !unread(secret) => (secret, id),
        (None, Some(_)) if !unread(id) => (id, secret),
        _ => return,
    };
    problems.push(Problem::of(Setting::of(missing.0), format!("is not set, and {} needs it", missing.1)));
}

fn check_tls(config: &Config, unread: &dyn Fn(&str) -> bool, problems: &mut Vec<Problem>) {
    let (certificate, key) = ("KINSYNC_TLS_CERTIFICATE", "KINSYNC_TLS_KEY");
    let missing = match (&config.http.tls_certificate, &config.http.tls_key) {
        (Some(_), None) if !unread(key) => (key, certificate),
        (None, Some(_)) if !unread(certificate) => (certificate, key),
        _ => return,
    };
    problems.push(Problem::of(Setting::of(missing.0), format!("is not set, and {} needs it", missing.1)));
}

/// A short token can be guessed by everything that reaches the address. On a loopback address it is a warning.
fn check_admin_tokens(config: &Config, problems: &mut Vec<Problem>) {
    if config.http.admin_ip().is_loopback() {
        return;
    }
    for name in short_admin_tokens(config) {
        problems.push(Problem::of(
            Setting::of(name),
            format!(
                "holds a token of less than {SHORT_SECRET} characters, which can be guessed, and other machines can reach \
                 the admin routes: make one with `openssl rand -hex 32`, or set KINSYNC_ADMIN_BIND to a loopback address"
            ),
        ));
    }
}

/// The settings that hold a short admin token.
fn short_admin_tokens(config: &Config) -> impl Iterator<Item = &'static str> {
    let of_list = config.http.admin_tokens.iter().any(|named| is_short(&named.token));
    let single = config.http.admin_token.as_ref().is_some_and(is_short);
    [(single, "KINSYNC_ADMIN_TOKEN"), (of_list, "KINSYNC_ADMIN_TOKENS")]
        .into_iter()
        .filter_map(|(is_short, name)| is_short.then_some(name))
}

fn is_short(secret: &SecretString) -> bool {
    secret.expose_secret().len() < SHORT_SECRET
}

/// Notable combinations that are not errors.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let webhook_secrets = [
        ("KINDE_WEBHOOK_SECRET", &config.kinde.webhook_secrets),
        ("KINSYNC_STANDARD_WEBHOOKS_SECRET", &config.kinde.standard_webhooks_secrets),
    ];
    for (name, _) in webhook_secrets.iter().filter(|(_, secrets)| secrets.iter().any(is_short)) {
        warnings.push(format!(
            "{name} holds a secret of less than {SHORT_SECRET} characters, which can be guessed; make one with \
             `openssl rand -base64 32`"
        ));
    }
    for name in short_admin_tokens(config) {
        warnings.push(format!(
            "{name} holds a token of less than {SHORT_SECRET} characters, which can be guessed; make one with \
             `openssl rand -hex 32`"
        ));
    }
    if !matches!(config.queue.kind, QueueKind::Embedded)
        && config.roles.uses_store()
        && config.store.mongodb_uri.is_none()
    {
        warnings.push(
            "KINSYNC_QUEUE names a queue that several processes share, and MONGODB_URI is not set: each process stores the users of \
             the deliveries that it gets in its own data folder; set MONGODB_URI before a second process uses the queue"
                .to_owned(),
        );
    }
    warnings
}

/// A part of kinsync that is off because of a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disabled {
    /// What does not work.
    pub what: &'static str,
    /// The variable that enables it.
    pub enabled_by: &'static str,
}

/// The parts that are off because of a setting.
pub fn disabled(config: &Config) -> Vec<Disabled> {
    let of_domain = if config.kinde.issuers.is_empty() {
        "webhooks that Kinde signs itself (JWT), and routes for users with an access token"
    } else {
        "webhooks that Kinde signs itself (JWT)"
    };
    let Roles { ingest, reconcile, api, .. } = config.roles;
    let parts = [
        ((ingest || api) && config.kinde.domain.is_none(), of_domain, "KINDE_DOMAIN"),
        (
            ingest && config.kinde.webhook_secrets.is_empty(),
            "deliveries signed by HMAC-SHA256",
            "KINDE_WEBHOOK_SECRET",
        ),
        (
            api && config.http.admin_token.is_none() && config.http.admin_tokens.is_empty(),
            "admin routes, and the commands that use them",
            "KINSYNC_ADMIN_TOKEN",
        ),
        (
            reconcile && (config.kinde.domain.is_none() || config.kinde.m2m_client_id.is_none()),
            "reconciliation, so lost deliveries are not repaired",
            "KINDE_M2M_CLIENT_ID",
        ),
    ];
    let off = parts.into_iter().filter(|(is_off, ..)| *is_off);
    off.map(|(_, what, enabled_by)| Disabled { what, enabled_by }).collect()
}
