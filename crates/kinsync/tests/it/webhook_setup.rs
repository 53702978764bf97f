//! `kinsync webhook setup`, against a local Kinde.

use kinde_emulator::{Config, Fault, FaultKind};
use kinsync_testing::app::TestApp;
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, named},
    tenant::{Ran, Tenant, event_types},
};

const URL: &str = "https://app.example.com/api/webhook";
const OTHER: &str = "https://other.example.com/hooks";
const SETUP: [&str; 4] = ["webhook", "setup", "--url", URL];

async fn with_scopes(scopes: &[&str]) -> Tenant {
    let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    Tenant::with(Config { scopes, ..Config::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_makes_one_webhook_however_often_it_runs_and_deliveries_arrive() {
    let mut tenant = Tenant::start().await;
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("KINDE_DOMAIN", tenant.kinde.issuer());
    app.start().await.unwrap();
    tenant.set("KINSYNC_PUBLIC_URL", app.url(""));
    let dry = tenant.run(&["webhook", "setup", "--dry-run"]);
    assert_eq!((dry.code, tenant.webhooks()), (0, vec![]), "{}", dry.stderr);
    assert!(dry.stdout.starts_with("would create the webhook"), "{}", dry.stdout);
    let first = tenant.run(&["webhook", "setup"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(
        first.stdout.starts_with("created the webhook") && first.stdout.contains("user.deleted"),
        "{}",
        first.stdout
    );
    let made = vec![(app.url("/api/webhook"), event_types(&[], &[]))];
    assert_eq!(tenant.webhooks(), made);
    let second = tenant.run(&["webhook", "setup"]);
    assert!(second.code == 0 && second.stdout.starts_with("nothing to do"), "{}", second.stdout);
    assert_eq!(tenant.webhooks(), made);
    let user = tenant.kinde.sign_up(named(1)).unwrap();
    tenant.kinde.quiesce(DEADLINE).await.unwrap();
    app.drained(DEADLINE).await.unwrap();
    let found =
        app.admin(&format!("/users/{}", user.id)).await.unwrap().expect("the delivery changes_by_source");
    assert_eq!(found["email"], "user1@example.com");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_event_types_are_added_and_nothing_is_taken_away() {
    let types = event_types(&[], &["user.abducted"]);
    let tenant = Tenant::with(Config { event_types: types, ..Config::default() }).await;
    let id = tenant.add_webhook(URL, &["user.abducted", "user.created"]);
    tenant.add_webhook(OTHER, &["user.created"]);
    let before = tenant.webhooks();
    let dry = tenant.run(&[&SETUP[..], &["--dry-run", "--json"]].concat());
    assert_eq!((dry.code, tenant.webhooks()), (0, before.clone()), "{}", dry.stderr);
    let done = tenant.run(&[&SETUP[..], &["--json"]].concat());
    for (output, dry_run) in [(dry.json(), true), (done.json(), false)] {
        assert_eq!((&output["action"], &output["dryRun"]), (&"update".into(), &dry_run.into()));
        assert_eq!(
            (&output["webhook"], &output["others"][0]["endpoint"]),
            (&id.as_str().into(), &OTHER.into())
        );
        let added: Vec<&str> =
            output["added"].as_array().unwrap().iter().filter_map(|kind| kind.as_str()).collect();
        assert!(added.contains(&"user.deleted") && !added.contains(&"user.abducted"), "{added:?}");
    }
    let mut now = tenant.webhooks();
    assert_eq!(now.pop(), before.last().cloned(), "webhooks of other addresses are left alone");
    let (mut has, mut expected) = (now.remove(0).1, event_types(&[], &["user.abducted"]));
    has.sort();
    expected.sort();
    assert_eq!(has, expected);
    assert!(tenant.run(&SETUP).stdout.starts_with("nothing to do"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_webhooks_of_this_address_the_full_one_counts_and_the_other_is_named() {
    let tenant = Tenant::start().await;
    tenant.add_webhook(URL, &["user.created"]);
    tenant.add_webhook(URL, &[]);
    let before = tenant.webhooks();
    let ran = tenant.run(&SETUP);
    assert!(
        ran.stdout.starts_with("nothing to do") && ran.stdout.contains("more than once"),
        "{}",
        ran.stdout
    );
    assert_eq!(tenant.webhooks(), before);
}

/// Behind a proxy the path may be another one. One setting configures it for `setup` and for `doctor`.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_at_another_path_is_known_by_one_setting_and_never_made_twice() {
    const HOOK: &str = "https://app.example.com/hooks/kinde";
    let mut tenant = Tenant::start().await;
    tenant.set("KINSYNC_PUBLIC_URL", "https://app.example.com");
    let doctor = |tenant: &Tenant| -> (String, String) {
        let output = tenant.run(&["doctor", "--json"]).json();
        let findings = output["findings"].as_array().unwrap();
        let webhook = findings.iter().find(|one| one["id"] == "kinde.webhook").unwrap();
        (webhook["status"].as_str().unwrap().to_owned(), webhook.to_string())
    };
    let made = tenant.run(&["webhook", "setup", "--url", HOOK]);
    assert!(made.code == 0 && made.stdout.contains("set KINSYNC_WEBHOOK_URL"), "{}", made.stdout);
    let (status, output) = doctor(&tenant);
    assert_eq!(status, "warning", "{output}");
    assert!(output.contains(HOOK) && output.contains("KINSYNC_WEBHOOK_URL"), "{output}");
    tenant.set("KINSYNC_WEBHOOK_URL", HOOK);
    assert_eq!(doctor(&tenant).0, "ok");
    let again = tenant.run(&["webhook", "setup"]);
    assert!(
        again.stdout.starts_with("nothing to do") && !again.stdout.contains("KINSYNC"),
        "{}",
        again.stdout
    );
    assert_eq!(tenant.webhooks().len(), 1);
}

/// Runs `setup` with a fault that strikes the request that makes the webhook.
fn setup_struck_by(tenant: &Tenant, fault: FaultKind) -> Ran {
    let ran = setup_struck_times(tenant, fault, 1);
    assert_eq!(tenant.kinde.faults()[0].occurrences, 1);
    ran
}

/// The same, with one that strikes what comes after it too.
fn setup_struck_times(tenant: &Tenant, fault: FaultKind, times: u64) -> Ran {
    tenant.kinde.clear_faults();
    let held = tenant.kinde.hold("event_types", 1);
    let before = tenant.kinde.requests("event_types");
    std::thread::scope(|scope| {
        let command = scope.spawn(|| tenant.run(&[&SETUP[..], &["--json"]].concat()));
        let began = Instant::now();
        // The webhooks have been listed by then: the next request for them is the one that makes one.
        while tenant.kinde.requests("event_types") == before {
            assert!(began.elapsed() < DEADLINE, "it sends no request");
            std::thread::yield_now();
        }
        tenant.kinde.set_fault(Fault::times(fault, times).on("webhooks"));
        drop(held);
        command.join().unwrap()
    })
}

/// The response is cut off, so its effect is unknown; it did take effect.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_may_have_been_made_is_looked_for_before_another_one_is() {
    let tenant = Tenant::start().await;
    let ran = setup_struck_by(&tenant, FaultKind::CutBody);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(tenant.kinde.webhooks().len(), 1);
    assert_eq!(ran.json()["webhook"], tenant.kinde.webhooks()[0].id);
    // Listed, made, listed again: it was not made twice.
    assert_eq!(tenant.kinde.requests("webhooks"), 3);
}

/// The same, and it did not take effect.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_was_not_made_is_said_and_not_made_again_by_itself() {
    let tenant = Tenant::start().await;
    let ran = setup_struck_by(&tenant, FaultKind::Status { status: 503 });
    assert_eq!((ran.code, tenant.kinde.webhooks().len()), (1, 0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("not known") && ran.stderr.contains("run the command again"),
        "{}",
        ran.stderr
    );
    assert_eq!(tenant.run(&SETUP).code, 0);
    assert_eq!(tenant.kinde.webhooks().len(), 1);
}

/// The answer is cut off, and then the list cannot be read either.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_cannot_be_looked_for_is_said_to_be_unsure() {
    let tenant = Tenant::start().await;
    let ran = setup_struck_times(&tenant, FaultKind::Status { status: 503 }, 100);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("not known whether Kinde created the webhook"), "{}", ran.stderr);
    assert!(ran.stderr.contains("run the command again") && !ran.stderr.contains("scopes"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_kinde_refuses_one_more_webhook_its_plan_is_named() {
    let tenant = Tenant::start().await;
    let ran = setup_struck_by(&tenant, FaultKind::Status { status: 400 });
    assert!(ran.code == 1 && !ran.stderr.contains("plan"), "{}", ran.stderr);
    tenant.add_webhook(OTHER, &[]);
    let ran = setup_struck_by(&tenant, FaultKind::Status { status: 400 });
    assert!(
        ran.code == 1 && ran.stderr.contains("1 exist already, and its free plan allows one"),
        "{}",
        ran.stderr
    );
    // Listed and refused, twice: what was refused need not be looked for.
    assert_eq!(tenant.kinde.requests("webhooks"), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_to_another_machine_is_refused_with_the_reason() {
    let tenant = Tenant::start().await;
    for args in [["--url", "http://app.example.com/api/webhook"], ["--public-url", "http://app.example.com"]]
    {
        let ran = tenant.run(&[&["webhook", "setup"], &args[..]].concat());
        assert_eq!((ran.code, tenant.webhooks()), (78, vec![]));
        assert!(
            ran.stderr.contains("must start with `https://`: Kinde delivers to no other address"),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(tenant.kinde.requests("token"), 0, "no request was sent to Kinde");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scope_that_is_missing_is_named() {
    for (scopes, missing) in [
        (&["read:event_types"][..], "lacks the scope `read:webhooks`"),
        (&["read:webhooks"], "lacks the scope `read:event_types`"),
        (&["read:webhooks", "read:event_types"], "lacks the scope `create:webhooks`"),
    ] {
        let tenant = with_scopes(scopes).await;
        let ran = tenant.run(&SETUP);
        assert_eq!((ran.code, tenant.webhooks()), (1, vec![]));
        assert!(ran.stderr.contains(missing), "{}", ran.stderr);
    }
    let tenant = with_scopes(&["read:webhooks", "read:event_types", "create:webhooks"]).await;
    tenant.add_webhook(URL, &["user.created"]);
    let ran = tenant.run(&SETUP);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("lacks the scope `update:webhooks`"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_missing_setting_is_named_at_once() {
    let mut tenant = Tenant::start().await;
    tenant.unset("KINDE_DOMAIN").unset("KINDE_M2M_CLIENT_ID").unset("KINDE_M2M_CLIENT_SECRET");
    let ran = tenant.run(&["webhook", "setup"]);
    assert_eq!(ran.code, 78);
    for name in ["KINDE_DOMAIN", "KINDE_M2M_CLIENT_ID", "KINDE_M2M_CLIENT_SECRET", "KINSYNC_PUBLIC_URL"] {
        assert!(ran.stderr.contains(&format!("\n  {name}: is not set")), "{name}: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_without_a_required_event_type_gets_no_webhook() {
    let config = Config { event_types: event_types(&["user.deleted"], &[]), ..Config::default() };
    let tenant = Tenant::with(config).await;
    for args in [&SETUP[..], &[&SETUP[..], &["--dry-run"]].concat()] {
        let ran = tenant.run(args);
        assert_eq!((ran.code, tenant.webhooks()), (1, vec![]));
        assert!(ran.stderr.contains("user.deleted"), "{}", ran.stderr);
    }
}
