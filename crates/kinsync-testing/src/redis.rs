//! Real Redis servers for tests.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    sync::{Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use tempfile::TempDir;

use crate::shell::Shell;

/// How long a server may take to start.
const START: Duration = Duration::from_mins(2);

/// Supervises a server. The first argument is the folder, the rest goes to the server.
const SUPERVISOR: &str = r#"
trap '' INT TERM HUP
dir=$1; shift
while read -r command; do
  case $command in
    start) redis-server "$@" </dev/null >>"$dir/log" 2>&1 & pid=$! ;;
    stop) kill -KILL "$pid"; wait "$pid" 2>/dev/null ;;
    pause)
      kill -STOP "$pid"
      # Its threads stop one after another: until the last one has, it may still answer.
      while grep -qs '^State:[[:space:]]*[RSD]' /proc/"$pid"/task/*/status; do :; done ;;
    resume) kill -CONT "$pid" ;;
    alive) case $(ps -o stat= -p "$pid") in ''|Z*) echo no; continue ;; esac ;;
  esac
  echo yes
done
kill -KILL "$pid" 2>/dev/null
"#;

/// Options of a server that writes each change to its file before it answers.
pub const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

/// A running Redis.
#[derive(Debug)]
pub struct TestRedis {
    port: u16,
    supervisor: Mutex<Shell>,
    dir: TempDir,
}

impl TestRedis {
    /// The server that all tests of this process share. Each uses a prefix of its own, and none stops it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<TestRedis> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(DURABLE))
    }

    /// Starts a server for one test, with these options.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(options: &[&str]) -> Self {
        first_that_starts(|| Self::prepare(options))
    }

    fn prepare(options: &[&str]) -> Self {
        let (port, dir) = (crate::free_port(), folder());
        let (number, path) = (port.to_string(), dir.path().display().to_string());
        let usual = ["--port", &number, "--bind", "127.0.0.1", "--dir", &path, "--save", ""];
        Self::supervise(port, &[&usual, options].concat(), dir)
    }

    /// Starts a Redis Sentinel that watches the primary on this port, with these other lines of its file. `quorum` sentinels have to agree that the
    /// primary fails.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_sentinel(name: &str, primary: u16, quorum: u8, lines: &[&str]) -> Self {
        first_that_starts(|| Self::prepare_sentinel(name, primary, quorum, lines))
    }

    fn prepare_sentinel(name: &str, primary: u16, quorum: u8, lines: &[&str]) -> Self {
        let (port, dir) = (crate::free_port(), folder());
        let file = dir.path().join("sentinel.conf");
        let mut content = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {name} 127.0.0.1 {primary} {quorum}\n",
            dir.path().display(),
        );
        content.extend(lines.iter().map(|line| format!("{line}\n")));
        // The sentinel writes into it what it finds out.
        std::fs::write(&file, content).expect("the folder can be written");
        Self::supervise(port, &[&file.display().to_string(), "--sentinel"], dir)
    }

    /// A server that is not started yet.
    fn supervise(port: u16, arguments: &[&str], dir: TempDir) -> Self {
        let shell = Shell::new(SUPERVISOR, |sh| _ = sh.arg(dir.path()).args(arguments));
        Self { port, supervisor: Mutex::new(shell), dir }
    }

    /// Address of the server.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A prefix that no other test uses.
    pub fn prefix() -> String {
        format!("test{:016x}", crate::random::<u64>())
    }

    /// Kills the server with SIGKILL and waits for its end.
    pub fn kill(&self) {
        self.supervisor().send("stop");
    }

    /// Stops the processes of the server, which then neither answers nor closes its connections.
    pub fn pause(&self) {
        self.supervisor().send("pause");
    }

    /// Continues them.
    pub fn resume(&self) {
        self.supervisor().send("resume");
    }

    /// Starts the server again, on the files that it left.
    ///
    /// # Panics
    /// When it does not start.
    pub fn launch(&self) {
        assert!(self.starts(), "redis-server does not start: {}", self.log());
    }

    /// `false` when the server ends, or does not answer in time.
    fn starts(&self) -> bool {
        self.supervisor().start(START, || self.answers())
    }

    /// Runs one command, given as a line.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn run(&self, command: &str) -> String {
        self.ask(command).expect("the server answers")
    }

    /// Runs one command with a text as its answer, which may have many lines.
    ///
    /// # Panics
    /// When the server does not answer with a text.
    pub fn text(&self, command: &str) -> String {
        self.try_text(command).expect("the server answers with a text")
    }

    /// As [`Self::text`], for a server that may close the connection.
    pub fn try_text(&self, command: &str) -> std::io::Result<String> {
        let mut connection = self.connect()?;
        connection.write_all(format!("{command}\r\n").as_bytes())?;
        let (mut reader, mut line) = (BufReader::new(connection), String::new());
        reader.read_line(&mut line)?;
        let length = line.trim().strip_prefix('$').and_then(|length| length.parse().ok());
        let mut text = vec![0; length.ok_or(std::io::ErrorKind::InvalidData)?];
        reader.read_exact(&mut text)?;
        String::from_utf8(text).map_err(std::io::Error::other)
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        connection.set_read_timeout(Some(START))?;
        Ok(connection)
    }

    fn answers(&self) -> bool {
        self.ask("PING").is_ok_and(|answer| answer.starts_with("+PONG") || answer.starts_with("-NOAUTH"))
    }

    fn ask(&self, command: &str) -> std::io::Result<String> {
        let mut connection = self.connect()?;
        connection.write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line)?;
        Ok(line)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn supervisor(&self) -> MutexGuard<'_, Shell> {
        self.supervisor.lock().expect("no test panics with the lock")
    }
}

/// Another process may take the port of a server before the server binds it.
fn first_that_starts(prepare: impl Fn() -> TestRedis) -> TestRedis {
    let started = std::iter::repeat_with(prepare).take(5).find(TestRedis::starts);
    started.expect("redis-server starts on one of five ports")
}

fn folder() -> TempDir {
    TempDir::with_prefix("kinsync-redis-").expect("the folder for temporary files can be written")
}
