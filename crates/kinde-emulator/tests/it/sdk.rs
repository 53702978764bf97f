//! Kinde's npm packages as clients of the emulator.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use kinde_emulator::{Config, Emulator, MintOptions, NewUser, Overlap, Signer, TokenSpec};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::receiver::start;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");
const MISSING: &str = "this test needs Node.js 18 or newer with npm: run `.ci/install`";

async fn run(command: &mut Command) -> Output {
    let command = command.current_dir(DIRECTORY).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_mins(3), command.output()).await;
    let output = output.expect("the command ends in three minutes").expect(MISSING);
    assert!(output.status.success(), "{MISSING}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Installs the packages of the lock file unless they are installed. Tests that run at the same time install them once.
async fn install() {
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _guard = ONE_AT_A_TIME.lock().await;
    let installed = Path::new(DIRECTORY).join("node_modules/.package-lock.json");
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let lock = changed(&Path::new(DIRECTORY).join("package-lock.json"));
    if changed(&installed) < lock {
        run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"])).await;
    }
}

async fn check(request: &Value) -> Value {
    run_script("check.mjs", request).await
}

/// Runs a script of `tests/sdk` and returns what it prints.
pub(crate) async fn run_script(script: &str, request: &Value) -> Value {
    install().await;
    let output = run(Command::new("node").arg(script).env("CHECK", request.to_string())).await;
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

/// A token of a user with the same id from another tenant, with other keys.
async fn another_tenants_token(spec: &TokenSpec) -> String {
    let other = Emulator::start(Config::default()).await.unwrap();
    let user = other.sign_up(NewUser::named("ada@example.com", "Ada 🦀", "Lovelace")).unwrap();
    other.access_token(&user.id, spec).unwrap()
}

/// A token with this issuer.
fn as_if_from(issuer: &str) -> TokenSpec {
    TokenSpec { claims: [("iss".to_owned(), json!(issuer))].into_iter().collect(), ..TokenSpec::default() }
}

#[tokio::test]
async fn kindes_packages_work_with_the_emulator() {
    let (emulator, receiver) = start(Config::default()).await;
    let first = emulator.sign_up(NewUser::named("ada@example.com", "Ada 🦀", "Lovelace")).unwrap();
    for number in 1..250 {
        emulator.import_user(NewUser::named(&format!("user{number}@example.com"), "User", "N")).unwrap();
    }
    let delivered = String::from_utf8(receiver.wait_for(1).await[0].body.to_vec()).unwrap();
    let spec = TokenSpec::default();
    let foreign = MintOptions { signer: Signer::Foreign, ..MintOptions::default() };
    let payload = receiver.arrivals()[0].payload();
    let forged = emulator.mint(payload.as_object().unwrap(), &foreign);
    let access = emulator.access_token(&first.id, &spec).unwrap();
    let request = json!({
        "issuer": emulator.issuer(),
        "clientId": emulator.config().client_id,
        "clientSecret": emulator.config().client_secret,
        "pageSize": 40,
        "webhooks": {
            "delivered": delivered,
            "truncated": &delivered[..delivered.len() - 4],
            "forged": forged,
        },
        "tokens": {
            "access": access,
            "id": emulator.id_token(&first.id, &spec).unwrap(),
            "m2m": emulator.m2m_token(&spec),
            "forged": emulator.access_token(&first.id, &TokenSpec { sign: foreign, ..spec.clone() }).unwrap(),
            "of another tenant": another_tenants_token(&spec).await,
            "of another tenant in this one's name": another_tenants_token(&as_if_from(emulator.issuer())).await,
        },
    });

    let answer = check(&request).await;
    assert_eq!(answer["decoded"], json!({"delivered": payload, "truncated": null, "forged": null}));
    assert_eq!(
        answer["valid"],
        json!({"access": true, "id": true, "m2m": true, "forged": false, "of another tenant": false, "of another tenant in this one's name": false})
    );
    let wanted: Vec<String> = emulator.users().into_iter().map(|user| user.id).collect();
    assert_eq!((&answer["ids"], &answer["pages"]), (&json!(wanted), &json!(7)));
    assert_eq!(answer["email"], "ada@example.com");
    assert_eq!(answer["endpoints"], json!([receiver.url]));

    emulator.rotate_keys(Overlap::Keep).unwrap();
    assert_eq!(check(&request).await["valid"]["access"], true, "the old key is still published");
    emulator.rotate_keys(Overlap::Drop).unwrap();
    let answer = check(&request).await;
    assert!(answer["decoded"]["delivered"].is_null() && answer["valid"]["access"] == false);
    assert!(emulator.requests("token") >= 3);
}
