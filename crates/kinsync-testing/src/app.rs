//! Runs the real kinsync binary on a folder of its own, and sends it HTTP requests.
//!
//! A test that ends with entries in the queue or with dead letters fails, unless it declares that it leaves some.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

/// The HMAC secret of every test application.
pub const SECRET: &str = "a secret of the tests that is long enough";

/// The admin token of every test application.
pub const ADMIN_TOKEN: &str = "an admin token of the tests";

/// Time after which the client closes an idle connection.
const CLIENT_IDLE: Duration = Duration::from_secs(2);

/// Longest time for a start, a stop or a request.
const DEADLINE: Duration = Duration::from_mins(2);

/// Longest time in which what a test caused last is applied.
const APPLIED_WITHIN: Duration = Duration::from_secs(30);

/// The real binary, running or killed.
#[derive(Debug)]
pub struct TestApp {
    binary: PathBuf,
    folder: TempDir,
    settings: BTreeMap<String, String>,
    address: SocketAddr,
    client: reqwest::Client,
    child: Option<Child>,
    leaves_entries: bool,
}

impl TestApp {
    /// An application on the embedded queue and store, not started yet. `binary` is usually
    /// `env!("CARGO_BIN_EXE_kinsync")`.
    pub fn new(binary: impl AsRef<Path>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, crate::free_port()));
        let mut app = Self {
            binary: binary.as_ref().to_owned(),
            settings: BTreeMap::new(),
            address,
            // Shorter than the server keeps an idle connection, as for any client: a request on a connection that the server
            // closes at that moment fails.
            client: reqwest::Client::builder().timeout(DEADLINE).pool_idle_timeout(CLIENT_IDLE).build()?,
            child: None,
            leaves_entries: false,
            folder,
        };
        app.set("PORT", address.port().to_string());
        app.set("KINSYNC_DATA_DIR", app.folder.path().join("data").display().to_string());
        app.set("KINDE_WEBHOOK_SECRET", SECRET);
        app.set("KINSYNC_ADMIN_TOKEN", ADMIN_TOKEN);
        app.set("KINSYNC_LOG_FORMAT", "json");
        Ok(app)
    }

    /// Sets an environment variable for the next start.
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.settings.insert(name.to_owned(), value.into());
        self
    }

    /// Uses another binary for the next start.
    pub fn replace_binary(&mut self, binary: impl AsRef<Path>) -> &mut Self {
        binary.as_ref().clone_into(&mut self.binary);
        self
    }

    /// Keeps users in this MongoDB instead.
    pub fn with_mongodb(&mut self, uri: &str, database: &str) -> &mut Self {
        self.set("MONGODB_URI", uri).set("KINSYNC_DATABASE", database)
    }

    /// Declares that the test leaves entries or dead letters behind.
    pub fn leaves_entries(&mut self) -> &mut Self {
        self.leaves_entries = true;
        self
    }

    /// Starts the process and waits until it accepts deliveries.
    pub async fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.binary);
        command.arg("serve").env_clear().envs(&self.settings).current_dir(self.folder.path());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child =
            Some(command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?);
        self.until("it is ready", DEADLINE, async |app| app.is_ready().await).await
    }

    async fn is_ready(&mut self) -> Result<bool> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            bail!("it ended with {status} while starting; its log:\n{}", self.log());
        }
        let answer = self.client.get(self.url("/health/ready")).send().await;
        Ok(answer.is_ok_and(|answer| answer.status().is_success()))
    }

    /// Kills the process with SIGKILL: nothing of it runs any more when this returns.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("it is not running")?;
        let sent = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status()?;
        anyhow::ensure!(sent.success(), "cannot send SIGTERM");
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                bail!("it did not end within {DEADLINE:?}; its log:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of a route.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A client that keeps its connections.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Everything it logged since the first start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Delivers a body, signed with HMAC-SHA256. Answers the status; an error when the process
    /// did not answer.
    pub async fn deliver(&self, body: impl Into<String>) -> Result<u16> {
        let body = body.into();
        let answer = self
            .client
            .post(self.url("/api/webhook"))
            .header("content-type", "application/json")
            .header("x-kinde-signature", sign(SECRET, body.as_bytes()))
            .body(body)
            .send()
            .await?;
        let status = answer.status().as_u16();
        answer.bytes().await?;
        Ok(status)
    }

    /// What an admin route answers, as JSON; `None` for a 404.
    pub async fn admin(&self, path: &str) -> Result<Option<Value>> {
        let answer =
            self.client.get(self.url(&format!("/api/admin{path}"))).bearer_auth(ADMIN_TOKEN).send().await?;
        if answer.status().as_u16() == 404 {
            return Ok(None);
        }
        Ok(Some(answer.error_for_status()?.json().await?))
    }

    /// What /health answers.
    pub async fn health(&self) -> Result<Value> {
        Ok(self.client.get(self.url("/health")).send().await?.json().await?)
    }

    /// Waits until the store has its indexes: until then requests of users are degraded.
    pub async fn prepared(&mut self) -> Result<()> {
        self.until("the store is prepared", DEADLINE, async |app| {
            let health = app.health().await?;
            Ok(health.pointer("/components/store/prepared") == Some(&Value::Bool(true)))
        })
        .await
    }

    /// Waits until the queue is empty.
    pub async fn drained(&mut self, within: Duration) -> Result<()> {
        self.until("the queue is empty", within, async |app| {
            Ok(app.health().await.is_ok_and(|health| depth(&health) == Some(0)))
        })
        .await
    }

    /// Waits until something is so, asking every few milliseconds.
    pub async fn until(
        &mut self,
        what: &str,
        within: Duration,
        mut is_so: impl AsyncFnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        while !is_so(self).await? {
            if Instant::now() > deadline {
                bail!("not within {within:?}: {what}; the log:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Why the test should fail, if it should. What the test has just caused may still be applied.
    fn left_behind(&self) -> Option<String> {
        let deadline = Instant::now() + APPLIED_WITHIN;
        loop {
            let health = blocking_health(self.address).ok()?;
            let depth = depth(&health)?;
            let dead = health.pointer("/components/queue/deadLetters").and_then(Value::as_u64)?;
            if depth + dead == 0 {
                return None;
            }
            if dead > 0 || Instant::now() > deadline {
                return Some(format!("{depth} entries and {dead} dead letters are left behind"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        let left = if self.child.is_some() && !self.leaves_entries { self.left_behind() } else { None };
        let killed = self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of kinsync ---\n{}", self.log());
            return;
        }
        assert!(killed.is_ok(), "cannot kill kinsync: {killed:?}");
        assert!(left.is_none(), "{}", left.unwrap_or_default());
        let log = self.log();
        assert!(!log.contains("panicked"), "kinsync panicked:\n{log}");
    }
}

fn depth(health: &Value) -> Option<u64> {
    health.pointer("/components/queue/depth").and_then(Value::as_u64)
}

/// `GET /health` without a runtime: `drop` cannot wait for a future.
fn blocking_health(address: SocketAddr) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET /health HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let start = answer.find('{').context("no JSON in the answer")?;
    let end = answer.rfind('}').context("no JSON in the answer")?;
    Ok(serde_json::from_str(&answer[start..=end])?)
}

/// HMAC-SHA256 in hexadecimal, made apart from the code that verifies it.
pub fn sign(secret: &str, body: &[u8]) -> String {
    use std::fmt::Write as _;

    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, body);
    tag.as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
