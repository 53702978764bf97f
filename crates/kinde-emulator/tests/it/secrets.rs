//! The real binary at its most verbose level: neither its log nor its output holds a secret.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use url::Url;

use crate::receiver::{DEADLINE, Receiver};

const BINARY: &str = env!("CARGO_BIN_EXE_kinde-emulator");
const CALLBACK: &str = "http://localhost:3000/callback";
const CLIENT_SECRET: &str = "canary-of-the-machine-4f1c";
const APPLICATION_SECRET: &str = "canary-of-the-application-4f1c";
const HMAC_SECRET: &str = "canary-of-the-relay-4f1c";
/// `whsec_` and base64.
const STANDARD_SECRET: &str = "whsec_Y2FuYXJ5LW9mLXRoZS1zdGFuZGFyZC00ZjFj";
/// In a place where the emulator expects something else.
const MISPLACED: &str = "canary-in-the-wrong-place-4f1c";

fn settings(receiver: &Receiver) -> String {
    let url = &receiver.url;
    format!(
        r#"
        client_secret = "{CLIENT_SECRET}"
        [tokens]
        email_in_access_token = true
        [[applications]]
        client_id = "back"
        client_secret = "{APPLICATION_SECRET}"
        redirect_uris = ["{CALLBACK}"]
        [[webhooks]]
        endpoint = "{url}"
        [[webhooks]]
        endpoint = "{url}"
        scheme = {{ type = "hmac", secret = "{HMAC_SECRET}" }}
        [[webhooks]]
        endpoint = "{url}"
        scheme = {{ type = "standard_webhooks", secret = "{STANDARD_SECRET}" }}
        [[webhooks]]
        endpoint = "http://127.0.0.1:9/nothing-listens-here"
        "#
    )
}

/// A running emulator that logs everything, and the secrets that it has seen or made.
struct Verbose {
    child: Child,
    stdout: BufReader<ChildStdout>,
    greeting: String,
    issuer: String,
    client: reqwest::Client,
    secrets: Vec<String>,
}

impl Verbose {
    async fn start(config: &str) -> Self {
        let mut child = Command::new(BINARY)
            .args(["serve", "--port", "0", "--json", "--config", config])
            .env("RUST_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        tokio::time::timeout(DEADLINE, stdout.read_line(&mut greeting)).await.unwrap().unwrap();
        let issuer = serde_json::from_str::<Value>(&greeting).unwrap()["issuer"].as_str().unwrap().to_owned();
        let client = reqwest::Client::builder().timeout(DEADLINE).no_proxy();
        let client = client.redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let secrets = [CLIENT_SECRET, APPLICATION_SECRET, HMAC_SECRET, STANDARD_SECRET, MISPLACED];
        let secrets = secrets.map(str::to_owned).into();
        Self { child, stdout, greeting, issuer, client, secrets }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.issuer)
    }

