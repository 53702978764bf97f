//! Kinde: clock, signing keys, issuers, credentials, scopes, the webhook and the event types.

mod api;
mod issuers;
mod webhook;

use kinde::bearer;

use self::{api::ApiResult, issuers::Discovered};
use super::{Finding, properties, roles, some};
use crate::config::Config;

const CLOCK: &str = "kinde.clock";
const KEYS: &str = "kinde.keys";
const ISSUERS: &str = "kinde.issuers";
const AUDIENCE: &str = "kinde.audience";
const CREDENTIALS: &str = "kinde.credentials";
const SCOPES: &str = "kinde.scopes";
const WEBHOOK: &str = "kinde.webhook";
const EVENT_TYPES: &str = "kinde.event_types";

pub(super) const IDS: [&str; 10] = [
    CLOCK,
    KEYS,
    ISSUERS,
    AUDIENCE,
    CREDENTIALS,
    SCOPES,
    WEBHOOK,
    EVENT_TYPES,
    roles::ROLES,
    properties::PROPERTIES,
];

/// A larger difference of the clocks is a warning, in seconds. A measurement is accurate to about a second.
const NOTABLE_SKEW: f64 = 5.0;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let (key_sets, discovered, answers, roles, properties) = tokio::join!(
        issuers::fetch_key_sets(config),
        issuers::discover(config),
        api::call_api(config),
        roles::examine(config),
        properties::examine(config)
    );
    vec![
        clock(config, &discovered, &answers),
        issuers::keys(config, &key_sets),
        issuers::issuers(config, &discovered, &key_sets),
        issuers::audience(config),
        api::credentials(config, &answers),
        api::scopes(&answers),
        webhook::webhook(config, &answers),
        webhook::event_types(&answers),
        roles,
        properties,
    ]
}

fn clock(config: &Config, discovered: &Discovered, api: &ApiResult) -> Finding {
    let of_api = || api.answers()?.users.as_ref().ok()?.as_ref()?.clock_skew();
    let of_tenant = || {
        let mut sent = discovered.iter().filter_map(|(.., answer)| Some(answer.as_ref().ok()?.1));
        sent.find_map(|sent| sent.clock_skew())
    };
    let Some(skew) = of_api().or_else(of_tenant).map(|skew| skew.as_secs_f64()) else {
        let fix = if config.kinde.domain.is_some() { "see kinde.keys" } else { "set KINDE_DOMAIN" };
        return Finding::skipped(CLOCK, "Kinde's time is not known", fix);
    };
    let leeway = bearer::Config::default().leeway.as_secs_f64();
    let (side, harm) = if skew > 0.0 {
        ("ahead of", "valid tokens are rejected")
    } else {
        ("behind", "expired tokens are accepted")
    };
    let found = format!("this machine's clock is {:.0} s {side} Kinde's", skew.abs());
    let fix = "synchronize the clock of this machine with NTP (`timedatectl set-ntp true`)";
    if skew.abs() > leeway {
        return Finding::failed(CLOCK, format!("{found}: {harm}"), fix);
    }
    if skew.abs() > NOTABLE_SKEW {
        return Finding::warning(CLOCK, found, fix);
    }
    Finding::ok(CLOCK, format!("within {:.0} s of Kinde's", skew.abs().ceil().max(1.0)))
}
