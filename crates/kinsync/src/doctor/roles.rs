//! Whether scans can compare roles: the scopes, and the requests that each scan needs.

use kinde::management::{Client, Error};
use kinsync_engine::internal::reconcile::MAX_ORGANIZATIONS;
use kinsync_tower::problem::chain;

use super::Finding;
use crate::{app::management::settings, config::Config, plural::counted};

pub(super) const ROLES: &str = "kinde.roles";

pub(super) async fn examine(config: &Config) -> Finding {
    if !config.reconcile.roles {
        let found = "scans do not compare roles, which are known from webhooks only; KINSYNC_RECONCILE_ROLES=true compares them";
        return Finding::ok(ROLES, found);
    }
    let Some(Ok(client)) = settings(config).map(Client::new) else {
        return Finding::needs(ROLES, "kinde.credentials");
    };
    match read(&client).await {
        Ok(Found { organizations, roles }) => {
            let pages = |items: usize| items.div_ceil(config.reconcile.page_size as usize).max(1);
            // A list that is not empty is read twice. Each organization and role has a list of members or permissions.
            let lists = |items: usize| pages(items) * if items > 0 { 2 } else { 1 };
            let least = lists(organizations) + lists(roles) + 1 + organizations + roles;
            let most = 2 * config.reconcile.permission_reads;
            let found = format!(
                "{} and {}: at least {least} requests per scan, and up to {most} for members with unknown permissions \
                 (KINSYNC_PERMISSION_READS)",
                counted(organizations, "organization", "organizations"),
                counted(roles, "role", "roles")
            );
            if organizations > MAX_ORGANIZATIONS {
                let limit =
                    format!("scans do not compare the roles of more than {MAX_ORGANIZATIONS} organizations");
                let fix = "set KINSYNC_RECONCILE_ROLES=false: roles are then known from webhooks only";
                return Finding::warning(ROLES, format!("{found}, but {limit}"), fix);
            }
            Finding::ok(ROLES, found)
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

/// What each scan lists.
struct Found {
    organizations: usize,
    roles: usize,
}

/// Reads what a scan reads, of one organization and one role.
async fn read(client: &Client) -> Result<Found, Error> {
    let organizations = client.organizations().all().await?.value;
    let roles = client.roles().all().await?.value;
    client.permissions().next().await?;
    if let Some(role) = roles.first() {
        client.role_permissions(&role.id)?.next().await?;
    }
    let found = Found { organizations: organizations.len(), roles: roles.len() };
    let Some(organization) = organizations.first() else { return Ok(found) };
    let members = client.organization_users(&organization.code)?.next().await?;
    let member = members.and_then(|page| page.items.into_iter().find_map(|member| member.id));
    if let Some(member) = member {
        client.user_roles(&organization.code, &member)?.all().await?;
        client.user_permissions(&organization.code, &member)?.all().await?;
    }
    Ok(found)
}
