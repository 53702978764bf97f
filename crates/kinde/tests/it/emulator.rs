//! The clients against the emulator. Its responses follow Kinde's `OpenAPI` documents.

use kinde::account::ProfileClient;
use kinde::management::{Client, Config, NewWebhook, WebhookUpdate};
use kinde::{Patch, account, discovery, event};
use kinde_emulator::{Emulator, Fault, FaultKind, NewUser, RoleEdit, TokenSpec};

async fn tenant() -> (Emulator, Client) {
    let emulator = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
    let settings = emulator.config();
    let domain = emulator.issuer().parse().unwrap();
    let mut config = Config::new(domain, settings.client_id.clone(), settings.client_secret.clone().into());
    config.page_size = 100;
    let client = Client::new(config).unwrap();
    (emulator, client)
}

#[tokio::test]
async fn every_user_is_listed_once_and_can_be_read() {
    let (emulator, client) = tenant().await;
    for number in 0..250 {
        emulator.import_user(NewUser::named(&format!("user{number}@example.com"), "User", "N")).unwrap();
    }
    let (mut pages, mut users, mut read) = (client.users(), Vec::new(), 0);
    while let Some(page) = pages.next().await.unwrap() {
        users.extend(page.items);
        read += 1;
    }
    let unique: std::collections::BTreeSet<&str> = users.iter().map(|user| user.id.as_str()).collect();
    assert_eq!((read, users.len(), unique.len(), client.tokens_fetched()), (3, 250, 250, 1));
    assert_eq!(users[0].email, Patch::Value("user0@example.com".to_owned()));
    let single = client.user(&users[0].id).await.unwrap().value.unwrap();
    assert_eq!((&single.email, &single.identities), (&users[0].email, &users[0].identities));
    assert!(single.identities.value().is_some_and(|identities| identities[0].identity_type == "email"));
    assert_eq!(client.user("kp_nobody").await.unwrap().value, None);
}

#[tokio::test]
async fn webhooks_and_event_types_are_written_and_read() {
    let (_emulator, client) = tenant().await;
    let types = client.event_types().await.unwrap().value;
    assert!(types.iter().any(|kind| kind.code == "user.created"));
    let new = NewWebhook {
        endpoint: "http://127.0.0.1:9/hook".parse().unwrap(),
        event_types: vec!["user.created".to_owned()],
        name: "one".to_owned(),
        description: None,
    };
    let id = client.create_webhook(&new).await.unwrap().value;
    let edit = WebhookUpdate { name: Some("two".to_owned()), ..WebhookUpdate::default() };
    client.update_webhook(&id, &edit).await.unwrap();
    let webhooks = client.webhooks().await.unwrap().value;
    let webhook = webhooks.iter().find(|webhook| webhook.id == id).unwrap();
    assert_eq!(
        (webhook.name.as_deref(), webhook.endpoint.as_deref()),
        (Some("two"), Some(new.endpoint.as_str()))
    );
    assert!(webhook.created_on.is_some());
    assert_eq!(client.event("event_nothing").await.unwrap().value, None);
}

#[tokio::test]
async fn the_discovery_document_contains_the_issuer_and_the_time() {
    let custom_domains = vec!["localhost".to_owned()];
    let settings = kinde_emulator::Config { custom_domains, ..kinde_emulator::Config::default() };
    let emulator = Emulator::start(settings).await.unwrap();
    for issuer in [emulator.issuer().to_owned(), emulator.custom_issuers().remove(0)] {
        let config = discovery::Config::new(issuer.parse().unwrap());
        let answer = discovery::discover(config).await.unwrap();
        assert_eq!(answer.value.issuer, issuer);
        assert!(answer.value.jwks_uri.is_some_and(|uri| uri.starts_with(&issuer)));
        assert!(answer.timing.clock_skew().is_some_and(|skew| skew.abs().as_secs() <= 2));
    }
    emulator.set_fault(Fault::always(FaultKind::WrongDate { ahead: 3600 }));
    let config = discovery::Config::new(emulator.issuer().parse().unwrap());
    let skew = discovery::discover(config.clone()).await.unwrap().timing.clock_skew().unwrap();
    assert!((-3602..=-3598).contains(&skew.as_secs()), "{skew}");
    emulator.clear_faults();
    emulator.set_fault(Fault::always(FaultKind::Garbage));
    assert!(matches!(discovery::discover(config.clone()).await, Err(discovery::Error::NotJson)));
    emulator.shutdown().await;
    assert!(matches!(discovery::discover(config).await, Err(discovery::Error::Unreachable(_))));
}

