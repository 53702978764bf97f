//! A tenant with a million generated users, and faults of the user list.

use std::collections::HashSet;
use std::time::Duration;

use kinde_emulator::config::{Generated, Limits, Pagination, Unknowns};
use kinde_emulator::{
    Config, Emulator, Fault, FaultKind, NewUser, Profile, RoleEdit, TokenSpec, User, UserEdit,
};
use serde_json::{Value, json};

use crate::receiver::{client, get};

struct Api {
    emulator: Emulator,
    token: String,
}

impl Api {
    async fn start(config: Config) -> Self {
        let emulator = Emulator::start(config).await.unwrap();
        let token = emulator.m2m_token(&TokenSpec::default());
        Self { emulator, token }
    }

    async fn of(users: u64) -> Self {
        Self::start(Config { generated: Generated { users, ..Generated::default() }, ..Config::default() })
            .await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        get(&format!("{}/api/v1/{path}", self.emulator.issuer()), Some(&self.token)).await
    }

    async fn page(&self, size: usize, token: Option<&str>) -> (Vec<String>, Option<String>) {
        let token = token.map(|token| format!("&next_token={token}")).unwrap_or_default();
        let (status, page) = self.get(&format!("users?page_size={size}{token}")).await;
        assert_eq!(status, 200, "{page}");
        let id = |user: &Value| user["id"].as_str().unwrap().to_owned();
        let ids = page["users"].as_array().unwrap().iter().map(id).collect();
        (ids, page["next_token"].as_str().map(str::to_owned))
    }

    /// Ids of the members of an organization with the keys of their roles, in pages of seven.
    async fn members(&self, code: &str) -> Vec<(String, Vec<String>)> {
        let (mut members, mut next) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("organizations/{code}/users?page_size=7{next}")).await.1;
            let listed = page["organization_users"].as_array().unwrap().iter();
            let roles = |member: &Value| serde_json::from_value(member["roles"].clone()).unwrap();
            members.extend(listed.map(|member| (member["id"].as_str().unwrap().to_owned(), roles(member))));
            let Some(token) = page["next_token"].as_str() else { return members };
            next = format!("&next_token={token}");
        }
    }

    async fn all(&self, size: usize) -> Vec<String> {
        let (mut ids, mut next) = self.page(size, None).await;
        while let Some(token) = next {
            let page = self.page(size, Some(&token)).await;
            ids.extend(page.0);
            next = page.1;
        }
        ids
    }
}

#[tokio::test]
async fn generated_users_are_listed_with_created_ones() {
    let api = Api::of(1_200).await;
    let created = api.emulator.import_user(NewUser::named("ada@example.com", "Ada", "L")).unwrap();
    let users = api.emulator.users();
    let edit = UserEdit { first_name: Some("Changed".to_owned()), ..UserEdit::default() };
    api.emulator.update_user(&users[7].id, edit).unwrap();
    api.emulator.delete_user(&users[8].id, Profile::Remove).unwrap();
    api.emulator.delete_user(&users[9].id, Profile::Keep).unwrap();
    api.emulator.sign_in(&users.iter().find(|user| !user.is_suspended).unwrap().id).unwrap();

    let ids = api.all(500).await;
    let unique: HashSet<&String> = ids.iter().collect();
    assert_eq!((ids.len(), unique.len(), api.emulator.user_count()), (1_199, 1_199, 1_199));
    assert_eq!((ids.last(), &ids[7]), (Some(&created.id), &users[7].id));
    assert!(!unique.contains(&users[8].id) && !unique.contains(&users[9].id));
    let single = api.get(&format!("user?id={}", users[7].id)).await.1;
    assert_eq!(
        (&single["first_name"], &single["preferred_email"]),
        (&json!("Changed"), &json!(users[7].email))
    );
    assert_eq!(api.get(&format!("user?id={}", users[8].id)).await.0, 400);

    let by_email = users.iter().find_map(|user| user.email.clone()).unwrap();
    let found = api.get(&format!("users?email={by_email},ada@example.com")).await.1;
    assert_eq!(found["users"].as_array().unwrap().len(), 2);
    let found = api.get(&format!("users?user_id={},{}", users[3].id, created.id)).await.1;
    assert_eq!(found["users"][1]["id"], created.id);
    assert!(api.emulator.create_user(NewUser::named(&by_email, "A", "B")).is_err(), "the email is in use");

    api.emulator.set_generated(|generated| generated.users = 5);
    assert_eq!(api.all(2).await.len(), 6);
    api.emulator.reset();
    assert_eq!(api.emulator.user_count(), 1_200);
}

