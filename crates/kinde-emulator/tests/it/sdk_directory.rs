//! Kinde's npm packages on organizations, members, roles, permissions, properties, and the claims of tokens.

use kinde_emulator::{Config, Emulator, NewUser};
use serde_json::{Value, json};

use crate::sdk::run_script;

#[tokio::test]
async fn kindes_package_manages_organizations_roles_permissions_and_properties() {
    let emulator = Emulator::start(Config::default()).await.unwrap();
    let ada = emulator.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    let request = json!({
        "issuer": emulator.issuer(),
        "clientId": emulator.config().client_id,
        "clientSecret": emulator.config().client_secret,
        "user": ada.id,
    });
    let found = run_script("directory.mjs", &request).await;
    let (code, role, permission) = (&found["orgCode"], &found["roleId"], &found["permissionId"]);
    assert_eq!(found["organization"]["name"], "Acme Ltd");
    assert_eq!(found["organization"]["external_id"], "a-1");
    let codes: Vec<&Value> =
        found["organizations"].as_array().unwrap().iter().map(|one| &one["code"]).collect();
    assert_eq!(codes, [&json!(emulator.config().org_code), code]);
    assert_eq!((&found["role"]["id"], &found["role"]["key"]), (role, &json!("owner")));
    assert_eq!(found["rolePermissions"][0]["key"], "write");
    assert_eq!(found["members"][0]["roles"], json!(["owner"]));
    assert_eq!(found["members"][0]["full_name"], "Ada Lovelace");
    assert_eq!(found["roles"], json!([{"id": role, "key": "owner", "name": "Owner"}]));
    assert_eq!(
        (&found["permissions"][0]["id"], &found["permissions"][0]["roles"][0]["id"]),
        (permission, role)
    );
    assert_eq!(found["withRole"], json!([{"id": ada.id, "org_codes": [code]}]));
    assert_eq!(found["withRoleHere"], json!([{"id": ada.id}]));
    let roles = json!([{"id": role, "key": "owner", "name": "Owner"}]);
    let permissions = json!({"orgCode": code, "permissions": ["write"]});
    assert_eq!(found["token"], json!({"org": code, "roles": roles, "permissions": permissions}));
    let values: Vec<_> =
        found["properties"].as_array().unwrap().iter().map(|one| (&one["key"], &one["value"])).collect();
    assert_eq!(values, [(&json!("plan"), &json!("pro")), (&json!("tier"), &json!("gold"))]);
    let defined = &found["defined"][0];
    assert_eq!((&defined["key"], &defined["is_private"]), (&json!("tier"), &json!(true)));
    assert_eq!(found["searched"][0]["properties"], json!({"plan": "pro", "tier": "gold"}));
    assert_eq!(found["updated"]["users_removed"], json!([ada.id]));
    assert_eq!(found["left"], json!({"organizations": 1, "roles": 0, "permissions": 0}));
}
