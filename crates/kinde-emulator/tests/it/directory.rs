//! Organizations, roles, permissions and properties: which events are sent, and what the API lists.

use kinde_emulator::config::{Pagination, Unknowns, UserPermissions};
use kinde_emulator::{Config, Emulator, Fault, FaultKind, NewUser, OrganizationEdit, RoleEdit, TokenSpec};
use serde_json::{Value, json};

use crate::receiver::{Arrival, DEADLINE, get, start};

async fn read(emulator: &Emulator, path: &str) -> (u16, Value) {
    let token = emulator.m2m_token(&TokenSpec::default());
    get(&format!("{}/api/v1/{path}", emulator.issuer()), Some(&token)).await
}

fn texts<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap()).collect()
}

fn keyed(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[tokio::test]
async fn a_change_of_a_role_or_an_organization_sends_nothing_about_the_members() {
    let (emulator, receiver) = start(Config::default()).await;
    let ada = emulator.import_user(NewUser::named("ada@example.com", "Ada", "L")).unwrap();
    let organization = OrganizationEdit { code: Some("org_1".to_owned()), ..OrganizationEdit::default() };
    emulator.create_organization(organization).unwrap();
    let role = emulator.create_role(RoleEdit::keyed("admin")).unwrap();
    let permission = emulator.create_permission(RoleEdit::keyed("edit")).unwrap();
    emulator.add_to_organization(&ada.id, "org_1", &keyed(&["admin"]), &[]).unwrap();
    emulator.set_role_permissions(&role.id, std::slice::from_ref(&permission.id), &[]).unwrap();
    emulator.suspend_in_organization(&ada.id, "org_1", true).unwrap();
    emulator.set_properties(&ada.id, [("tier".to_owned(), Some("gold".to_owned()))]).unwrap();
    emulator.update_role(&role.id, RoleEdit::keyed("owner")).unwrap();
    emulator.delete_permission(&permission.id).unwrap();
    emulator.delete_role(&role.id).unwrap();
    emulator.delete_organization("org_1").unwrap();
    emulator.update_user(&ada.id, kinde_emulator::UserEdit::default()).unwrap();
    let arrivals = receiver.wait_for(9).await;
    let mut payloads: Vec<Value> = arrivals.iter().map(Arrival::payload).collect();
    payloads.sort_by_key(|payload| payload["timestamp"].to_string());
    let expect = [
        ("organization.created", json!({"organization": {"code": "org_1", "handle": null, "name": "org_1"}})),
        (
            "role.created",
            json!({"role": {"id": role.id, "key": "admin", "name": "admin", "description": null, "is_default_role": false}}),
        ),
        (
            "permission.created",
            json!({"permission": {"id": permission.id, "key": "edit", "name": "edit", "description": null}}),
        ),
        ("user.updated", Value::Null),
        (
            "role.updated",
            json!({"role": {"id": role.id, "key": "owner", "name": "admin", "description": null, "is_default_role": false}}),
        ),
        ("permission.deleted", json!({"permission": {"id": permission.id}})),
        ("role.deleted", json!({"role": {"id": role.id}})),
        ("organization.deleted", json!({"organization": {"code": "org_1"}})),
        ("user.updated", Value::Null),
    ];
    for (payload, (kind, data)) in payloads.iter().zip(&expect) {
        assert_eq!(payload["type"], *kind);
        assert!(data.is_null() || payload["data"] == *data, "{kind}: {}", payload["data"]);
    }
    let joined = &payloads[3]["data"]["user"]["organizations"][1];
    assert_eq!(
        joined,
        &json!({"code": "org_1", "permissions": null, "roles": [{"id": role.id, "key": "admin"}]})
    );
    let after = payloads[8]["data"]["user"]["organizations"].as_array().unwrap();
    assert_eq!(after.len(), 1, "the membership ended with the organization");
}

#[tokio::test]
async fn leaving_an_organization_sends_user_updated_only_if_the_setting_says_so() {
    for (sends, count) in [(true, 2), (false, 1)] {
        let unknowns = Unknowns { leaving_sends_user_updated: sends, ..Unknowns::default() };
        let (emulator, receiver) = start(Config { unknowns, ..Config::default() }).await;
        let ada = emulator.import_user(NewUser::default()).unwrap();
        emulator.add_to_organization(&ada.id, "org_1", &[], &[]).unwrap();
        emulator.remove_from_organization(&ada.id, "org_1").unwrap();
        emulator.quiesce(DEADLINE).await.unwrap();
        assert_eq!(receiver.arrivals().len(), count);
        assert!(emulator.user(&ada.id).unwrap().membership("org_1").is_none());
    }
}

#[tokio::test]
async fn the_permissions_of_a_member_are_direct_or_effective_by_a_setting() {
    for (user_permissions, expect) in
        [(UserPermissions::Direct, &["read"][..]), (UserPermissions::Effective, &["edit", "read"])]
    {
        let unknowns = Unknowns { user_permissions, ..Unknowns::default() };
        let (emulator, receiver) = start(Config { unknowns, ..Config::default() }).await;
        let role = emulator.create_role(RoleEdit::keyed("admin")).unwrap();
        let edit = emulator.create_permission(RoleEdit::keyed("edit")).unwrap();
        emulator.set_role_permissions(&role.id, std::slice::from_ref(&edit.id), &[]).unwrap();
        let ada = emulator.import_user(NewUser::default()).unwrap();
        emulator.add_to_organization(&ada.id, "org_1", &keyed(&["admin"]), &keyed(&["read"])).unwrap();
        let path = format!("organizations/org_1/users/{}/permissions?expand=roles", ada.id);
        let listed = read(&emulator, &path).await.1;
        assert_eq!(texts(&listed["permissions"], "key"), expect);
        let of_role = listed["permissions"].as_array().unwrap().iter().find(|one| one["key"] == "edit");
        assert!(of_role.is_none_or(|one| one["roles"] == json!([{"id": role.id, "key": "admin"}])));
        let event =
            receiver.wait_for(3).await.iter().map(Arrival::payload).find(|one| one["type"] == "user.updated");
        let membership = &event.unwrap()["data"]["user"]["organizations"][1];
        assert_eq!(texts(&membership["permissions"], "key"), expect);
    }
}

#[tokio::test]
async fn members_are_listed_page_by_page_with_filters_and_faults() {
    for pagination in [Pagination::Cursor, Pagination::Offset] {
        let unknowns = Unknowns { pagination, ..Unknowns::default() };
        let emulator = Emulator::start(Config { unknowns, ..Config::default() }).await.unwrap();
        for number in 0..25 {
            let user = emulator.import_user(NewUser::named(&format!("u{number}@x.org"), "U", "N")).unwrap();
            let roles = if number % 2 == 0 { keyed(&["admin", "member"]) } else { keyed(&["member"]) };
            emulator.add_to_organization(&user.id, "org_1", &roles, &[]).unwrap();
        }
        let members =
            async |query: &str| read(&emulator, &format!("organizations/org_1/users?{query}")).await.1;
        let (mut emails, mut next) = (Vec::new(), String::new());
        loop {
            let page = members(&format!("page_size=7&next_token={next}")).await;
            emails.extend(texts(&page["organization_users"], "email").into_iter().map(str::to_owned));
            let Some(token) = page["next_token"].as_str() else { break };
            next = token.to_owned();
        }
        assert_eq!(emails, (0..25).map(|number| format!("u{number}@x.org")).collect::<Vec<_>>());
        let admins = members("page_size=100&roles=admin,member").await;
        assert_eq!(admins["organization_users"].as_array().unwrap().len(), 13);
        assert_eq!(members("page_size=501").await["errors"][0]["code"], "PAGE_SIZE_LIMIT_EXCEEDED");
        emulator.set_fault(Fault::times(FaultKind::EmptyList, 1).on("members"));
        let empty = members("").await;
        assert_eq!((&empty["organization_users"], &empty["next_token"]), (&json!([]), &Value::Null));
        emulator.set_fault(Fault::times(FaultKind::RateLimit { reset: 1 }, 1).on("members"));
        assert_eq!(members("").await["errors"][0]["code"], "TOO_MANY_REQUESTS");
        assert_eq!(emulator.requests("members"), 4 + 4);
        assert_eq!(read(&emulator, "organizations/org_9/users").await.0, 400);
    }
}

#[tokio::test]
async fn a_stale_read_of_members_shows_the_earlier_state() {
    let emulator = Emulator::start(Config::default()).await.unwrap();
    let ada = emulator.import_user(NewUser::default()).unwrap();
    emulator.add_to_organization(&ada.id, "org_1", &keyed(&["admin"]), &[]).unwrap();
    let lag = std::time::Duration::from_hours(1);
    emulator.set_fault(Fault::times(FaultKind::StaleReplica { lag }, 1).on("members"));
    let stale = read(&emulator, "organizations/org_1/users").await.1;
    assert_eq!(stale["organization_users"], json!([]), "an hour ago the user did not exist");
    let now = read(&emulator, "organizations/org_1/users").await.1;
    assert_eq!(now["organization_users"][0]["roles"], json!(["admin"]));
}

#[tokio::test]
async fn the_search_continues_after_a_user() {
    let emulator = Emulator::start(Config::default()).await.unwrap();
    for number in 0..5 {
        let user = emulator.import_user(NewUser::named(&format!("u{number}@x.org"), "U", "N")).unwrap();
        emulator.set_properties(&user.id, [("n".to_owned(), Some(number.to_string()))]).unwrap();
    }
    let search =
        async |query: &str| read(&emulator, &format!("search/users?{query}")).await.1["results"].clone();
    let first = search("query=*&page_size=3&expand=properties").await;
    assert_eq!(texts(&first, "email"), ["u0@x.org", "u1@x.org", "u2@x.org"]);
    assert_eq!(first[2]["properties"], json!({"n": "2"}));
    let last = first[2]["id"].as_str().unwrap();
    let rest = search(&format!("query=*&starting_after={last}")).await;
    assert_eq!(texts(&rest, "email"), ["u3@x.org", "u4@x.org"]);
    assert!(rest[0].get("properties").is_none());
    assert_eq!(search("query=U3").await.as_array().unwrap().len(), 1);
}
