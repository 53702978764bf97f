//! The real binary as a child process, and plain sockets to talk to it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

pub(crate) const SECRET: &str = "a-secret-of-more-than-16-characters";
pub(crate) const TOKEN: &str = "a-token-of-more-than-16-characters";
/// The request of the first try, as the documentation has it.
pub(crate) const BODY: &str = r#"{"type":"user.created","event_id":"event_1","timestamp":"2026-01-01T00:00:00Z","user":{"id":"test","email":"test@example.com"}}"#;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_mins(2);

/// `kinsync serve` on a free port and a folder of its own.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    lines: mpsc::Receiver<String>,
    pub(crate) folder: tempfile::TempDir,
}

/// The binary, with these variables and no others.
pub(crate) fn kinsync(args: &[&str], vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinsync"));
    command.env_clear().args(args).envs(vars.iter().copied());
    command
}

impl Server {
    /// With a secret and an admin token, and these variables beside them; an empty one is not set.
    pub(crate) fn start(vars: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), vars)
    }

    fn start_in(folder: tempfile::TempDir, vars: &[(&str, &str)]) -> Self {
        let usual = [
            ("PORT", "0"),
            ("KINDE_WEBHOOK_SECRET", SECRET),
            ("KINSYNC_ADMIN_TOKEN", TOKEN),
            ("KINSYNC_DATA_DIR", folder.path().to_str().unwrap()),
        ];
        let mut command = kinsync(&["serve"], &usual);
        let mut child = command.envs(vars.iter().copied()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(child.stderr.take().unwrap());
        let address = loop {
            let line = lines.recv_timeout(DEADLINE).expect("the server prints its address");
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            if line["message"] == "listening" {
                break line["address"].as_str().unwrap().parse().unwrap();
            }
        };
        Self { child, address, lines, folder }
    }

    /// Kills the server with SIGKILL and starts it in the same folder, with these variables and on another port.
    pub(crate) fn kill_and_restart(&mut self, vars: &[(&str, &str)]) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        *self = Self::start_in(folder, vars);
    }

    /// Stops the server with SIGTERM and starts it in the same folder and at the same port, with these variables.
    pub(crate) fn restart(&mut self, vars: &[(&str, &str)]) {
        self.terminate();
        assert!(self.child.wait().unwrap().success());
        let (folder, port) =
            (std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap()), self.address.port());
        *self = Self::start_in(folder, &[vars, &[("PORT", &port.to_string())]].concat());
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// One request on its own connection: status and body.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String) {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        // A server that has read enough may close before everything is sent.
        _ = write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
        answer(&mut stream)
    }

    /// One request without a body on its own connection: status, head and body.
    pub(crate) fn exchange(&self, method: &str, path: &str) -> (u16, String, String) {
        self.exchange_with(method, path, &[])
    }

    /// The same with these headers.
    pub(crate) fn exchange_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (u16, String, String) {
        let mut stream = self.connect();
        let headers =
            headers.iter().fold(String::new(), |head, (name, value)| head + name + ": " + value + "\r\n");
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (status, format!("{head}\r\n"), body.to_owned())
    }

    /// A GET with the admin token.
    pub(crate) fn admin(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.request("GET", path, &[("authorization", &format!("Bearer {TOKEN}"))], "");
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// A delivery with the right signature.
    pub(crate) fn deliver(&self, body: &str) -> (u16, String) {
        let signature = kinde::sign::hmac_hex(SECRET, body.as_bytes());
        self.request("POST", "/api/webhook", &[("x-kinde-signature", &signature)], body)
    }

    /// Requests an admin route until the response is as expected.
    pub(crate) fn wait_for(&self, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let (status, value) = self.admin(path);
            if wanted(status, &value) {
                return value;
            }
            assert!(began.elapsed() < DEADLINE, "{path} stays at {status} {value}");
            thread::yield_now();
        }
    }

    /// Waits for a log line with this text.
    pub(crate) fn wait_for_line(&self, text: &str) {
        while !self.lines.recv_timeout(DEADLINE).expect(text).contains(text) {}
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let done = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Waits for the end: the status and what was logged since the start.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        let lines: Vec<String> = self.lines.iter().collect();
        (self.child.wait().unwrap(), lines)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn lines_of(stderr: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// What comes until the other side closes: status and body. Status 0: nothing came.
pub(crate) fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    // A reset after the answer is the other side's way of not reading what we still send.
    _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}