    async fn json(&self, request: reqwest::RequestBuilder) -> Value {
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn control(&self, path: &str, body: Value) -> Value {
        self.json(self.client.post(self.url(&format!("/_emulator{path}"))).json(&body)).await
    }

    fn token_request(&self, form: &[(&str, &str)]) -> reqwest::RequestBuilder {
        self.client.post(self.url("/oauth2/token")).form(form)
    }

    /// Keeps the tokens of a response as secrets.
    fn keep(&mut self, response: &Value) {
        let tokens = ["access_token", "id_token", "refresh_token", "token"];
        let found = tokens.into_iter().filter_map(|name| response[name].as_str().map(str::to_owned));
        let before = self.secrets.len();
        self.secrets.extend(found);
        assert!(self.secrets.len() > before, "no token in {response}");
    }

    /// A machine token, by a form and by basic authentication, and a refusal of each.
    async fn machine_tokens(&mut self) -> String {
        let greeting: Value = serde_json::from_str(&self.greeting).unwrap();
        let of = |name: &str| greeting[name].as_str().unwrap().to_owned();
        let (id, audience) = (of("client_id"), of("audience"));
        let grant = [("grant_type", "client_credentials"), ("audience", audience.as_str())];
        let mut last = String::new();
        for secret in [CLIENT_SECRET, MISPLACED] {
            let form = [grant.as_slice(), &[("client_id", &id), ("client_secret", secret)]].concat();
            let by_form = self.json(self.token_request(&form)).await;
            let by_basic = self.json(self.token_request(&grant).basic_auth(&id, Some(secret))).await;
            if secret == MISPLACED {
                assert_eq!(
                    (&by_form["error"], &by_basic["error"]),
                    (&json!("invalid_client"), &json!("invalid_client"))
                );
                continue;
            }
            self.keep(&by_form);
            self.keep(&by_basic);
            last = by_form["access_token"].as_str().unwrap().to_owned();
        }
        last
    }

    /// Signs a user in with a code, refreshes, introspects, revokes and signs out.
    async fn login(&mut self, user: &str, machine_token: &str) {
        let query = [("client_id", "back"), ("redirect_uri", CALLBACK), ("response_type", "code")];
        let query = query.into_iter().chain([("scope", "openid offline"), ("state", "s"), ("nonce", "n")]);
        let mut url: Url = self.url("/oauth2/auth").parse().unwrap();
        url.query_pairs_mut().extend_pairs(query);
        let response = self.client.post(url).form(&[("user", user)]).send().await.unwrap();
        let cookie = response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        let location: Url = response.headers()["location"].to_str().unwrap().parse().unwrap();
        let code = location.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
        self.secrets.extend([cookie.split_once('=').unwrap().1.to_owned(), code.clone()]);
        let credentials = [("client_id", "back"), ("client_secret", APPLICATION_SECRET)];
        let redeem = [("grant_type", "authorization_code"), ("code", &code), ("redirect_uri", CALLBACK)];
        let issued = self.json(self.token_request(&[redeem.as_slice(), &credentials].concat())).await;
        self.keep(&issued);
        let refresh =
            [("grant_type", "refresh_token"), ("refresh_token", issued["refresh_token"].as_str().unwrap())];
        let refreshed = self.json(self.token_request(&[refresh.as_slice(), &credentials].concat())).await;
        self.keep(&refreshed);
        let again = self.json(self.token_request(&[redeem.as_slice(), &credentials].concat())).await;
        assert_eq!(again["error"], "invalid_grant", "a code is used once");
        let token = issued["access_token"].as_str().unwrap();
        let profile = self.client.get(self.url("/oauth2/v2/user_profile")).bearer_auth(token);
        assert_eq!(self.json(profile).await["sub"], user);
        for path in ["/oauth2/introspect", "/oauth2/revoke"] {
            let form = [credentials.as_slice(), &[("token", token)]].concat();
            let request = self.client.post(self.url(path)).bearer_auth(machine_token).form(&form);
            assert_eq!(request.send().await.unwrap().status(), 200, "{path}");
        }
        let logout = self.client.get(self.url("/logout")).header("cookie", cookie);
        assert_eq!(logout.send().await.unwrap().status(), 200);
    }

    async fn management(&self, token: &str) {
        for token in [token, MISPLACED] {
            for path in ["/api/v1/users", "/api/v1/webhooks", "/api/v1/user?id=kp_unknown"] {
                self.json(self.client.get(self.url(path)).bearer_auth(token)).await;
            }
        }
    }

    /// Requests that cannot be decoded: an error message may quote their values.
    async fn malformed(&self) {
        let webhooks = self.url("/_emulator/webhooks");
        let bodies = [
            json!({"endpoint": "http://127.0.0.1:9", "scheme": MISPLACED}),
            json!({"endpoint": MISPLACED}),
            json!({"endpoint": "http://127.0.0.1:9", "scheme": {"type": MISPLACED}}),
            json!(MISPLACED),
        ];
        for body in bodies {
            let response = self.client.post(&webhooks).json(&body).send().await.unwrap();
            assert!(response.status().is_client_error(), "{body}");
        }
        let token = self.client.post(self.url("/oauth2/token"));
        let form = format!("client_secret={MISPLACED}&client_secret={MISPLACED}");
        let form = token.header("content-type", "application/x-www-form-urlencoded").body(form);
        assert!(form.send().await.unwrap().status().is_client_error());
        let url = self.url(&format!("/oauth2/auth?client_id={MISPLACED}&code={MISPLACED}"));
        assert!(self.client.get(url).send().await.unwrap().status().is_client_error());
    }

    /// Stops it and returns what it has printed and logged.
    async fn end(mut self) -> (String, String) {
        let mut logged = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        let mut printed = self.greeting;
        let process = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-INT", &process]).status().await.unwrap().success());
        let read = async {
            tokio::try_join!(stderr.read_to_string(&mut logged), self.stdout.read_to_string(&mut printed))
        };
        tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap();
        (printed, logged)
    }
}

/// Which of these texts the output holds.
fn found<'a>(secrets: &'a [String], output: &str) -> Vec<&'a str> {
    secrets.iter().map(String::as_str).filter(|secret| output.contains(secret)).collect()
}