#[tokio::test]
async fn generated_organizations_have_the_members_and_roles_of_their_settings() {
    let generated = Generated { organizations: 7, memberships_per_user: 3, roles: 4, users: 100, seed: 9 };
    let api = Api::start(Config { generated, ..Config::default() }).await;
    let users = api.emulator.users();
    let organizations = api.emulator.organizations();
    assert_eq!((organizations.len(), api.emulator.roles().len()), (7, 4));
    let removed = users[20].organizations[1].code.clone();
    api.emulator.remove_from_organization(&users[20].id, &removed).unwrap();
    let added = organizations.iter().find(|one| users[21].membership(&one.code).is_none()).unwrap();
    api.emulator.add_to_organization(&users[21].id, &added.code, &["role-1".to_owned()], &[]).unwrap();

    let users = api.emulator.users();
    let (mut members, mut with_roles) = (0, 0);
    for organization in &organizations {
        let listed = api.members(&organization.code).await;
        let member = |user: &User| {
            let member = user.membership(&organization.code)?;
            let keys = member.roles.iter().map(|grant| grant.key.clone()).collect::<Vec<_>>();
            Some((user.id.clone(), keys))
        };
        assert_eq!(listed, users.iter().filter_map(member).collect::<Vec<_>>(), "{}", organization.code);
        members += listed.len();
        with_roles += listed.iter().filter(|(_, roles)| !roles.is_empty()).count();
    }
    assert_eq!(members, 300);
    assert!((150..300).contains(&with_roles), "{with_roles}");
    let permissions = api.get(&format!("roles/{}/permissions", api.emulator.roles()[3].id)).await.1;
    assert_eq!(permissions["permissions"].as_array().unwrap().len(), 5);

    // Deletions and a renamed role are visible at generated users too.
    let role = api.emulator.roles().remove(0).id;
    api.emulator.update_role(&role, RoleEdit::keyed("renamed")).unwrap();
    api.emulator.delete_role(&api.emulator.roles()[1].id).unwrap();
    api.emulator.delete_organization(&organizations[3].code).unwrap();
    let users = api.emulator.users();
    let members = || users.iter().flat_map(|user| &user.organizations);
    let keys: HashSet<&str> =
        members().flat_map(|member| &member.roles).map(|grant| grant.key.as_str()).collect();
    assert_eq!(keys, HashSet::from(["renamed", "role-2", "role-3"]));
    assert!(members().all(|member| member.code != organizations[3].code));

    // The same settings generate the same objects again.
    api.emulator.set_generated(|generated| (generated.organizations, generated.roles) = (2, 0));
    assert_eq!((api.emulator.organizations().len(), api.emulator.roles().len()), (2, 0));
    let user = api.emulator.user(&users[21].id).unwrap();
    assert!(user.organizations.iter().all(|member| member.roles.is_empty()), "a changed user");
    api.emulator.set_generated(|settings| *settings = generated);
    assert_eq!(api.emulator.organizations()[1..], organizations[1..]);
}

#[tokio::test]
async fn a_million_users_are_available_at_the_start() {
    let unknowns = Unknowns { pagination: Pagination::Offset, ..Unknowns::default() };
    let generated = Generated { users: 1_000_000, ..Generated::default() };
    let api = Api::start(Config { unknowns, generated, ..Config::default() }).await;
    assert_eq!(api.emulator.user_count(), 1_000_000);
    let (ids, next) = api.page(500, Some("c2tpcDo5OTk2MDA6MA")).await;
    assert_eq!((ids.len(), next), (400, None), "the last 400, after skip:999600:0");
    assert!(api.emulator.user(&ids[399]).is_some());
}

#[tokio::test]
async fn pages_by_offset_skip_users_when_the_list_changes_and_cursors_do_not() {
    for (pagination, hidden, repeated) in [(Pagination::Offset, 1, 1), (Pagination::Cursor, 0, 0)] {
        let unknowns = Unknowns { pagination, ..Unknowns::default() };
        let api = Api::start(Config { unknowns, ..Config::default() }).await;
        for _ in 0..30 {
            api.emulator.import_user(NewUser::default()).unwrap();
        }
        let before: Vec<String> = api.emulator.users().into_iter().map(|user| user.id).collect();
        let (first, next) = api.page(10, None).await;
        api.emulator.delete_user(&first[0], Profile::Remove).unwrap();
        let (second, _) = api.page(10, next.as_deref()).await;
        let seen: HashSet<&String> = first.iter().chain(&second).collect();
        assert_eq!(before[..20].iter().filter(|id| !seen.contains(id)).count(), hidden, "{pagination:?}");

        // An inserted user moves the last user of the first page to the second page.
        api.emulator.set_generated(|generated| generated.users = 0);
        let (first, next) = api.page(10, None).await;
        api.emulator.set_generated(|generated| generated.users = 1);
        let (second, _) = api.page(10, next.as_deref()).await;
        assert_eq!(second.iter().filter(|id| first.contains(id)).count(), repeated, "{pagination:?}");
    }
}

