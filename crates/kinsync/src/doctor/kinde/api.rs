//! The Management API: credentials and scopes.

use std::time::Duration;

use kinde::{
    RequestTiming,
    management::{self, Client, Error, EventType, Webhook},
};
use kinsync_tower::problem::chain;

use super::{CREDENTIALS, Finding, SCOPES};
use crate::{app::management::settings, config::Config};

/// The scopes that are checked, with one request each.
const CHECKED_SCOPES: [&str; 4] = ["read:users", "read:webhooks", "read:event_types", "read:events"];
/// The id of no event: only the permission to read events matters.
const NO_EVENT: &str = "event_00000000000000000000000000000000";

/// The answers of the Management API.
pub(super) enum ApiResult {
    /// Not requested: a setting is missing.
    Unset,
    /// Not requested: a setting is wrong.
    Unusable(management::ConfigError),
    Answered(Box<Answers>),
}

pub(super) struct Answers {
    pub(super) users: Result<Option<RequestTiming>, Error>,
    pub(super) webhooks: Result<Vec<Webhook>, Error>,
    pub(super) event_types: Result<Vec<EventType>, Error>,
    event: Result<(), Error>,
}

impl Answers {
    /// The errors, each with the scope that the request needs.
    fn errors(&self) -> impl Iterator<Item = (&'static str, &Error)> {
        let errors = [
            self.users.as_ref().err(),
            self.webhooks.as_ref().err(),
            self.event_types.as_ref().err(),
            self.event.as_ref().err(),
        ];
        CHECKED_SCOPES.into_iter().zip(errors).filter_map(|(scope, error)| Some((scope, error?)))
    }

    /// Why Kinde does not accept the credentials: no token, or a token that it rejects for every request.
    fn refusal(&self) -> Option<&Error> {
        let mut errors = self.errors().map(|(_, error)| error);
        let all_failed = self.errors().count() == CHECKED_SCOPES.len();
        errors.find(|error| match error {
            Error::TokenUnavailable(_) => true,
            Error::Unauthorized { .. } => all_failed,
            _ => false,
        })
    }
}

impl ApiResult {
    /// The answers, if Kinde accepts the credentials.
    pub(super) fn answers(&self) -> Option<&Answers> {
        match self {
            Self::Answered(answers) if answers.refusal().is_none() => Some(answers),
            _ => None,
        }
    }
}

/// Makes one request for each scope, all with one token.
pub(super) async fn call_api(config: &Config) -> ApiResult {
    let Some(mut settings) = settings(config) else { return ApiResult::Unset };
    settings.page_size = 1;
    settings.timeout = Duration::from_secs(8);
    settings.retry.max_attempts = 2;
    settings.retry.max_elapsed = Duration::from_secs(10);
    let client = match Client::new(settings) {
        Ok(client) => client,
        Err(error) => return ApiResult::Unusable(error),
    };
    let mut pages = client.users();
    let (users, webhooks, event_types, event) =
        tokio::join!(pages.next(), client.webhooks(), client.event_types(), client.event(NO_EVENT));
    ApiResult::Answered(Box::new(Answers {
        users: users.map(|page| page.map(|page| page.timing)),
        webhooks: webhooks.map(|answer| answer.value),
        event_types: event_types.map(|answer| answer.value),
        event: match event {
            // Kinde does not document its answer for an unknown event: either of these means that reading is permitted.
            Err(Error::UnexpectedStatus { status, .. }) if matches!(status.as_u16(), 400 | 404) => Ok(()),
            answer => answer.map(|_| ()),
        },
    }))
}

pub(super) fn credentials(config: &Config, api: &ApiResult) -> Finding {
    let application = "of a machine-to-machine application that is authorised for the Kinde Management API";
    match api {
        ApiResult::Unset if config.kinde.domain.is_none() => {
            let fix = "set KINDE_DOMAIN, KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET to compare users with Kinde";
            Finding::skipped(CREDENTIALS, "no tenant is configured", fix)
        }
        ApiResult::Unset => Finding::warning(
            CREDENTIALS,
            "none are configured, so lost deliveries cannot be repaired",
            format!("set KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET {application}"),
        ),
        ApiResult::Unusable(error) => Finding::failed(
            CREDENTIALS,
            chain(error),
            format!("set KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET {application}"),
        ),
        ApiResult::Answered(answers) => match answers.refusal() {
            Some(error) => Finding::failed(CREDENTIALS, chain(error), credentials_fix(error, application)),
            None => Finding::ok(CREDENTIALS, "Kinde issues a token"),
        },
    }
}

fn credentials_fix(error: &Error, application: &str) -> String {
    match error {
        Error::TokenUnavailable(source) if matches!(**source, Error::InvalidCredentials { .. }) => {
            format!(
                "set KINDE_M2M_CLIENT_ID and KINDE_M2M_CLIENT_SECRET to those {application}, and KINDE_DOMAIN to the \
                 kinde.com address of its environment"
            )
        }
        Error::TokenUnavailable(_) => "check KINDE_DOMAIN, and that this machine can reach it".to_owned(),
        _ => "set KINDE_DOMAIN to the kinde.com address: a custom domain does not serve the Management API and belongs into \
              KINDE_ISSUERS"
            .to_owned(),
    }
}

pub(super) fn scopes(api: &ApiResult) -> Finding {
    let Some(answers) = api.answers() else { return Finding::needs(SCOPES, CREDENTIALS) };
    // A request that is rejected without a reason, while others succeed, lacks its scope too.
    let (lacking, others): (Vec<_>, Vec<_>) = answers
        .errors()
        .partition(|(_, error)| matches!(error, Error::MissingScope { .. } | Error::Unauthorized { .. }));
    let lacking: Vec<&str> = lacking.into_iter().map(|(scope, _)| scope).collect();
    if !lacking.is_empty() {
        let found = format!("the machine-to-machine application lacks {}", lacking.join(", "));
        let fix = format!(
            "grant {} in Kinde under Settings > APIs > Kinde Management API > the application",
            lacking.join(", ")
        );
        // A scan needs the users; the other scopes are for setup and diagnosis.
        return if lacking.contains(&"read:users") {
            Finding::failed(SCOPES, found, fix)
        } else {
            Finding::warning(SCOPES, found, fix)
        };
    }
    // A lasting error for the users comes first: it makes every scan fail.
    match others.first() {
        Some((scope, error)) => {
            let found = format!("the request that needs {scope} failed: {}", chain(*error));
            let fix = "try again in a moment; status.kinde.com shows outages of Kinde";
            if *scope == "read:users" && !error.is_transient() {
                Finding::failed(SCOPES, found, fix)
            } else {
                Finding::warning(SCOPES, found, fix)
            }
        }
        None => Finding::ok(SCOPES, CHECKED_SCOPES.join(", ")),
    }
}
