//! The commands of the binary against a running emulator.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::receiver::{Arrival, DEADLINE, Receiver, claims, get};

const BINARY: &str = env!("CARGO_BIN_EXE_kinde-emulator");

struct Running {
    child: Child,
    greeting: Value,
}

impl Running {
    async fn start(args: &[&str]) -> Self {
        let mut child = Command::new(BINARY)
            .args(["serve", "--port", "0", "--json"])
            .args(args)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
        Self { child, greeting: serde_json::from_str(&line).unwrap() }
    }

    async fn run(&self, args: &[&str]) -> Output {
        let url = self.greeting["issuer"].as_str().unwrap();
        Command::new(BINARY).args(args).args(["--url", url]).output().await.unwrap()
    }

    async fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat()).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[tokio::test]
async fn the_commands_change_a_running_emulator() {
    let receiver = Receiver::start().await;
    let emulator = Running::start(&["--webhook", receiver.url.as_str()]).await;
    let made = emulator.json(&["users", "create", "--email", "ada@example.com", "--first-name", "Ada"]).await;
    let id = made["id"].as_str().unwrap();
    assert_eq!(receiver.wait_for(1).await[0].kind(), "user.created");
    assert_eq!(emulator.json(&["users", "update", id, "--last-name", "L"]).await["last_name"], "L");
    assert_eq!(emulator.json(&["users", "suspend", id]).await["is_suspended"], true);
    let refused = emulator.run(&["users", "sign-in", id]).await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("suspended"));
    emulator.json(&["users", "suspend", id, "--undo"]).await;
    emulator.json(&["users", "import", "--email", "b@example.com"]).await;
    let text = String::from_utf8(emulator.run(&["users", "list"]).await.stdout).unwrap();
    assert!(text.starts_with("ID") && text.contains("ada@example.com") && text.contains("b@example.com"));

    let args = ["token", "access", id, "--claim", "org_code=null", "--expires-in", "-5"];
    let token = String::from_utf8(emulator.run(&args).await.stdout).unwrap();
    assert_eq!(claims(token.trim())["sub"], id);
    assert!(claims(token.trim()).get("org_code").is_none());
    emulator.json(&["token", "id", id]).await;
    assert!(emulator.json(&["token", "m2m", "--scope", "read:users"]).await["token"].is_string());

    emulator
        .json(&["faults", "set", "delay", "--with", "min=1ms", "--with", "max=2ms", "--times", "1"])
        .await;
    assert_eq!(emulator.json(&["faults", "show"]).await["faults"][0]["kind"], "delay");
    assert_eq!(emulator.json(&["faults", "clear"]).await["faults"], json!([]));
    let refused = emulator.run(&["faults", "set", "status"]).await;
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("status"),
        "the error names the missing setting"
    );

    let added = emulator.json(&["webhooks", "add", receiver.url.as_str(), "--hmac", "secret"]).await;
    emulator.json(&["webhooks", "enable", added["id"].as_str().unwrap()]).await;
    assert_eq!(emulator.json(&["webhooks", "list"]).await["webhooks"].as_array().unwrap().len(), 2);
    assert!(emulator.json(&["keys", "rotate", "--drop"]).await["kid"].is_string());
    emulator.json(&["users", "delete", id, "--keep-profile"]).await;
    assert!(!emulator.json(&["deliveries"]).await["deliveries"].as_array().unwrap().is_empty());
    assert_eq!(emulator.json(&["stats"]).await["users"], 1);
    emulator.json(&["reset"]).await;
    assert_eq!(emulator.json(&["stats"]).await["deliveries"]["events"], 0);
}

