//! Required roles and permissions on the real binary, as a tenant changes: with events, and with events that Kinde does not send.

use std::time::Duration;

use bson::doc;
use kinde_emulator::{Emulator, Fault, FaultKind, OrganizationEdit, Role, RoleEdit, TokenSpec};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::deployment::{DEADLINE, Deployment, named};

const ORG: &str = "org_acme";

struct Tenant {
    deployment: Deployment,
    user: String,
    token: String,
    role: Role,
}

impl Tenant {
    /// A member of an organization with a role, which gives a permission.
    async fn start() -> Self {
        let deployment = Deployment::comparing_roles().await;
        let kinde = &deployment.kinde;
        let name = |name: &str| Some(name.to_owned());
        let edit = OrganizationEdit { code: name(ORG), name: name("Acme"), ..OrganizationEdit::default() };
        kinde.create_organization(edit).unwrap();
        let role = kinde.create_role(RoleEdit::keyed("admin")).unwrap();
        let user = kinde.create_user(named(1)).unwrap().id;
        join(kinde, &user, &["admin"]);
        let spec = TokenSpec { org: name(ORG), ..TokenSpec::default() };
        let token = kinde.access_token(&user, &spec).unwrap();
        Self { deployment, user, token, role }
    }

    fn kinde(&self) -> &Emulator {
        &self.deployment.kinde
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let app = &self.deployment.apps[0];
        let answer = app.client().get(app.url(path)).bearer_auth(&self.token).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap_or_default())
    }

    /// Waits until the requirement has this outcome: empty, or the reason of the refusal.
    async fn until(&self, query: &str, reason: &str) {
        let deadline = Instant::now() + DEADLINE;
        while let Some(other) = self.other(query, reason).await {
            assert!(Instant::now() < deadline, "{query} is not {reason:?}: {other}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The same with scans. Two scans of one second have no order, so one of them may change nothing.
    async fn until_scanned(&self, query: &str, reason: &str) {
        let deadline = Instant::now() + DEADLINE;
        while let Some(other) = self.other(query, reason).await {
            assert!(Instant::now() < deadline, "{query} is not {reason:?}: {other}");
            self.deployment.admin(Method::POST, "/api/admin/reconcile").await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn other(&self, query: &str, reason: &str) -> Option<String> {
        let (status, problem) = self.get(&format!("/auth/verify?{query}")).await;
        let is_so = match reason {
            "" => status == StatusCode::OK,
            reason => status == StatusCode::FORBIDDEN && problem["reason"] == reason,
        };
        (!is_so).then(|| format!("{status} {problem}"))
    }
}

fn join(kinde: &Emulator, user: &str, roles: &[&str]) {
    let roles: Vec<String> = roles.iter().map(|key| (*key).to_owned()).collect();
    kinde.add_to_organization(user, ORG, &roles, &[]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_role_follows_each_change_of_the_tenant() {
    let tenant = Tenant::start().await;
    tenant.until("role=admin", "").await;
    tenant.until("role=owner", "missing_role").await;
    // The key of a role follows, although Kinde sends nothing about its members.
    tenant.kinde().update_role(&tenant.role.id, RoleEdit::keyed("owner")).unwrap();
    tenant.until("role=owner", "").await;
    tenant.until("role=admin", "missing_role").await;
    tenant.kinde().remove_from_organization(&tenant.user, ORG).unwrap();
    tenant.until("role=owner", "not_a_member").await;
    join(tenant.kinde(), &tenant.user, &["owner"]);
    tenant.until("role=owner", "").await;
    tenant.kinde().delete_role(&tenant.role.id).unwrap();
    tenant.until("role=owner", "missing_role").await;
    tenant.kinde().delete_organization(ORG).unwrap();
    tenant.until("role=owner", "not_a_member").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_finds_suspensions_permissions_and_lost_roles_that_no_event_announces() {
    let tenant = Tenant::start().await;
    tenant.until("role=admin", "").await;
    let permission = tenant.kinde().create_permission(RoleEdit::keyed("delete:things")).unwrap();
    tenant.kinde().set_role_permissions(&tenant.role.id, std::slice::from_ref(&permission.id), &[]).unwrap();
    tenant.until_scanned("permission=delete:things", "").await;
    tenant.kinde().suspend_in_organization(&tenant.user, ORG, true).unwrap();
    tenant.until_scanned("role=admin", "suspended_in_organization").await;
    tenant.kinde().suspend_in_organization(&tenant.user, ORG, false).unwrap();
    tenant.until_scanned("role=admin", "").await;
    tenant.kinde().set_fault(Fault::always(FaultKind::Silent));
    join(tenant.kinde(), &tenant.user, &[]);
    tenant.until_scanned("role=admin", "missing_role").await;
    tenant.until("permission=delete:things", "missing_permission").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_routes_show_the_organizations_of_the_document() {
    let mut tenant = Tenant::start().await;
    tenant.until("role=admin", "").await;
    let filter =
        doc! { "organizations": { "$elemMatch": { "code": ORG, "roles": "admin", "name": "Acme" } } };
    tenant.deployment.until_stored(&tenant.user, filter).await;
    for path in ["/api/me", "/api/profile"] {
        // The roles of the organization may still be spread to the document, and a request may show a copy of the second before.
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (stored, (status, body)) =
                (organizations_of_the_document(&tenant).await, tenant.get(path).await);
            assert_eq!(status, StatusCode::OK, "{body}");
            let shown = body["organizations"].as_array().unwrap();
            let acme = shown.iter().find(|one| one["code"] == ORG).unwrap();
            assert!(acme.get("isSuspended").is_none(), "no scan has read it: {path} {acme}");
            let shown = shown.iter().map(|one| json!({"code": one["code"], "name": one["name"], "roles": one["roles"], "permissions": one["permissions"]}));
            let shown: Vec<Value> = shown.collect();
            if shown == stored {
                break;
            }
            assert!(Instant::now() < deadline, "{path}: {shown:?} instead of {stored:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    tenant.deployment.apps[0].drained(DEADLINE).await.unwrap();
}

async fn organizations_of_the_document(tenant: &Tenant) -> Vec<Value> {
    let id = doc! { "kindeId": &tenant.user };
    let document = tenant.deployment.users.find_one(id).await.unwrap().unwrap();
    let shown = |one: &bson::Bson| {
        let one = one.as_document().unwrap();
        let text = |key: &bson::Bson| key.as_str().map(str::to_owned);
        let keys =
            |name: &str| one.get_array(name).ok().map(|list| list.iter().map(text).collect::<Vec<_>>());
        json!({"code": one.get_str("code").unwrap(), "name": one.get_str("name").ok(), "roles": keys("roles"), "permissions": keys("permissions")})
    };
    document.get_array("organizations").unwrap().iter().map(shown).collect()
}
