//! The example as a process of its own, with a local Kinde, over HTTP.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod extractor;

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use bson::{Document, doc};
use kinde_emulator::{Emulator, Fault, FaultKind, NewUser, Profile, TokenSpec, WebhookSpec};
use kinsync_testing::mongo::TestMongo;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

/// Longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// The example on a free port, with these settings and no others. It ends with the test.
struct App {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
    url: String,
    client: Client,
    _folder: TempDir,
}

impl App {
    fn start(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kinsync-example-axum-app"));
        command.env_clear().env("PORT", "0").env("KINSYNC_DATA_DIR", folder.path());
        let mut child = command.envs(settings.iter().copied()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = output.next().expect("it prints its address").unwrap();
        let url = first.strip_prefix("listening on ").unwrap().to_owned();
        let client = Client::builder().timeout(DEADLINE).build().unwrap();
        Self { child, output, url, client, _folder: folder }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    /// Ctrl-C: whether it ended by itself and well.
    fn interrupt(mut self) -> bool {
        let interrupt = Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status();
        assert!(interrupt.unwrap().success());
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap_or_default())
}

/// Repeats the request until the response is as expected; each earlier response must have an allowed status.
async fn until(request: &RequestBuilder, before: StatusCode, is_right: impl Fn(StatusCode, &Value) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (status, body) = answer(request.try_clone().unwrap()).await;
        if is_right(status, &body) {
            return;
        }
        assert!(status == before && Instant::now() < deadline, "{status}: {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A local Kinde, and the application with these settings beside.
async fn start(settings: &[(&str, &str)]) -> (Emulator, App) {
    let kinde = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
    let app = App::start(&[settings, &[("KINDE_DOMAIN", kinde.issuer())]].concat());
    kinde.add_webhook(WebhookSpec::new(format!("{}/api/webhook", app.url).parse().unwrap()));
    (kinde, app)
}

fn ada() -> NewUser {
    NewUser::named("ada@example.com", "Ada", "Lovelace")
}

fn token(kinde: &Emulator, user: &str) -> String {
    kinde.access_token(user, &TokenSpec::default()).unwrap()
}

/// What a user meets, from the first request to the deletion.
async fn check(kinde: &Emulator, app: &App) -> String {
    let ada = kinde.import_user(ada()).unwrap().id;
    let me = app.get("/me").bearer_auth(token(kinde, &ada));
    let (status, body) = answer(me.try_clone().unwrap()).await;
    assert_eq!(
        (status, &body["kindeId"]),
        (StatusCode::OK, &ada.as_str().into()),
        "no webhook was delivered"
    );
    until(&me, StatusCode::OK, |_, body| body["firstName"] == "Ada" && body["email"] == "ada@example.com")
        .await;
    let note = app.client.post(format!("{}/notes", app.url)).bearer_auth(token(kinde, &ada)).body("buy milk");
    assert_eq!(answer(note).await.0, StatusCode::CREATED);
    let notes = app.get("/notes").bearer_auth(token(kinde, &ada));
    assert_eq!(answer(notes).await.1, serde_json::json!(["buy milk"]));
    kinde.delete_user(&ada, Profile::Remove).unwrap();
    until(&me, StatusCode::OK, |status, body| status == StatusCode::FORBIDDEN && body["reason"] == "deleted")
        .await;
    ada
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_the_open_route_answers_and_the_others_say_why_not() {
    let (_kinde, app) = start(&[]).await;
    assert_eq!(answer(app.get("/")).await.0, StatusCode::OK);
    for path in ["/me", "/notes"] {
        let answer = app.get(path).header("x-kinsync-user-id", "kp_admin").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert_eq!(answer.headers()["www-authenticate"], r#"Bearer realm="kinsync""#);
        assert_eq!(answer.json::<Value>().await.unwrap()["reason"], "no_token", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_whom_no_webhook_told_is_found_by_the_first_request_and_refused_once_deleted() {
    let (kinde, app) = start(&[]).await;
    check(&kinde, &app).await;
    assert!(app.interrupt(), "Ctrl-C ends it well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_whom_a_webhook_told_is_known_by_name_although_the_profile_cannot_be_asked_for() {
    let (kinde, app) = start(&[]).await;
    kinde.set_fault(Fault::always(FaultKind::Status { status: 503 }).on("profile"));
    let ada = kinde.create_user(ada()).unwrap().id;
    let me = app.get("/me").bearer_auth(token(&kinde, &ada));
    until(&me, StatusCode::OK, |_, body| body["firstName"] == "Ada" && body["lastName"] == "Lovelace").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_mongodb_the_users_are_in_it() {
    let mongo = TestMongo::shared().await;
    let database = mongo.database();
    let uri = mongo.uri().replace("/?", &format!("/{database}?"));
    let (kinde, app) = start(&[("MONGODB_URI", &uri)]).await;
    let ada = check(&kinde, &app).await;
    let users = mongo.client().await.database(&database).collection::<Document>("users");
    assert!(users.find_one(doc! { "kindeId": ada, "isDeleted": true }).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_machine_what_no_webhook_told_of_is_repaired_without_a_request() {
    let mongo = TestMongo::shared().await;
    let database = mongo.database();
    let uri = mongo.uri().replace("/?", &format!("/{database}?"));
    let kinde = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
    let ada = kinde.import_user(ada()).unwrap().id;
    let machine = kinde.config();
    let _app = App::start(&[
        ("KINDE_DOMAIN", kinde.issuer()),
        ("MONGODB_URI", &uri),
        ("KINDE_M2M_CLIENT_ID", &machine.client_id),
        ("KINDE_M2M_CLIENT_SECRET", &machine.client_secret),
    ]);
    let users = mongo.client().await.database(&database).collection::<Document>("users");
    let deadline = Instant::now() + DEADLINE;
    let found =
        async || users.find_one(doc! { "kindeId": &ada, "firstName": "Ada" }).await.unwrap().is_some();
    // The keys are fetched before the first delivery needs them.
    while !found().await || kinde.requests("jwks") == 0 {
        assert!(Instant::now() < deadline, "she was looked for: {}", found().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_says_to_try_works_in_this_order() {
    let mut app = App::start(&[]);
    let mut output = app.output.by_ref().map_while(Result::ok);
    let mut steps = output.by_ref().take_while(|line| line != "Ctrl-C ends it.");
    let token = steps.find_map(|line| line.trim().strip_prefix("TOKEN=").map(str::to_owned)).unwrap();
    let curls: Vec<_> = steps.filter(|line| line.starts_with("  curl ")).collect();
    let mut statuses = Vec::new();
    for (n, curl) in curls.iter().enumerate() {
        let url = curl.rsplit(' ').next().unwrap();
        let request = match curl {
            post if post.contains(" -d ") => app.client.post(url).body("buy milk"),
            delete if delete.contains(" -X DELETE ") => app.client.delete(url),
            get => {
                assert!(!get.contains(" -X "));
                app.client.get(url)
            }
        };
        let sends = curl.contains(r#"-H "Authorization: Bearer $TOKEN""#);
        let request = if sends { request.bearer_auth(&token) } else { request };
        if n + 1 == curls.len() {
            // The webhook has to come first.
            until(&request, StatusCode::OK, |status, _| status == StatusCode::FORBIDDEN).await;
        }
        statuses.push(answer(request).await.0.as_u16());
    }
    assert_eq!(statuses, [200, 201, 401, 200, 403], "{curls:#?}");
}