#[tokio::test]
async fn no_secret_is_logged_or_printed_at_the_most_verbose_level() {
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("emulator.toml");
    std::fs::write(&config, settings(&receiver)).unwrap();
    let mut emulator = Verbose::start(config.to_str().unwrap()).await;
    let ada = emulator.control("/users", json!({"email": "ada@example.com", "first_name": "Ada"})).await;
    let machine_token = emulator.machine_tokens().await;
    emulator.login(ada["id"].as_str().unwrap(), &machine_token).await;
    emulator.management(&machine_token).await;
    emulator.malformed().await;
    let minted = emulator.control("/tokens/access", json!({"user": ada["id"]})).await;
    emulator.keep(&minted);
    // Whoever has a delivery can send it again.
    for delivery in receiver.wait_for(3).await {
        let body = String::from_utf8(delivery.body.to_vec()).unwrap();
        let signatures =
            ["x-kinde-signature", "webhook-signature"].map(|name| delivery.header(name).to_owned());
        emulator.secrets.extend([body].into_iter().chain(signatures).filter(|text| !text.is_empty()));
    }
    // Whatever prints a private key prints its modulus too.
    let keys = emulator.json(emulator.client.get(emulator.url("/.well-known/jwks.json"))).await;
    emulator.secrets.push(keys["keys"][0]["n"].as_str().unwrap()[..40].to_owned());
    emulator.secrets.extend(["PRIVATE KEY", "\"d\":"].map(str::to_owned));
    let secrets = emulator.secrets.clone();
    let (printed, logged) = emulator.end().await;
    assert!(logged.contains("TRACE") && logged.contains("delivery attempt answered"), "{logged}");
    assert_eq!(found(&secrets, &logged), Vec::<&str>::new(), "in the log:\n{logged}");
    assert_eq!(found(&secrets, &printed), Vec::<&str>::new(), "in the output:\n{printed}");
}

#[tokio::test]
async fn an_error_in_the_settings_names_the_line_and_quotes_no_value() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("emulator.toml");
    let check = async |text: String, expected: &str| {
        std::fs::write(&config, text).unwrap();
        let serve = ["serve", "--port", "0", "--config", config.to_str().unwrap()];
        let Output { status, stderr, .. } = Command::new(BINARY).args(serve).output().await.unwrap();
        let printed = String::from_utf8(stderr).unwrap();
        assert!(!status.success() && printed.contains(expected) && !printed.contains(MISPLACED), "{printed}");
    };
    check(format!("seed = 1\nclient_secret = {MISPLACED}\n"), "line 2: ").await;
    check(format!("port = \"{MISPLACED}\"\n"), "line 1: invalid type: string \"…\", expected u16").await;
    check(format!("client_secrets = \"{MISPLACED}\"\n"), "unknown field `client_secrets`").await;
}