#[tokio::test]
async fn a_stale_replica_shows_the_earlier_state() {
    let api = Api::of(3).await;
    let created = api.emulator.create_user(NewUser::named("ada@example.com", "Ada", "L")).unwrap();
    let users = api.emulator.users();
    api.emulator.delete_user(&users[0].id, Profile::Remove).unwrap();
    let lag = Duration::from_hours(1);
    api.emulator.set_fault(Fault::always(FaultKind::StaleReplica { lag }));
    let then: Vec<&String> = users[..3].iter().map(|user| &user.id).collect();
    assert_eq!(api.all(2).await.iter().collect::<Vec<_>>(), then);
    assert_eq!(api.get(&format!("user?id={}", users[0].id)).await.0, 200);
    assert_eq!(api.get(&format!("user?id={}", created.id)).await.0, 400);
    api.emulator.clear_faults();
    assert_eq!(api.all(2).await.len(), 3);
}

#[tokio::test]
async fn endless_tokens_and_empty_pages_occur_as_configured() {
    let api = Api::of(25).await;
    api.emulator.set_fault(Fault::always(FaultKind::EndlessTokens));
    let (mut next, mut tokens, mut seen) = (None, HashSet::new(), Vec::new());
    for _ in 0..10 {
        let (ids, token) = api.page(10, next.as_deref()).await;
        seen.extend(ids);
        assert!(tokens.insert(token.clone().expect("a token")), "each token is new");
        next = token;
    }
    assert_eq!((seen.len(), seen.iter().collect::<HashSet<_>>().len()), (3 * 25 + 10, 25));
    api.emulator.clear_faults();
    api.emulator.set_fault(Fault::times(FaultKind::EmptyPage, 1));
    let (ids, next) = api.page(10, None).await;
    assert!(ids.is_empty() && next.is_some());
    assert_eq!(api.page(10, next.as_deref()).await.0.len(), 10, "no user is skipped");
}

#[tokio::test]
async fn one_or_all_users_are_reported_as_not_found() {
    let api = Api::of(2).await;
    let ids: Vec<_> = api.emulator.users().into_iter().map(|user| user.id).collect();
    let (first, second) = (format!("user?id={}", ids[0]), format!("user?id={}", ids[1]));
    api.emulator.set_fault(Fault::always(FaultKind::UserNotFound { status: 404, id: None }));
    let (status, refusal) = api.get(&first).await;
    assert_eq!((status, &refusal["errors"][0]["code"]), (404, &json!("USER_NOT_FOUND")));
    assert_eq!(api.get(&second).await.0, 404);
    assert_eq!(api.all(10).await.len(), 2, "the list is not affected");
    api.emulator.clear_faults();
    assert_eq!(api.get(&first).await.0, 200);
    api.emulator.set_fault(Fault::always(FaultKind::UserNotFound { status: 404, id: Some(ids[0].clone()) }));
    assert_eq!((api.get(&first).await.0, api.get(&second).await.0), (404, 200));
}

#[tokio::test]
async fn the_limits_apply_to_the_management_api_only() {
    let window = Duration::from_mins(5);
    let limits = Limits { requests: 3, window, concurrency: 0 };
    let api = Api::start(Config { limits, ..Config::default() }).await;
    for wanted in [200, 200, 200, 429] {
        assert_eq!(api.get("users").await.0, wanted);
    }
    let url = format!("{}/api/v1/users", api.emulator.issuer());
    let response = client().get(&url).bearer_auth(&api.token).send().await.unwrap();
    let reset: u64 = response.headers()["ratelimit-reset"].to_str().unwrap().parse().unwrap();
    assert!((290..=300).contains(&reset), "{reset}");
    assert!(get(&format!("{}/.well-known/jwks.json", api.emulator.issuer()), None).await.0 == 200);

    api.emulator.set_limits(Limits { concurrency: 2, ..Limits::default() });
    let (held, before) = (api.emulator.hold("users", 2), api.emulator.requests("users"));
    let release = async {
        while api.emulator.requests("users") < before + 6 {
            tokio::task::yield_now().await;
        }
        drop(held);
    };
    let requests = futures_util::future::join_all((0..6).map(|_| api.get("users")));
    let (statuses, ()) = tokio::join!(requests, release);
    let throttled = statuses.iter().filter(|(status, _)| *status == 429).count();
    assert_eq!(throttled, 4, "two concurrent requests");
    assert_eq!(api.get("users").await.0, 200, "the concurrent requests have ended");
}

#[tokio::test]
#[ignore = "a measurement: cargo test --release -p kinde-emulator -- --ignored --nocapture scan"]
async fn the_speed_of_a_scan() {
    let api = Api::of(1_000_000).await;
    let client = client();
    let (start, mut next, mut bytes) = (tokio::time::Instant::now(), String::new(), 0);
    loop {
        let url = format!("{}/api/v1/users?page_size=500&next_token={next}", api.emulator.issuer());
        let body = client.get(url).bearer_auth(&api.token).send().await.unwrap().bytes().await.unwrap();
        bytes += body.len();
        let Some(at) = body.windows(14).rposition(|part| part == b"\"next_token\":\"") else { break };
        next = String::from_utf8(body[at + 14..body.len() - 2].to_vec()).unwrap();
    }
    let rate = 1_000_000.0 / start.elapsed().as_secs_f64();
    println!("{rate:.0} users/s, {} MiB", bytes / (1 << 20));
}
