//! The Express and Mongoose example on a real MongoDB: calling kinsync itself, and behind each proxy of the guide.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use kinsync_testing::mongo::TestMongo;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::deployment::{DEADLINE, Deployment, named};

pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
pub(crate) const MISSING: &str =
    "this test needs Node.js with npm, nginx, caddy, traefik and envoy: run `.ci/install`";

/// A process that ends with the test.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The workers of nginx end when their master gets SIGTERM, and not when it is killed.
        _ = Command::new("kill").arg("-TERM").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Installs the packages of the example's lock file, once.
pub(crate) async fn installed() -> PathBuf {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let example = Path::new(ROOT).join("examples/express-mongoose");
    let folder = example.clone();
    let install = async || {
        let changed = |path: &str| folder.join(path).metadata().and_then(|file| file.modified()).ok();
        if changed("node_modules/.package-lock.json") < changed("package-lock.json") {
            let mut npm = tokio::process::Command::new("npm");
            npm.args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder).stdout(Stdio::null());
            assert!(npm.status().await.expect(MISSING).success(), "{MISSING}");
        }
    };
    INSTALLED.get_or_init(install).await;
    example
}

/// The example application. With `verifier` it sends its own requests to that kinsync; otherwise a proxy does.
async fn application(deployment: &Deployment, verifier: Option<&str>) -> (Running, u16) {
    let mut node = Command::new("node");
    let database = deployment.users.namespace().db;
    let uri = deployment.uri.replace("/?", &format!("/{database}?"));
    node.arg(installed().await.join("server.mjs")).env("MONGODB_URI", uri).env("PORT", "0");
    if let Some(url) = verifier {
        node.env("KINSYNC_URL", url);
    }
    let mut child = node.stdout(Stdio::piped()).spawn().expect(MISSING);
    let mut output = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut output).unwrap();
    let port = output.trim().rsplit(':').next().and_then(|port| port.parse().ok());
    (Running(child), port.unwrap_or_else(|| panic!("it does not listen: {output:?}")))
}

/// An application that answers each request with the head of the request.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut head, mut byte) = (String::new(), [0]);
            while !head.ends_with("\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0].into());
            }
            let length = head.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{head}");
            _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// A change of a configuration of the guide.
type Edit = fn(&str) -> String;

/// Removes the `#` of the lines after each comment about a path that needs a role.
fn with_a_path_that_needs_a_role(text: &str) -> String {
    let mut is_example = false;
    let lines = text.lines().map(|line| {
        let (indent, comment) = line.split_at(line.len() - line.trim_start().len());
        match comment.strip_prefix("# ") {
            Some(code) if is_example => format!("{indent}{code}\n"),
            _ => {
                is_example = comment.contains("path that needs a role");
                format!("{line}\n")
            }
        }
    });
    lines.collect()
}

/// A configuration of the guide, with other ports.
fn configuration(name: &str, edit: Edit, [kinsync, application, front]: [u16; 3]) -> String {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/guides/forward-auth").join(name)).unwrap();
    let text = edit(&text);
    [(5000, kinsync), (3000, application), (8080, front)].iter().fold(text, |text, (documented, real)| {
        let with_ports =
            ["127.0.0.1:", "address: 127.0.0.1, port_value: "].iter().fold(text.clone(), |text, before| {
                text.replace(&format!("{before}{documented}"), &format!("{before}{real}"))
            });
        assert_ne!(with_ports, text, "{name} has no port {documented}");
        with_ports
    })
}

/// A proxy under test.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Proxy {
    Nginx,
    Caddy,
    Traefik,
    Envoy,
}

/// A program that `.ci/install` downloads unless it is on the `PATH`.
fn installed_program(name: &str) -> Command {
    let downloaded = Path::new(ROOT).join(".tools/bin").join(name);
    if downloaded.exists() { Command::new(downloaded) } else { Command::new(name) }
}

impl Proxy {
    pub(crate) async fn start(
        self,
        deployment: &Deployment,
        application: u16,
        folder: &Path,
    ) -> (Running, String) {
        self.start_edited(deployment, application, folder, str::to_owned).await
    }