#[tokio::test]
async fn the_commands_change_organizations_roles_and_permissions() {
    let receiver = Receiver::start().await;
    let emulator = Running::start(&["--webhook", receiver.url.as_str()]).await;
    let user = emulator.json(&["users", "import", "--email", "a@example.com"]).await;
    let user = user["users"][0]["id"].as_str().unwrap();
    let made = emulator.json(&["organizations", "create", "Acme", "--code", "org_acme"]).await;
    assert_eq!((&made["code"], &made["name"]), (&json!("org_acme"), &json!("Acme")));
    assert_eq!(emulator.json(&["organizations", "rename", "org_acme", "A"]).await["name"], "A");
    let role = emulator.json(&["roles", "create", "admin"]).await["id"].as_str().unwrap().to_owned();
    let permission = emulator.json(&["permissions", "create", "edit"]).await;
    let permission = permission["id"].as_str().unwrap();
    let changed = emulator.json(&["roles", "permissions", &role, "--add", permission]).await;
    assert_eq!(changed["permissions"], json!([permission]));
    emulator.json(&["organizations", "join", user, "org_acme", "--role", "admin"]).await;
    emulator.json(&["roles", "rename", &role, "owner"]).await;
    let token = emulator.json(&["token", "access", user, "--org", "org_acme", "--roles"]).await;
    let access = claims(token["token"].as_str().unwrap());
    assert_eq!((&access["org_code"], &access["permissions"]), (&json!("org_acme"), &json!(["edit"])));
    assert_eq!(access["roles"][0]["key"], "owner");
    let refused = emulator.run(&["token", "access", user, "--org", "org_other"]).await;
    assert!(!refused.status.success(), "the user is no member");
    let suspended = emulator.json(&["organizations", "suspend", user, "org_acme"]).await;
    let member = &suspended["organizations"][1];
    assert_eq!((&member["roles"][0]["key"], &member["is_suspended"]), (&json!("owner"), &json!(true)));
    let changed = emulator.json(&["users", "set-properties", user, "tier=gold", "seats=3"]).await;
    assert_eq!(changed["properties"], json!({"tier": "gold", "seats": "3"}));
    let text = String::from_utf8(emulator.run(&["roles", "list"]).await.stdout).unwrap();
    assert!(text.starts_with("ID") && text.contains("owner"), "{text}");
    emulator.json(&["permissions", "rename", permission, "write"]).await;
    assert_eq!(emulator.json(&["permissions", "list"]).await["permissions"][0]["key"], "write");
    emulator.json(&["permissions", "delete", permission]).await;
    emulator.json(&["roles", "delete", &role]).await;
    emulator.json(&["organizations", "leave", user, "org_acme"]).await;
    emulator.json(&["organizations", "delete", "org_acme"]).await;
    let listed = emulator.json(&["organizations", "list"]).await;
    assert_eq!(listed["organizations"].as_array().unwrap().len(), 1);
    let refused = emulator.run(&["roles", "delete", &role]).await;
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("there is no role")
    );
    let mut kinds: Vec<String> = receiver.wait_for(11).await.iter().map(Arrival::kind).collect();
    kinds.sort();
    let expect = [
        "organization.created",
        "organization.deleted",
        "organization.updated",
        "permission.created",
        "permission.deleted",
        "permission.updated",
        "role.created",
        "role.deleted",
        "role.updated",
        "user.updated",
        "user.updated",
    ];
    assert_eq!(kinds, expect);
}

/// Peak memory of a process in MiB.
#[cfg(target_os = "linux")]
fn peak_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_million_generated_users_are_listed_without_memory() {
    let emulator = Running::start(&["--generated", "1000000"]).await;
    let process = emulator.child.id().unwrap();
    let issuer = emulator.greeting["issuer"].as_str().unwrap().to_owned();
    let token = emulator.json(&["token", "m2m"]).await["token"].as_str().unwrap().to_owned();
    let mut next = String::new();
    for _ in 0..300 {
        let url = format!("{issuer}/api/v1/users?page_size=500&next_token={next}");
        let (status, page) = get(&url, Some(&token)).await;
        assert_eq!((status, page["users"].as_array().map(Vec::len)), (200, Some(500)));
        next = page["next_token"].as_str().unwrap().to_owned();
    }
    let page = emulator.json(&["users", "list"]).await;
    assert_eq!(page["users"].as_array().unwrap().len(), 1000);
    let rest = emulator.json(&["users", "list", "--after", page["next"].as_str().unwrap()]).await;
    assert_eq!(rest["users"].as_array().unwrap().len(), 1000);
    assert!(rest["users"][0]["id"] != page["users"][0]["id"]);
    let text = String::from_utf8(emulator.run(&["users", "list"]).await.stdout).unwrap();
    assert!(text.contains(&format!("--after {}", page["next"].as_str().unwrap())));
    // 64 bytes per user would exceed this limit twice.
    let peak = peak_mib(process);
    assert!(peak < 48, "{peak} MiB");
}

#[tokio::test]
async fn activity_is_generated_until_an_interrupt() {
    let receiver = Receiver::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("emulator.toml");
    std::fs::write(&file, format!("[[webhooks]]\nendpoint = \"{}\"\n", receiver.url)).unwrap();
    let mut emulator = Running::start(&["--activity", "200", "--config", file.to_str().unwrap()]).await;
    receiver.wait_for(20).await;
    let id = emulator.child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().await.unwrap().success());
    let status = tokio::time::timeout(DEADLINE, emulator.child.wait()).await.unwrap().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_command_without_an_emulator_explains_how_to_start_one() {
    let args = ["stats", "--url", "http://127.0.0.1:9"];
    let output = Command::new(BINARY).args(args).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("kinde-emulator serve"), "{text}");
}
