//! The Management API as the settings say, and what is done with it.

use std::{sync::Arc, time::Duration};

use kinde::management::{self, Client};
use kinsync_engine::{
    Clock,
    internal::{
        reconcile::{self, Reconciler, Thresholds},
        store::Store,
    },
};
use secrecy::SecretString;

use super::Error;
use crate::config::{Config, Reconcile};

/// The client of the tenant's Management API; `None` without a domain or a machine-to-machine application.
pub(crate) fn client(config: &Config) -> Result<Option<Client>, Error> {
    let Some(config) = settings(config) else { return Ok(None) };
    Client::new(config).map(Some).map_err(|error| Error::Management(Arc::new(error)))
}

/// The settings of that client, for callers with shorter timeouts.
pub(crate) fn settings(config: &Config) -> Option<management::Config> {
    let kinde = &config.kinde;
    let (Some(domain), Some(id), Some(secret)) =
        (&kinde.domain, &kinde.m2m_client_id, &kinde.m2m_client_secret)
    else {
        return None;
    };
    let mut settings = management::Config::new(domain.clone(), id.as_str(), SecretString::clone(secret));
    settings.page_size = config.reconcile.page_size;
    settings.unknown_user_codes.extend_from_slice(&config.reconcile.unknown_user_codes);
    Some(settings)
}

/// Returns a reconciler of the tenant and this store; `None` as for [`client`].
pub(crate) fn reconciler(
    config: &Config,
    store: Arc<dyn Store>,
    clock: Clock,
) -> Result<Option<Reconciler>, Error> {
    let client = client(config)?;
    // The scan of a command compares roles, whenever the last one did.
    let limits = reconcile::Config { roles_every: Duration::ZERO, ..limits(&config.reconcile) };
    Ok(client.map(|kinde| Reconciler::new(kinde, store, clock, limits)))
}

/// The limits of the reconciler.
pub(super) fn limits(settings: &Reconcile) -> reconcile::Config {
    let Reconcile { max_deletes, max_delete_share: share, properties, properties_every, .. } = settings;
    let properties = reconcile::PropertyConfig { keys: properties.clone(), every: *properties_every };
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    reconcile::Config {
        deletes: Thresholds { count: count(*max_deletes), share: *share },
        name: name(),
        roles: settings.roles,
        roles_every: settings.roles_every,
        member_reads: count(settings.permission_reads),
        properties,
        ..reconcile::Config::default()
    }
}

/// Process name recorded in the lease.
fn name() -> String {
    let pid = std::process::id();
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(host) => format!("process {pid} on {}", host.trim()),
        Err(_) => format!("process {pid}"),
    }
}