    async fn start_edited(
        self,
        deployment: &Deployment,
        application: u16,
        folder: &Path,
        edit: Edit,
    ) -> (Running, String) {
        let front = kinsync_testing::free_port();
        let configuration =
            |name| configuration(name, edit, [deployment.apps[0].address().port(), application, front]);
        let mut command = match self {
            Self::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| {
                    format!("{kind}_temp_path {};", folder.join(format!("{front}.{kind}")).display())
                });
                let site = configuration("nginx.conf");
                let pid = folder.join(format!("{front}.pid"));
                let head = format!("daemon off; pid {}; error_log stderr warn; events {{}}", pid.display());
                let text = format!("{head} http {{ access_log off; {} {site} }}", temporary.concat());
                let file = folder.join(format!("{front}.conf"));
                fs::write(&file, text).unwrap();
                let mut nginx = Command::new("nginx");
                nginx.args(["-e", "stderr", "-p"]).arg(folder).arg("-c").arg(file);
                nginx
            }
            Self::Caddy => {
                let text = configuration("Caddyfile");
                let file = folder.join(format!("{front}.Caddyfile"));
                fs::write(&file, format!("{{\n\tadmin off\n}}\n{text}")).unwrap();
                let mut caddy = Command::new("caddy");
                caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(file).env("HOME", folder);
                caddy
            }
            Self::Traefik => {
                let text = configuration("traefik-dynamic.yaml");
                let file = folder.join(format!("{front}.yaml"));
                fs::write(&file, &text).unwrap();
                let documented = text.lines().find_map(|line| line.strip_prefix("#   traefik ")).unwrap();
                let mut traefik = installed_program("traefik");
                traefik.args(documented.replace("traefik-dynamic.yaml", file.to_str().unwrap()).split(' '));
                traefik.current_dir(folder);
                traefik
            }
            Self::Envoy => {
                let text = configuration("envoy.yaml");
                let file = folder.join(format!("{front}.yaml"));
                fs::write(&file, text).unwrap();
                let mut envoy = installed_program("envoy");
                envoy.args(["--disable-hot-restart", "--concurrency", "1", "--config-path"]).arg(file);
                envoy
            }
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect(MISSING);
        let (running, url) = (Running(child), format!("http://127.0.0.1:{front}"));
        let deadline = Instant::now() + DEADLINE;
        let client = deployment.apps[0].client();
        while client.get(&url).send().await.map(|response| response.status()).ok()
            != Some(StatusCode::UNAUTHORIZED)
        {
            assert!(Instant::now() < deadline, "{self:?} does not call kinsync");
        }
        (running, url)
    }
}

async fn answer(request: RequestBuilder) -> (StatusCode, String, Value) {
    let answer = request.send().await.unwrap();
    let challenge = answer.headers().get_all("www-authenticate").iter();
    let challenge: Vec<_> = challenge.map(|value| value.to_str().unwrap().to_owned()).collect();
    (answer.status(), challenge.join(" and "), answer.json().await.unwrap_or_default())
}

