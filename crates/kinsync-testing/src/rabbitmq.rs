//! Real RabbitMQ servers for tests.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::{Command, Output},
    sync::{Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::Instant;

use crate::shell::Shell;

/// How long a server may take to start.
const START: Duration = Duration::from_mins(5);

/// Supervises a server. Each server is a session of its own with a name server of its own, so that neither it nor the node of this
/// machine sees the other.
const SUPERVISOR: &str = r#"
trap '' INT TERM HUP
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 </dev/null >/dev/null 2>&1 & names=$!
server=/usr/lib/rabbitmq/bin/rabbitmq-server
[ -x "$server" ] || server=rabbitmq-server
while read -r command; do
  case $command in
    start) setsid "$server" </dev/null >>"$HOME/log" 2>&1 & pid=$! ;;
    stop) kill -KILL "-$pid"; wait "$pid" 2>/dev/null ;;
    pause)
      kill -STOP "-$pid"
      # Its threads stop one after another: until the last one has, it may still answer.
      for process in $(pgrep -g "$pid"); do
        while grep -qs '^State:[[:space:]]*[RSD]' /proc/"$process"/task/*/status; do :; done
      done ;;
    resume) kill -CONT "-$pid" ;;
    alive) case $(ps -o stat= -p "$pid") in ''|Z*) echo no; continue ;; esac ;;
  esac
  echo yes
done
kill -KILL "-$pid" "$names" 2>/dev/null
"#;

/// A running RabbitMQ.
#[derive(Debug)]
pub struct TestRabbitmq {
    port: u16,
    supervisor: Mutex<Shell>,
    dir: TempDir,
    settings: Vec<(&'static str, String)>,
}

impl TestRabbitmq {
    /// The server that all tests of this process share. Each uses a prefix of its own, and none stops it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<TestRabbitmq> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts a server for one test.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a server with these further lines of its configuration.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(lines: &str) -> Self {
        // Another process may take a port before the server binds it.
        let started = std::iter::repeat_with(|| Self::prepare(lines)).take(5).find(Self::starts);
        started.expect("rabbitmq-server starts with one of five sets of ports")
    }

    fn prepare(lines: &str) -> Self {
        let dir = TempDir::with_prefix("kinsync-rabbitmq-");
        let dir = dir.expect("the folder for temporary files can be written");
        let [port, names, distribution] = std::array::from_fn(|_| crate::free_port());
        let file = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(file("plugins"), "[].\n").expect("the folder can be written");
        std::fs::write(file("rabbitmq.conf"), format!("{CONFIG}{lines}")).expect("the folder can be written");
        let settings = vec![
            ("HOME", file("")),
            ("ERL_EPMD_PORT", names.to_string()),
            ("RABBITMQ_NODENAME", format!("kinsync{port}@localhost")),
            ("RABBITMQ_NODE_PORT", port.to_string()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_DIST_PORT", distribution.to_string()),
            ("RABBITMQ_MNESIA_BASE", file("mnesia")),
            ("RABBITMQ_LOG_BASE", file("logs")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("plugins")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            // One scheduler: a start with one for each core takes longer where tests share few cores.
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1 +sbwt none".into()),
        ];
        let shell = Shell::new(SUPERVISOR, |sh| _ = sh.envs(settings.iter().cloned()));
        Self { port, supervisor: Mutex::new(shell), dir, settings }
    }

    /// Address of the server.
    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.port)
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

    /// Stops the process of the server, which then neither answers nor closes its connections.
    pub fn pause(&self) {
        self.supervisor().send("pause");
    }

    /// Continues it.
    pub fn resume(&self) {
        self.supervisor().send("resume");
    }

    /// Starts the server again, on the files that it left.
    ///
    /// # Panics
    /// When it does not start.
    pub fn launch(&self) {
        assert!(self.starts(), "rabbitmq-server does not start: {}", self.log());
    }

    /// `false` when the server ends, or does not answer in time.
    fn starts(&self) -> bool {
        self.supervisor().start(START, || self.answers())
    }

    /// Waits until the server has saved which files belong to the queue with this prefix. RabbitMQ 3.10 does so half a second after a
    /// queue was declared; killed before, it starts the queue empty and without a leader.
    ///
    /// # Panics
    /// When it does not.
    pub fn until_saved(&self, prefix: &str) {
        let (node, name) = (format!("kinsync{}@localhost", self.port), format!("{prefix}.queue"));
        let names = self.dir.path().join("mnesia").join(&node).join("quorum").join(&node).join("names.dets");
        let is_saved = || {
            let content = std::fs::read(&names).unwrap_or_default();
            content.windows(name.len()).any(|part| part == name.as_bytes())
        };
        let deadline = Instant::now() + START;
        while !is_saved() {
            assert!(Instant::now() < deadline, "{} does not name {name}", names.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `rabbitmqctl` with these arguments. Takes seconds. Repeated when it fails: it gives up after seconds on a busy machine.
    ///
    /// # Panics
    /// When it fails.
    pub fn control(&self, arguments: &[&str]) -> String {
        let installed = std::path::Path::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
        let program = if installed.exists() { installed } else { "rabbitmqctl".as_ref() };
        let deadline = Instant::now() + START;
        loop {
            let ran = Command::new(program).args(arguments).envs(self.settings.iter().cloned()).output();
            let Output { status, stdout, stderr } = ran.expect("rabbitmqctl is installed");
            if status.success() {
                return String::from_utf8_lossy(&stdout).into_owned();
            }
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&stderr));
        }
    }

    /// Whether it answers the header of the protocol. The port is open before the server is ready.
    fn answers(&self) -> bool {
        let answer = || -> std::io::Result<u8> {
            let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            connection.set_read_timeout(Some(Duration::from_secs(1)))?;
            connection.write_all(b"AMQP\x00\x00\x09\x01")?;
            let mut first = [0];
            connection.read_exact(&mut first)?;
            Ok(first[0])
        };
        // A frame of type 1: the server starts the connection.
        answer().is_ok_and(|first| first == 1)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn supervisor(&self) -> MutexGuard<'_, Shell> {
        self.supervisor.lock().expect("no test panics with the lock")
    }
}

/// The usual alarm for free space would stop publishers on a disk that tests filled.
const CONFIG: &str = "log.console = true\nlog.file = false\ndisk_free_limit.absolute = 10MB\n";
