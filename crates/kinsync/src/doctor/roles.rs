//! Whether scans can compare roles: the scopes, and the requests that each scan needs.

use kinde::management::{Client, Error};
use kinsync_tower::problem::chain;

use super::Finding;
use crate::{app::management::settings, config::Config};

pub(super) const ROLES: &str = "kinde.roles";

/// Reads what a scan reads: all organizations, and the first members of one of them with the roles and permissions of one.
pub(super) async fn examine(config: &Config) -> Finding {
    if !config.reconcile.roles {
        let found = "scans do not compare roles, which are known from webhooks only; KINSYNC_RECONCILE_ROLES=true compares them";
        return Finding::ok(ROLES, found);
    }
    let Some(Ok(client)) = settings(config).map(Client::new) else {
        return Finding::needs(ROLES, "kinde.credentials");
    };
    match read(&client).await {
        Ok(organizations) => {
            let pages = organizations.div_ceil(config.reconcile.page_size as usize).max(1);
            let least = organizations + pages;
            Finding::ok(ROLES, format!("{organizations} organizations: at least {least} requests per scan"))
        }
        Err(Error::MissingScope { scope }) => lacks(&scope),
        Err(Error::Unauthorized { scope, .. }) => lacks(scope),
        Err(error) => {
            let found = format!("the roles of members cannot be read: {}", chain(&error));
            Finding::warning(ROLES, found, "try again in a moment; status.kinde.com shows outages of Kinde")
        }
    }
}

fn lacks(scope: &str) -> Finding {
    let found =
        format!("the machine-to-machine application lacks {scope}, so scans do not compare all roles");
    let fix =
        format!("grant {scope} in Kinde under Settings > APIs > Kinde Management API > the application");
    Finding::warning(ROLES, found, fix)
}

/// Returns the number of organizations.
async fn read(client: &Client) -> Result<usize, Error> {
    let organizations = client.organizations().all().await?.value;
    let Some(organization) = organizations.first() else { return Ok(0) };
    let members = client.organization_users(&organization.code)?.next().await?;
    let member = members.and_then(|page| page.items.into_iter().find_map(|member| member.id));
    if let Some(member) = member {
        client.user_roles(&organization.code, &member)?.all().await?;
        client.user_permissions(&organization.code, &member)?.all().await?;
    }
    Ok(organizations.len())
}