/// What a user of the application meets at this address, from the first request to the deletion.
async fn check(deployment: &mut Deployment, url: &str) {
    let client = deployment.apps[0].client().clone();
    let me = format!("{url}/me");
    let (status, challenge, problem) = answer(client.get(&me)).await;
    assert_eq!((status, challenge.as_str()), (StatusCode::UNAUTHORIZED, r#"Bearer realm="kinsync""#));
    assert_eq!(problem["reason"], "no_token", "{problem}");
    // No webhook is sent for these users.
    let ada = deployment.kinde.import_user(named(1)).unwrap().id;
    let eve = deployment.kinde.import_user(named(2)).unwrap().id;
    let token = deployment.token(&ada);
    let forged = client.get(&me).header("x-kinsync-user-id", &eve);
    assert_eq!(answer(forged).await.0, StatusCode::UNAUTHORIZED, "a forged header authenticates no user");
    let deadline = Instant::now() + DEADLINE;
    for visits in 1.. {
        let mine = client.get(&me).bearer_auth(&token).header("x-kinsync-user-id", &eve);
        let (status, _, user) = answer(mine).await;
        assert_eq!((status, &user["kindeId"]), (StatusCode::OK, &ada.as_str().into()), "{user}");
        assert_eq!(
            user["visits"], visits,
            "found in the same MongoDB at the first request, with a field of its own"
        );
        if user["email"] == "user1@example.com" && user["firstName"] == "First 1" {
            break;
        }
        assert!(Instant::now() < deadline, "the rest is not filled in: {user}");
    }
    let note = client.post(format!("{url}/notes")).bearer_auth(&token);
    assert_eq!(
        answer(note.body(r#"{"text":"a body gets through"}"#).header("content-type", "application/json"))
            .await
            .0,
        201
    );
    let statistics = || answer(client.get(format!("{url}/statistics")).bearer_auth(&token));
    assert_eq!(
        statistics().await.0,
        StatusCode::FORBIDDEN,
        "no source has listed the roles of an imported user"
    );
    let (org, admin) = (&deployment.kinde.config().org_code, ["admin".to_owned()]);
    deployment.kinde.add_to_organization(&ada, org, &admin, &[]).unwrap();
    loop {
        let (status, _, body) = statistics().await;
        if status == StatusCode::OK {
            assert_eq!(body["notes"], 1, "{body}");
            break;
        }
        assert!(status == StatusCode::FORBIDDEN && Instant::now() < deadline, "{status}: {body}");
    }
    deployment.kinde.delete_user(&ada, kinde_emulator::Profile::Remove).unwrap();
    loop {
        let (status, _, problem) = answer(client.get(&me).bearer_auth(&token)).await;
        if status == StatusCode::FORBIDDEN {
            assert_eq!(problem["reason"], "deleted", "{problem}");
            break;
        }
        assert!(status == StatusCode::OK && Instant::now() < deadline, "{status}: {problem}");
    }
    deployment.kinde.quiesce(DEADLINE).await.unwrap();
    deployment.apps[0].drained(DEADLINE).await.unwrap();
    deployment.apps[0].kill().unwrap();
    let (status, _, output) = answer(client.get(&me).bearer_auth(deployment.token(&eve))).await;
    assert!(status.is_server_error(), "without kinsync every request is refused: {status}: {output}");
    deployment.apps[0].start().await.unwrap();
}

/// Which of kinsync's headers the application sees.
async fn check_headers(deployment: &Deployment, url: &str) {
    let canary = "the caller wrote this";
    let ada = deployment.kinde.import_user(named(3)).unwrap().id;
    let mut request =
        deployment.apps[0].client().get(format!("{url}/path?query=1")).bearer_auth(deployment.token(&ada));
    for name in ["user-id", "email", "org", "degraded", "profile"] {
        let name = format!("x-kinsync-{name}");
        // Applications behind CGI, WSGI or Rack read the last two as the first.
        for name in
            [name.clone(), name.to_ascii_uppercase(), name.replace('-', "_"), name.replacen('-', "_", 1)]
        {
            request = request.header(name, canary);
        }
    }
    let head = request.send().await.unwrap().text().await.unwrap();
    assert!(!head.contains(canary), "{head}");
    assert!(head.starts_with("GET /path?query=1 "), "{head}");
    let values = |wanted: &str| -> Vec<_> {
        let headers = head.lines().filter_map(|line| line.split_once(':'));
        headers.filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim()).collect()
    };
    assert_eq!(values("x-kinsync-user-id"), [ada.as_str()]);
    assert!(values("x-kinsync-degraded").concat().is_empty(), "the store is available: {head}");
}

async fn check_behind(proxy: Proxy) {
    let mut deployment = Deployment::start(TestMongo::shared().await, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let (_echoing, url) = proxy.start(&deployment, echo(), folder.path()).await;
    check_headers(&deployment, &url).await;
    let (_application, port) = application(&deployment, None).await;
    let (_running, url) = proxy.start(&deployment, port, folder.path()).await;
    check(&mut deployment, &url).await;
}

/// What kinsync itself answers about a user, once it knows everything: the first requests of a process may be degraded.
pub(crate) async fn identity(deployment: &Deployment, token: &str) -> [(&'static str, String); 4] {
    let (app, deadline) = (&deployment.apps[0], Instant::now() + DEADLINE);
    loop {
        let answer = app.client().get(app.url("/auth/verify")).bearer_auth(token).send().await.unwrap();
        let value = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let identity = ["x-kinsync-user-id", "x-kinsync-org", "x-kinsync-roles", "x-kinsync-permissions"]
            .map(|name| (name, value(name)));
        if identity.iter().all(|(_, value)| !value.is_empty()) {
            return identity;
        }
        assert!(Instant::now() < deadline, "an absent one would not be noticed: {identity:?}");
    }
}

/// The headers of kinsync that an application behind the proxy sees, and which requests of a path that needs a role it sees.
async fn check_roles(proxy: Proxy) {
    let deployment = Deployment::comparing_roles().await;
    let org = deployment.kinde.config().org_code.clone();
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let (ada, eve) = (
        deployment.kinde.import_user(named(1)).unwrap().id,
        deployment.kinde.import_user(named(2)).unwrap().id,
    );
    let join = |user: &str, roles: &[&str], permissions: &[&str]| {
        deployment.kinde.add_to_organization(user, &org, &keys(roles), &keys(permissions)).unwrap();
    };
    join(&ada, &["admin", "über,admin"], &["delete:things"]);
    join(&eve, &["viewer"], &[]);
    for user in [&ada, &eve] {
        deployment.until_stored(user, bson::doc! { "organizations.roles": { "$exists": true } }).await;
    }
    // The permissions of a member with roles are known when those of the roles are.
    deployment.admin(reqwest::Method::POST, "/api/admin/reconcile").await;
    deployment.until_stored(&ada, bson::doc! { "organizations.permissions": "delete:things" }).await;
    let folder = tempfile::tempdir().unwrap();
    let (_running, url) =
        proxy.start_edited(&deployment, echo(), folder.path(), with_a_path_that_needs_a_role).await;
    let get = async |path: &str, user: &str| {
        let request = deployment.apps[0].client().get(format!("{url}{path}"));
        let answer = request.bearer_auth(deployment.token(user)).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    identity(&deployment, &deployment.token(&ada)).await;
    let (status, head) = get("/path?role=nobody&text=a", &ada).await;
    assert_eq!(status, StatusCode::OK, "the query of a client requires nothing: {head}");
    let value = |head: &str, name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|line| line.0.eq_ignore_ascii_case(name))
            .map(|line| line.1.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(value(&head, "x-kinsync-org"), [org.as_str()]);
    assert_eq!(value(&head, "x-kinsync-roles"), ["admin,%C3%BCber%2Cadmin"]);
    assert_eq!(value(&head, "x-kinsync-permissions"), ["delete:things"]);
    for path in ["/admin", "/admin/", "/admin/users?role=viewer", "/ADMIN/users"] {
        let (status, head) = get(path, &ada).await;
        assert!(status == StatusCode::OK && head.starts_with("GET /"), "{path}: {status} {head}");
        assert_eq!(value(&head, "x-kinsync-user-id"), [ada.as_str()], "{path}");
        let (status, problem) = get(path, &eve).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}: {problem}");
        let problem: Value = serde_json::from_str(&problem).unwrap();
        assert_eq!(problem["reason"], "missing_role", "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("the role `admin`"), "{problem}");
    }
    if matches!(proxy, Proxy::Envoy) {
        for path in ["/%61dmin", "//admin", "//admin//users", "/admin%2Fusers"] {
            let status = get(path, &eve).await.0;
            assert!([StatusCode::FORBIDDEN, StatusCode::BAD_REQUEST].contains(&status), "{path}: {status}");
        }
    }
    assert_eq!(get("/administrators", &eve).await.0, StatusCode::OK, "another path");
    let without = deployment.apps[0].client().get(format!("{url}/admin")).send().await.unwrap();
    assert_eq!(without.status(), StatusCode::UNAUTHORIZED);
    join(&ada, &[], &[]);
    let deadline = Instant::now() + DEADLINE;
    while get("/admin", &ada).await.0 != StatusCode::FORBIDDEN {
        assert!(Instant::now() < deadline, "a role that was taken away still counts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_a_path_can_need_a_role() {
    check_roles(Proxy::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_a_path_can_need_a_role() {
    check_roles(Proxy::Caddy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_traefik_a_path_can_need_a_role() {
    check_roles(Proxy::Traefik).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_envoy_a_path_can_need_a_role() {
    check_roles(Proxy::Envoy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_the_application_meets_only_users_that_it_can_find() {
    check_behind(Proxy::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_the_application_meets_only_users_that_it_can_find() {
    check_behind(Proxy::Caddy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_traefik_the_application_meets_only_users_that_it_can_find() {
    check_behind(Proxy::Traefik).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_envoy_the_application_meets_only_users_that_it_can_find() {
    check_behind(Proxy::Envoy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_calls_auth_verify_itself_finds_the_document_of_each_user() {
    let mut deployment = Deployment::start(TestMongo::shared().await, 1).await;
    let kinsync = deployment.apps[0].url("");
    let (_application, port) = application(&deployment, Some(&kinsync)).await;
    check(&mut deployment, &format!("http://127.0.0.1:{port}")).await;
}
