//! Whether scans can compare the properties of users: the scopes, and the requests that each comparison needs.

use kinde::management::{Client, Error};
use kinsync_engine::internal::reconcile::ALL_PROPERTIES;
use kinsync_tower::problem::chain;

use super::Finding;
use crate::{app::management::settings, config::Config};

pub(super) const PROPERTIES: &str = "kinde.properties";

pub(super) async fn examine(config: &Config) -> Finding {
    let reconcile = &config.reconcile;
    if reconcile.properties.is_empty() {
        return Finding::ok(
            PROPERTIES,
            "not mirrored; KINSYNC_PROPERTIES names the properties of users to mirror",
        );
    }
    let Some(Ok(client)) = settings(config).map(Client::new) else {
        return Finding::needs(PROPERTIES, "kinde.credentials");
    };
    match read(&client, &reconcile.properties).await {
        Ok(()) => {
            let (keys, every) =
                (reconcile.properties.join(", "), reconcile.properties_every.as_secs() / 3600);
            let found = format!(
                "{keys}: one request per {} users, at most every {every} h, besides those of the scan",
                reconcile.page_size
            );
            Finding::ok(PROPERTIES, found)
        }
        Err(Error::MissingScope { scope }) => lacks(&scope),
        Err(Error::Unauthorized { scope, .. }) => lacks(scope),
        Err(error) => {
            let found = format!("the properties of users cannot be read: {}", chain(&error));
            Finding::warning(
                PROPERTIES,
                found,
                "try again in a moment; status.kinde.com shows outages of Kinde",
            )
        }
    }
}

fn lacks(scope: &str) -> Finding {
    let found =
        format!("the machine-to-machine application lacks {scope}, so scans do not compare properties");
    let fix =
        format!("grant {scope} in Kinde under Settings > APIs > Kinde Management API > the application");
    Finding::warning(PROPERTIES, found, fix)
}

/// Reads the first page of what a comparison reads.
async fn read(client: &Client, keys: &[String]) -> Result<(), Error> {
    if keys.iter().any(|key| key == ALL_PROPERTIES) {
        client.user_property_definitions().next().await?;
    }
    client.users_with_properties().next().await?;
    Ok(())
}
