//! The webhook at Kinde, and the event types that it can deliver.

use kinde::event;
use url::Url;

use super::{CREDENTIALS, EVENT_TYPES, Finding, SCOPES, WEBHOOK, api::ApiResult, some};
use crate::{
    config::Config,
    doctor::schema,
    registration::{self, REQUIRED, Registration, may_be_ours},
};

pub(super) fn webhook(config: &Config, api: &ApiResult) -> Finding {
    let Some(answers) = api.answers() else { return Finding::needs(WEBHOOK, CREDENTIALS) };
    let Ok(webhooks) = &answers.webhooks else { return Finding::needs(WEBHOOK, SCOPES) };
    let endpoints: Vec<&str> = webhooks.iter().filter_map(|webhook| webhook.endpoint.as_deref()).collect();
    if webhooks.is_empty() {
        let fix = "run `kinsync webhook setup --public-url https://<your server>`, which creates one";
        return Finding::failed(WEBHOOK, "none exists at Kinde, so Kinde delivers nothing", fix);
    }
    let Some(endpoint) = registration::endpoint(&config.http) else {
        let likely =
            webhooks.iter().find(|webhook| may_be_ours(webhook)).and_then(|one| one.endpoint.as_deref());
        let likely = likely.unwrap_or("https://<your server>/api/webhook").trim_end_matches("/api/webhook");
        let found =
            format!("the address of this server is not configured, and these exist: {}", some(&endpoints));
        return Finding::skipped(WEBHOOK, found, format!("set KINSYNC_PUBLIC_URL, for example {likely}"));
    };
    let offered = answers.event_types.as_deref().unwrap_or_default();
    let offered: Vec<String> = offered.iter().map(|kind| kind.code.clone()).collect();
    let registration = Registration::of(endpoint, webhooks.clone(), &offered);
    let endpoint = &registration.endpoint;
    let Some(ours) = &registration.ours else {
        return elsewhere(config, endpoint, &endpoints);
    };
    let has = |kind: &&str| ours.event_types.iter().any(|one| one == kind);
    let lacking: Vec<&str> = REQUIRED.into_iter().filter(|kind| !has(kind)).collect();
    if !lacking.is_empty() {
        let found = format!("the webhook for {endpoint} does not deliver {}", lacking.join(", "));
        return Finding::failed(WEBHOOK, found, "run `kinsync webhook setup`, which adds them");
    }
    if !registration.twins.is_empty() {
        let found = format!(
            "{} deliver to {endpoint}, so each event arrives more than once",
            registration.twins.len() + 1
        );
        return Finding::warning(WEBHOOK, found, "remove all but one in Kinde under Settings > Webhooks");
    }
    let found = format!(
        "delivers {} event types to {endpoint}; Kinde does not show whether it disabled the webhook, as it does after 72 h of \
         failures",
        ours.event_types.len()
    );
    Finding::ok(WEBHOOK, found)
}

/// No webhook has the configured address. One that reaches this server through a proxy must not be created twice.
fn elsewhere(config: &Config, endpoint: &Url, endpoints: &[&str]) -> Finding {
    let found = format!("none delivers to {endpoint}; these exist: {}", some(endpoints));
    let is_near = |text: &&&str| Url::parse(text).is_ok_and(|url| url.origin() == endpoint.origin());
    match endpoints.iter().find(is_near).filter(|_| config.http.webhook_url.is_none()) {
        Some(near) => Finding::warning(
            WEBHOOK,
            found,
            format!(
                "if a proxy forwards {near} to /api/webhook, set KINSYNC_WEBHOOK_URL to it; else run `kinsync webhook setup`, \
                 which creates one"
            ),
        ),
        None => Finding::failed(
            WEBHOOK,
            found,
            "if one of them reaches this server, set KINSYNC_WEBHOOK_URL to it, or correct KINSYNC_PUBLIC_URL; else run `kinsync \
             webhook setup`, which creates one",
        ),
    }
}

pub(super) fn event_types(api: &ApiResult) -> Finding {
    let Some(answers) = api.answers() else { return Finding::needs(EVENT_TYPES, CREDENTIALS) };
    let Ok(types) = &answers.event_types else { return Finding::needs(EVENT_TYPES, SCOPES) };
    let offered: Vec<&str> = types.iter().map(|kind| kind.code.as_str()).collect();
    let missing: Vec<&str> = REQUIRED.into_iter().filter(|kind| !offered.contains(kind)).collect();
    if !missing.is_empty() {
        return Finding::failed(
            EVENT_TYPES,
            format!("Kinde has no {}, so these changes would not be delivered", missing.join(", ")),
            "check that KINDE_DOMAIN is the right environment, then contact Kinde's support",
        );
    }
    let unknown: Vec<&str> = offered.iter().filter(|kind| !event::is_known(kind)).copied().collect();
    let differences = schema::differences(types);
    if !differences.is_empty() {
        return Finding::warning(
            EVENT_TYPES,
            format!(
                "Kinde's event schemas differ from the fields that this version reads: {}",
                some(&differences)
            ),
            "check for a newer version of kinsync; until then scans find what events do not carry (`kinsync reconcile --dry-run`)",
        );
    }
    if unknown.is_empty() {
        return Finding::ok(EVENT_TYPES, format!("all {} are known", offered.len()));
    }
    Finding::warning(
        EVENT_TYPES,
        format!("Kinde has event types that this version does not know: {}", some(&unknown)),
        "check for a newer version of kinsync; until then these events are not subscribed to and change no user",
    )
}
