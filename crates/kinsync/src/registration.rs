//! The webhook at Kinde: its present state, its wanted state, and the change from one to the other.
//!
//! [`Registration::plan`] decides what to do, without a request. Nothing is ever removed, neither webhooks with another
//! address nor event types that an operator added. None is created while one may exist: when the effect of a request is not
//! known, the list is read again first.

use kinde::{
    event,
    management::{self, Client, NewWebhook, Webhook, WebhookUpdate},
};
use url::Url;

use crate::config::Http;

/// The path of deliveries, below the public address.
const PATH: [&str; 2] = ["api", "webhook"];

/// The event types without which stored users become outdated.
pub const REQUIRED: [&str; 4] =
    [event::USER_CREATED, event::USER_UPDATED, event::USER_DELETED, event::USER_AUTHENTICATED];

/// The scopes that `webhook setup` needs.
pub const SCOPES: [&str; 4] = ["read:webhooks", "read:event_types", "create:webhooks", "update:webhooks"];

/// The address at which Kinde delivers to this server; `None` when it is not configured.
pub fn endpoint(http: &Http) -> Option<Url> {
    http.webhook_url.clone().or_else(|| http.public_url.as_ref().map(endpoint_of))
}

/// The address of the webhook of a server with this public address.
pub fn endpoint_of(public_url: &Url) -> Url {
    let mut endpoint = public_url.clone();
    if let Ok(mut path) = endpoint.path_segments_mut() {
        path.pop_if_empty().extend(PATH);
    }
    endpoint
}

/// Whether the path is that of a webhook of kinsync.
pub fn may_be_ours(webhook: &Webhook) -> bool {
    let url = webhook.endpoint.as_deref().and_then(|endpoint| Url::parse(endpoint).ok());
    url.is_some_and(|url| url.path().ends_with("/api/webhook"))
}

/// Why the webhook could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list could not be read. Nothing was changed.
    #[error(
        "cannot read Kinde's webhooks and event types; the machine-to-machine application needs the scopes {}",
        SCOPES.join(", ")
    )]
    Read(#[source] management::Error),
    /// A required event type does not exist. Nothing was changed.
    #[error("this Kinde environment has no event type {}, which kinsync needs: contact Kinde's support", .0.join(", "))]
    NotOffered(Vec<&'static str>),
    /// Kinde refused to create it.
    #[error("Kinde did not create the webhook{}", of_plan(*.others))]
    Refused {
        /// Webhooks that exist, when their number may be the reason.
        others: usize,
        /// What it answered.
        source: management::Error,
    },
    /// The request may have had an effect: the list was read again without finding the webhook, or could not be read.
    #[error("it is not known whether Kinde created the webhook: run the command again, which checks first")]
    Unsure(#[source] management::Error),
    /// Kinde refused to change it.
    #[error(
        "cannot add event types to the webhook `{id}`; run the command again, which adds the missing ones"
    )]
    Update {
        /// The webhook.
        id: String,
        /// Why.
        source: management::Error,
    },
}

/// What has to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// It exists with every wanted event type.
    Nothing,
    /// It exists and lacks these event types.
    Add(Vec<String>),
    /// It does not exist.
    Create,
}

/// The webhooks of a tenant, in relation to one address.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The wanted address.
    pub endpoint: Url,
    /// The webhook with this address; of several, the one with the most wanted event types.
    pub ours: Option<Webhook>,
    /// Further webhooks with this address.
    pub twins: Vec<Webhook>,
    /// Webhooks with another address.
    pub others: Vec<Webhook>,
    /// Event types that kinsync reads and the tenant has.
    pub wanted: Vec<String>,
    /// Required event types that the tenant does not have.
    pub not_offered: Vec<&'static str>,
}

impl Registration {
    /// Reads the webhooks and event types from Kinde. Scopes `read:webhooks` and `read:event_types`.
    pub async fn read(client: &Client, endpoint: Url) -> Result<Self, Error> {
        let webhooks = client.webhooks().await.map_err(Error::Read)?.value;
        let offered = client.event_types().await.map_err(Error::Read)?.value;
        let offered: Vec<String> = offered.into_iter().map(|kind| kind.code).collect();
        Ok(Self::of(endpoint, webhooks, &offered))
    }

