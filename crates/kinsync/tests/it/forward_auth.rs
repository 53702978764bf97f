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

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A configuration of the guide, with other ports.
fn configuration(name: &str, kinsync: u16, application: u16, front: u16) -> String {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/guides/forward-auth").join(name)).unwrap();
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
        let (kinsync, front) = (deployment.apps[0].address().port(), free_port());
        let mut command = match self {
            Self::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| {
                    format!("{kind}_temp_path {};", folder.join(format!("{front}.{kind}")).display())
                });
                let site = configuration("nginx.conf", kinsync, application, front);
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
                let text = configuration("Caddyfile", kinsync, application, front);
                let file = folder.join(format!("{front}.Caddyfile"));
                fs::write(&file, format!("{{\n\tadmin off\n}}\n{text}")).unwrap();
                let mut caddy = Command::new("caddy");
                caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(file).env("HOME", folder);
                caddy
            }
            Self::Traefik => {
                let text = configuration("traefik-dynamic.yaml", kinsync, application, front);
                let file = folder.join(format!("{front}.yaml"));
                fs::write(&file, &text).unwrap();
                let documented = text.lines().find_map(|line| line.strip_prefix("#   traefik ")).unwrap();
                let mut traefik = installed_program("traefik");
                traefik.args(documented.replace("traefik-dynamic.yaml", file.to_str().unwrap()).split(' '));
                traefik.current_dir(folder);
                traefik
            }
            Self::Envoy => {
                let text = configuration("envoy.yaml", kinsync, application, front);
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
