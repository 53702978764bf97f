//! The commands that compare Kinde with the store: backfill and reconcile, also killed and interrupted.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use bson::{Document, doc};
use futures_util::TryStreamExt;
use kinde_emulator::{
    Emulator, Fault, FaultKind, Profile, UserEdit,
    config::{Generated, Unknowns},
};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use mongodb::Collection;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, named},
    server::{TOKEN, kinsync},
};

/// A local Kinde, a MongoDB, and the settings of commands for both.
pub(crate) struct Environment {
    pub(crate) kinde: Emulator,
    pub(crate) users: Collection<Document>,
    pub(crate) vars: Vec<(&'static str, String)>,
    _folder: tempfile::TempDir,
}

impl Environment {
    pub(crate) async fn new(config: kinde_emulator::Config) -> Self {
        let mongo = TestMongo::shared().await;
        let kinde = Emulator::start(config).await.unwrap();
        let (database, folder) = (mongo.database(), tempfile::tempdir().unwrap());
        let vars = vec![
            ("KINDE_DOMAIN", kinde.issuer().to_owned()),
            ("KINDE_M2M_CLIENT_ID", kinde.config().client_id.clone()),
            ("KINDE_M2M_CLIENT_SECRET", kinde.config().client_secret.clone()),
            ("MONGODB_URI", mongo.uri()),
            ("KINSYNC_DATABASE", database.clone()),
            ("KINSYNC_DATA_DIR", folder.path().to_str().unwrap().to_owned()),
            ("KINSYNC_RECONCILE_PAGE_SIZE", "100".to_owned()),
        ];
        let users = mongo.client().await.database(&database).collection("users");
        Self { kinde, users, vars, _folder: folder }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let vars: Vec<(&str, &str)> = self.vars.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut command = kinsync(args, &vars);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end. Returns exit code, stdout and stderr.
    pub(crate) async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = self.command(args);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let Output { status, stdout, stderr } = output;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    pub(crate) async fn json(&self, args: &[&str]) -> (i32, Value) {
        let (code, stdout, stderr) = self.run(args).await;
        let value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{code}: {stdout} {stderr}"));
        (code, value)
    }

    /// Waits until a read has a newer version than all before: Kinde's clock has whole seconds, less the duration of a response.
    pub(crate) async fn until_reads_are_newer(&self) {
        let first = self.kindes_clock().await;
        let deadline = Instant::now() + DEADLINE;
        while self.kindes_clock().await < first + jiff::SignedDuration::from_secs(3) {
            assert!(Instant::now() < deadline, "Kinde's clock stands still at {first}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn kindes_clock(&self) -> jiff::Timestamp {
        let keys = format!("{}/.well-known/jwks.json", self.kinde.issuer());
        let response = reqwest::get(keys).await.unwrap();
        let date = response.headers()[reqwest::header::DATE].to_str().unwrap();
        jiff::fmt::rfc2822::parse(date).unwrap().timestamp()
    }

    /// The collection of kinsync's own records.
    pub(crate) async fn state(&self) -> Collection<Document> {
        let client = TestMongo::shared().await.client().await;
        client.database(&self.users.namespace().db).collection("kinsync_state")
    }

    /// Starts a server on the same database, without scans of its own.
    pub(crate) async fn server(&self) -> TestApp {
        let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
        for (name, value) in &self.vars {
            if *name != "KINSYNC_DATA_DIR" {
                app.set(name, value.as_str());
            }
        }
        app.set("KINSYNC_RECONCILE_EVERY", "off").set("KINSYNC_ADMIN_TOKEN", TOKEN);
        app.start().await.unwrap();
        app.prepared().await.unwrap();
        app
    }

    /// Every document, without what differs from run to run.
    async fn documents(&self) -> BTreeMap<String, Document> {
        let found: Vec<Document> = self.users.find(doc! {}).await.unwrap().try_collect().await.unwrap();
        let essence = |mut document: Document| {
            for key in ["_id", "updatedAt", "kinsync"] {
                document.remove(key);
            }
            (document.get_str("kindeId").unwrap().to_owned(), document)
        };
        found.into_iter().map(essence).collect()
    }
}

pub(crate) fn generated(users: u64) -> kinde_emulator::Config {
    kinde_emulator::Config {
        generated: Generated { users, seed: 5, ..Generated::default() },
        ..kinde_emulator::Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_killed_twenty_times_has_the_result_of_an_undisturbed_one() {
    const USERS: u64 = 12_000;
    let undisturbed = Environment::new(generated(USERS)).await;
    let (code, run) = undisturbed.json(&["backfill", "--json"]).await;
    assert_eq!(
        (code, &run["drift"]["missing"], &run["outcome"]),
        (0, &USERS.into(), &"complete".into()),
        "{run}"
    );

    let environment = Environment::new(generated(USERS)).await;
    // Slow enough for twenty kills.
    let pause = Duration::from_millis(15);
    environment.kinde.set_fault(Fault::always(FaultKind::Slow { min: pause, max: pause }).on("users"));
    let mut rng = StdRng::seed_from_u64(20);
    let mut killed = 0;
    while killed < 20 {
        let mut child = environment.command(&["backfill", "--json"]).spawn().unwrap();
        let instant = Instant::now() + Duration::from_millis(rng.random_range(20..400));
        while Instant::now() < instant && child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        if ended.success() {
            break;
        }
        killed += 1;
    }
    let (code, run) = environment.json(&["backfill", "--json"]).await;
    assert_eq!((code, &run["users"]), (0, &USERS.into()), "after {killed} kills: {run}");
    let (there, here) = (undisturbed.documents().await, environment.documents().await);
    assert_eq!(here.len(), there.len());
    assert!(here == there, "the result equals the undisturbed one");
    // A page that was written and recorded is not fetched again; the pages in progress at the kill are: four batches of five
    // pages, and the page in flight.
    let fetched = environment.kinde.requests("users");
    assert!(fetched <= USERS / 100 + (killed + 1) * 21, "{fetched} pages with {killed} kills");
    assert!(killed > 3, "it was killed {killed} times, in the middle of the work");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_command_that_waits_for_another_scan() {
    let environment = Environment::new(generated(100)).await;
    let pause = 2 * DEADLINE;
    environment.kinde.set_fault(Fault::always(FaultKind::Slow { min: pause, max: pause }).on("users"));
    let mut scans = environment.command(&["backfill"]).spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while environment.kinde.requests("users") == 0 {
        assert!(Instant::now() < deadline && scans.try_wait().unwrap().is_none(), "it does not scan");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Before it waits, Ctrl-C would end it too.
    let uri = environment.vars.iter().find(|(name, _)| *name == "MONGODB_URI").unwrap().1.clone();
    let separator = if uri.contains('?') { '&' } else { '?' };
    let mut waiting = environment.command(&["backfill"]);
    let state = environment.state().await;
    let database = TestMongo::shared().await.client().await.database(&state.namespace().db);
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let mut waits = waiting.env("MONGODB_URI", format!("{uri}{separator}appName=waits")).spawn().unwrap();
    let looks =
        doc! { "appName": "waits", "command.find": "kinsync_state", "command.filter._id": "reconcile.lease" };
    let profile = database.collection::<Document>("system.profile");
    while profile.count_documents(looks.clone()).await.unwrap() < 3 {
        assert!(Instant::now() < deadline && waits.try_wait().unwrap().is_none(), "it does not wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    interrupt(&waits);
    let ended = tokio::task::spawn_blocking(move || waits.wait_with_output().unwrap());
    let ended = tokio::time::timeout(DEADLINE, ended).await.expect("it ends").unwrap();
    let output = String::from_utf8(ended.stderr).unwrap();
    assert!(
        ended.status.code() == Some(1) && output.contains("stopped; every started write was completed"),
        "{output}"
    );
    scans.kill().unwrap();
    scans.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_keeps_the_documents_and_values_of_the_application() {
    let environment = Environment::new(kinde_emulator::Config::default()).await;
    let ada = environment.kinde.import_user(named(1)).unwrap().id;
    let eve = environment.kinde.import_user(named(2)).unwrap().id;
    // One document has the Kinde id, one has only an address, one has neither.
    environment
        .users
        .insert_one(doc! { "kindeId": &ada, "email": "old@example.com", "plan": "pro" })
        .await
        .unwrap();
    environment.users.insert_one(doc! { "email": "user2@example.com", "plan": "free" }).await.unwrap();
    environment.users.insert_one(doc! { "name": "a robot" }).await.unwrap();
    let (code, stdout, stderr) = environment.run(&["backfill"]).await;
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("2 users at Kinde: 0 unchanged, 2 created"), "{stdout}");
    let found = environment.users.find_one(doc! { "kindeId": &ada }).await.unwrap().unwrap();
    let values = (found.get_str("email").unwrap(), found.get_str("plan").unwrap());
    assert_eq!(values, ("old@example.com", "pro"), "values of the application stay");
    let metadata = found.get_document("kinsync").unwrap();
    assert_eq!(metadata.get_array("kept").unwrap(), &["email".into()]);
    assert_eq!(metadata.get_document("values").unwrap().get_str("email").unwrap(), "user1@example.com");
    // The Management API does not report whether an address is verified, so the document is not linked.
    let found = environment.users.find_one(doc! { "kindeId": &eve }).await.unwrap().unwrap();
    assert!(found.get_str("email").is_err() && found.get_str("plan").is_err(), "{found}");
    assert_eq!(environment.users.count_documents(doc! {}).await.unwrap(), 4);
    assert_eq!(environment.run(&["backfill"]).await.1, "2 users at Kinde: 2 unchanged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn reconcile_lists_and_repairs_differences_holds_deletions_and_carries_out_approved_ones() {
    let environment = Environment::new(generated(100)).await;
    assert_eq!(environment.run(&["backfill"]).await.0, 0);
    let users = environment.kinde.users();
    for user in &users[..30] {
        environment.kinde.delete_user(&user.id, Profile::Remove).unwrap();
    }
    let edit = UserEdit { first_name: Some("New".into()), ..UserEdit::default() };
    environment.kinde.update_user(&users[40].id, edit).unwrap();
    environment.kinde.import_user(named(1)).unwrap();
    environment.until_reads_are_newer().await;
    let before = environment.documents().await;
    let (code, dry) = environment.json(&["reconcile", "--dry-run", "--json"]).await;
    let drift = |kind: &str| dry["drift"][kind].as_u64();
    assert_eq!(
        (code, drift("deletion_held"), drift("missing"), drift("changed")),
        (3, Some(30), Some(1), Some(1)),
        "{dry}"
    );
    assert_eq!(environment.documents().await, before, "a dry run changes nothing");
    let (code, stdout, _) = environment.run(&["reconcile", "--dry-run"]).await;
    assert!(code == 3 && stdout.contains("1 would be created, 1 would be changed"), "{stdout}");
    assert!(stdout.contains(&users[40].id) && stdout.contains("firstName"), "{stdout}");

    let (code, run) = environment.json(&["reconcile", "--json"]).await;
    assert_eq!((code, &run["drift"]["deletion_held"]), (3, &30.into()), "{run}");
    let live = doc! { "isDeleted": false };
    assert_eq!(
        environment.users.count_documents(live.clone()).await.unwrap(),
        101,
        "users are created, deletions are held"
    );
    let (code, _, stderr) = environment.run(&["reconcile", "--approve", "20200101-000000-0000"]).await;
    assert!(code == 1 && stderr.contains("holds no deletions"), "{stderr}");
    let id = run["id"].as_str().unwrap();
    let (code, stdout, stderr) = environment.run(&["reconcile", "--approve", id]).await;
    assert!(code == 0 && stdout.contains("30 deleted"), "{stdout}{stderr}");
    assert_eq!(environment.users.count_documents(live).await.unwrap(), 71);
    assert_eq!(environment.run(&["reconcile"]).await.1, "71 users at Kinde: 71 unchanged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_error_code_for_missing_users_deletes_no_user_until_it_is_configured() {
    let unknown_user_code = "NO_SUCH_USER".to_owned();
    let unknowns = Unknowns { unknown_user_code, ..Unknowns::default() };
    let mut environment = Environment::new(kinde_emulator::Config { unknowns, ..Default::default() }).await;
    let [ada, _] = [1, 2].map(|n| environment.kinde.import_user(named(n)).unwrap().id);
    assert_eq!(environment.run(&["backfill"]).await.0, 0);
    environment.kinde.delete_user(&ada, Profile::Remove).unwrap();
    environment.until_reads_are_newer().await;
    let (code, run) = environment.json(&["reconcile", "--json"]).await;
    assert_eq!((code, &run["drift"]), (0, &json!({ "undetermined": 1 })), "{run}");
    environment.vars.push(("KINSYNC_UNKNOWN_USER_CODES", "OTHER, NO_SUCH_USER".to_owned()));
    let (code, run) = environment.json(&["reconcile", "--json"]).await;
    assert_eq!((code, &run["drift"]), (0, &json!({ "deleted": 1 })), "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_creates_nothing_in_a_new_database() {
    let environment = Environment::new(generated(3)).await;
    let (code, stdout, stderr) = environment.run(&["reconcile", "--dry-run"]).await;
    assert!(code == 0 && stdout.contains("3 would be created"), "{stdout}{stderr}");
    let database = TestMongo::shared().await.client().await.database(&environment.users.namespace().db);
    assert_eq!(database.list_collection_names().await.unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_name_what_is_missing_for_a_request_to_kinde() {
    let environment = Environment::new(generated(3)).await;
    let with = |name: &str, value: Option<&str>| {
        let mut command = environment.command(&["backfill"]);
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name).env_remove("KINDE_M2M_CLIENT_SECRET"),
        };
        command.output().unwrap()
    };
    let no_application = with("KINDE_M2M_CLIENT_ID", None);
    let wrong_secret = with("KINDE_M2M_CLIENT_SECRET", Some("wrong"));
    for (output, code, expected) in [(no_application, 78, "KINDE_M2M_CLIENT_ID"), (wrong_secret, 1, "secret")]
    {
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && stderr.contains(expected), "{stderr}");
    }
    let (code, _, stderr) = environment.run(&["backfill"]).await;
    assert_eq!(code, 0, "{stderr}");
    environment.kinde.set_fault(Fault::always(FaultKind::EmptyList));
    let (code, _, stderr) = environment.run(&["reconcile"]).await;
    assert!(code == 1 && stderr.contains("lists no users at all"), "{stderr}");
}

/// Sends a signal, such as `KILL`.
#[cfg(unix)]
pub(crate) fn interrupt_with(child: &Child, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal]).arg(child.id().to_string()).status();
    assert!(sent.is_ok_and(|sent| sent.success()));
}

/// Sends SIGINT, as Ctrl-C does.
#[cfg(unix)]
pub(crate) fn interrupt(child: &Child) {
    interrupt_with(child, "INT");
}