    /// Sorts these webhooks and event types for the address.
    pub fn of(endpoint: Url, webhooks: Vec<Webhook>, offered: &[String]) -> Self {
        let wanted: Vec<String> = offered.iter().filter(|kind| event::is_known(kind)).cloned().collect();
        let not_offered = REQUIRED.into_iter().filter(|kind| !wanted.iter().any(|one| one == kind)).collect();
        let delivers_here = |webhook: &Webhook| {
            webhook.endpoint.as_deref().and_then(|text| text.parse().ok()).as_ref() == Some(&endpoint)
        };
        let (mut here, others): (Vec<_>, Vec<_>) = webhooks.into_iter().partition(delivers_here);
        // The sort is stable: of webhooks with equally many the first stays first.
        here.sort_by_key(|webhook| lacking(&wanted, webhook).count());
        let mut here = here.into_iter();
        Self { ours: here.next(), twins: here.collect(), others, wanted, not_offered, endpoint }
    }

    /// What has to be done.
    pub fn plan(&self) -> Plan {
        let Some(ours) = &self.ours else { return Plan::Create };
        let missing: Vec<String> = lacking(&self.wanted, ours).cloned().collect();
        if missing.is_empty() { Plan::Nothing } else { Plan::Add(missing) }
    }

    /// The event types of the webhook after the plan is carried out.
    pub fn event_types(&self) -> Vec<String> {
        match &self.ours {
            Some(ours) => ours.event_types.iter().chain(lacking(&self.wanted, ours)).cloned().collect(),
            None => self.wanted.clone(),
        }
    }

    /// Checks that the tenant has every required event type.
    pub fn check(&self) -> Result<(), Error> {
        if self.not_offered.is_empty() { Ok(()) } else { Err(Error::NotOffered(self.not_offered.clone())) }
    }

    /// Carries out the plan and returns the id of the webhook. Scopes `create:webhooks` or `update:webhooks`.
    ///
    /// # Errors
    /// [`Error::Unsure`] when the effect is not known: calling again is safe after [`Self::read`].
    pub async fn carry_out(&self, client: &Client) -> Result<String, Error> {
        self.check()?;
        match (&self.ours, self.plan()) {
            (None, _) => self.create(client).await,
            (Some(ours), Plan::Add(_)) => {
                let edit =
                    WebhookUpdate { event_types: Some(self.event_types()), ..WebhookUpdate::default() };
                let failed = |source| Error::Update { id: ours.id.clone(), source };
                client.update_webhook(&ours.id, &edit).await.map_err(failed)?;
                Ok(ours.id.clone())
            }
            (Some(ours), _) => Ok(ours.id.clone()),
        }
    }

    async fn create(&self, client: &Client) -> Result<String, Error> {
        let new = NewWebhook {
            endpoint: self.endpoint.clone(),
            event_types: self.wanted.clone(),
            name: "kinsync".to_owned(),
            description: Some("Mirrors users into the database of an application".to_owned()),
        };
        let error = match client.create_webhook(&new).await {
            Ok(made) => return Ok(made.value),
            Err(error) => error,
        };
        if was_refused(&error) {
            let may_be_too_many = matches!(error, management::Error::UnexpectedStatus { .. });
            let others = if may_be_too_many { self.others.len() } else { 0 };
            return Err(Error::Refused { others, source: error });
        }
        let Ok(now) = client.webhooks().await else { return Err(Error::Unsure(error)) };
        match Self::of(self.endpoint.clone(), now.value, &self.wanted).ours {
            Some(made) => Ok(made.id),
            None => Err(Error::Unsure(error)),
        }
    }
}

fn lacking<'a>(wanted: &'a [String], webhook: &Webhook) -> impl Iterator<Item = &'a String> {
    wanted.iter().filter(|kind| !webhook.event_types.contains(kind))
}

/// <https://docs.kinde.com/integrate/third-party-tools/kinde-and-convex/>
fn of_plan(others: usize) -> String {
    match others {
        0 => String::new(),
        some => format!(" ({some} exist already, and its free plan allows one in each environment)"),
    }
}

/// Whether the request certainly had no effect.
fn was_refused(error: &management::Error) -> bool {
    use management::Error as E;
    match error {
        E::TokenUnavailable(_)
        | E::InvalidCredentials { .. }
        | E::Unauthorized { .. }
        | E::MissingScope { .. }
        | E::RateLimited { .. }
        | E::ConcurrencyTimeout => true,
        E::UnexpectedStatus { status, .. } => status.is_client_error() && status.as_u16() != 408,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(base: &str) -> String {
        endpoint_of(&base.parse().unwrap()).into()
    }

    #[test]
    fn the_endpoint_is_below_the_public_address() {
        assert_eq!(endpoint("https://app.example.com"), "https://app.example.com/api/webhook");
        assert_eq!(endpoint("https://app.example.com/"), "https://app.example.com/api/webhook");
        assert_eq!(endpoint("https://h:8443/kinsync/"), "https://h:8443/kinsync/api/webhook");
    }
}