#[tokio::test]
async fn without_a_date_a_read_is_as_old_as_a_wrong_clock_could_make_it() {
    let (emulator, client) = tenant().await;
    let timing = async || client.users().next().await.unwrap().unwrap().timing;
    let five_minutes = jiff::SignedDuration::from_mins(5);
    let dated = timing().await;
    assert!(dated.server_date.is_some() && dated.sent_at.duration_since(dated.as_of) < five_minutes);
    assert!(dated.as_of < dated.not_after && dated.not_after.duration_since(dated.sent_at) < five_minutes);
    emulator.set_fault(Fault::always(FaultKind::MissingDate));
    let undated = timing().await;
    assert_eq!(undated.server_date, None);
    assert!(undated.sent_at.duration_since(undated.as_of) >= five_minutes, "{undated:?}");
    assert!(undated.not_after.duration_since(undated.sent_at) >= five_minutes, "{undated:?}");
}

#[tokio::test]
async fn unknown_event_types_of_a_tenant_are_reported() {
    let event_types = vec!["user.created".to_owned(), "user.abducted".to_owned()];
    let settings = kinde_emulator::Config { event_types, ..kinde_emulator::Config::default() };
    let emulator = Emulator::start(settings.clone()).await.unwrap();
    let domain = emulator.issuer().parse().unwrap();
    let client = Client::new(Config::new(domain, settings.client_id, settings.client_secret.into())).unwrap();
    let types = client.event_types().await.unwrap().value;
    let known: Vec<_> = types.iter().map(|kind| (kind.code.as_str(), event::is_known(&kind.code))).collect();
    assert_eq!(known, [("user.created", true), ("user.abducted", false)]);
    assert!(kinde_emulator::EVENT_TYPES.iter().all(|(code, _)| event::is_known(code)));
}

#[tokio::test]
async fn the_profile_of_a_machine_is_rejected() {
    let (emulator, _) = tenant().await;
    let profiles = ProfileClient::new(account::Config::new(emulator.issuer().parse().unwrap())).unwrap();
    let machine = emulator.m2m_token(&TokenSpec::default());
    assert!(matches!(profiles.user_profile(&machine).await, Err(account::Error::TokenRejected)));
}

#[tokio::test]
async fn organizations_members_roles_permissions_and_properties_are_read() {
    let (emulator, client) = tenant().await;
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let role = emulator.create_role(RoleEdit::keyed("admin")).unwrap();
    let edit = emulator.create_permission(RoleEdit::keyed("edit")).unwrap();
    emulator.set_role_permissions(&role.id, &[edit.id], &[]).unwrap();
    for number in 0..150 {
        let user = emulator.import_user(NewUser::named(&format!("u{number}@example.com"), "U", "N")).unwrap();
        emulator.add_to_organization(&user.id, "org_1", &keys(&["admin"]), &keys(&["read"])).unwrap();
        emulator.set_properties(&user.id, [("n".to_owned(), Some(number.to_string()))]).unwrap();
    }
    let organizations = client.organizations().all().await.unwrap().value;
    assert_eq!(
        organizations.iter().map(|one| one.code.as_str()).collect::<Vec<_>>(),
        [&emulator.config().org_code, "org_1"]
    );
    assert!(client.organization("org_1").await.unwrap().value.unwrap().created_on.is_some());
    assert_eq!(client.organization("org_9").await.unwrap().value, None);
    let members = client.organization_users("org_1").unwrap().all().await.unwrap().value;
    assert_eq!((members.len(), &members[0].roles), (150, &Patch::Value(keys(&["admin"]))));
    assert!(members[0].joined_on.is_some() && members[0].is_suspended == Patch::Value(false));
    let user = members[0].id.as_deref().unwrap();
    let roles = client.user_roles("org_1", user).unwrap().all().await.unwrap().value;
    assert_eq!((roles.len(), &roles[0].id), (1, &role.id));
    let permissions = client.user_permissions("org_1", user).unwrap().all().await.unwrap().value;
    assert_eq!(permissions[0].permission.key, Patch::Value("read".to_owned()));
    let of_role = client.role_permissions(&role.id).unwrap().all().await.unwrap().value;
    assert_eq!(of_role[0].key, Patch::Value("edit".to_owned()));
    assert_eq!(
        client.roles().all().await.unwrap().value,
        [client.role(&role.id).await.unwrap().value.unwrap()]
    );
    assert_eq!(client.role("unknown").await.unwrap().value, None);
    assert_eq!(client.permissions().all().await.unwrap().value.len(), 2);
    let with_role = client.role_users(&role.id).unwrap().all().await.unwrap().value;
    assert_eq!((with_role.len(), &with_role[0].org_codes), (150, &keys(&["org_1"])));
    let searched = client.users_with_properties().all().await.unwrap().value;
    assert_eq!(searched.len(), 150);
    assert_eq!(searched[149].properties.value().unwrap()["n"], Patch::Value("149".to_owned()));
    let properties = client.user_properties(user).unwrap().all().await.unwrap().value;
    assert_eq!(properties[0].value, Patch::Value("0".to_owned()));
}
