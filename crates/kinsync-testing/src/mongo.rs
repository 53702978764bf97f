//! Real MongoDB servers for tests: one for the whole test process, or one of a test's own that
//! may be stopped, paused and started again.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use bson::{Document, doc};
use mongodb::Client;
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep},
};

use crate::shell::Shell;

/// How long a server may take to start and to elect itself.
const START: Duration = Duration::from_mins(3);

/// What makes a server a member of a replica set.
const SET: &str = "--replSet rs0";

/// The same, with files in which a text can be found: nothing is compressed, the files of a database are in a folder of its name, and
/// no former version of a document is kept for readers of the past.
const READABLE: &str = "--replSet rs0 --directoryperdb --wiredTigerCollectionBlockCompressor none \
     --wiredTigerIndexPrefixCompression false --setParameter minSnapshotHistoryWindowInSeconds=0";

/// Supervises a server.
const SUPERVISOR: &str = r#"
trap '' INT TERM HUP
mongod=$1 dir=$2 host=$3 port=$4 set=$5 namespace=$6 pid=
start() {
  auth=
  [ ! -f "$dir.key" ] || auth="--auth --keyFile $dir.key"
  ${namespace:+ip netns exec "$namespace"} "$mongod" --dbpath "$dir" --port "$port" --bind_ip "$host" $set $auth --quiet \
    --setParameter enableTestCommands=1 --wiredTigerCacheSizeGB 0.25 --nounixsocket \
    --logpath "$dir/mongod.log" --logappend </dev/null >/dev/null 2>&1 &
  pid=$!
}
while read -r command; do
  case $command in
    start) start ;;
    stop) kill -KILL "$pid"; wait "$pid" 2>/dev/null ;;
    pause)
      kill -STOP "$pid"
      # Its threads stop one after another: until the last one has, it may still answer.
      while grep -qs '^State:[[:space:]]*[RSD]' /proc/"$pid"/task/*/status; do :; done ;;
    resume) kill -CONT "$pid" ;;
    alive) kill -0 "$pid" 2>/dev/null || { echo no; continue; } ;;
  esac
  echo yes
done
kill -KILL "$pid" 2>/dev/null
wait "$pid" 2>/dev/null
rm -rf "$dir" "$dir.key"
rmdir "${dir%/*}" 2>/dev/null
"#;

/// A running MongoDB: a replica set of one, or none.
#[derive(Debug)]
pub struct TestMongo {
    address: SocketAddr,
    /// Empty in the namespace of the test.
    namespace: String,
    set: &'static str,
    supervisor: Mutex<Supervisor>,
}

impl TestMongo {
    /// The server that all tests of this process share. Each uses a [`TestMongo::database`] of its
    /// own, and none stops it or sets fail points that others would meet.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<TestMongo> = OnceCell::const_new();
        SHARED.get_or_init(Self::start_own).await
    }

    /// A server for one test alone.
    pub async fn start_own() -> Self {
        Self::start_as(SET).await
    }

    /// A server for one test alone with files in which a text can be found: see [`TestMongo::folder`].
    pub async fn start_readable() -> Self {
        Self::start_as(READABLE).await
    }

    /// Returns the folder of the files of the server.
    pub fn folder(&self) -> PathBuf {
        self.supervisor.lock().expect("no test panics while it holds this").dir.clone()
    }

    /// A server for one test alone that is no replica set.
    pub async fn start_standalone() -> Self {
        Self::start_as("").await
    }

    /// A server for one test alone that demands a user and a password. The user `root` has the password `secret`.
    pub async fn start_with_access_control() -> Self {
        let mongo = Self::start(SET, Access::Controlled).await;
        let root = doc! { "createUser": "root", "pwd": "secret", "roles": ["root"] };
        let admin = direct(mongo.address).await.database("admin");
        admin.run_command(root).await.expect("the first user is created without one");
        mongo
    }

    async fn start_as(set: &'static str) -> Self {
        Self::start(set, Access::Open).await
    }

    fn new(address: SocketAddr, namespace: String, set: &'static str, supervisor: Supervisor) -> Self {
        Self { address, namespace, set, supervisor: Mutex::new(supervisor) }
    }

    async fn start(set: &'static str, access: Access) -> Self {
        // Another process may take the port before mongod binds it.
        for _ in 0..5 {
            let supervisor = Supervisor::new();
            if access == Access::Controlled {
                supervisor.write_key();
            }
            let mongo = Self::new(free_address(), String::new(), set, supervisor);
            mongo.launch();
            if mongo.become_primary().await {
                return mongo;
            }
        }
        panic!("mongod does not start: see {}/mongod.log", dir_of_process().display());
    }

    /// What a client connects to.
    pub fn uri(&self) -> String {
        let options = if self.set.is_empty() { "" } else { "?replicaSet=rs0" };
        format!("mongodb://{}/{options}", self.address)
    }

    /// Where the server listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What a client with a user and a password connects to.
    pub fn uri_as(&self, user: &str, password: &str) -> String {
        let uri = self.uri().replace("mongodb://", &format!("mongodb://{user}:{password}@"));
        let separator = if uri.contains('?') { '&' } else { '?' };
        format!("{uri}{separator}authSource=admin")
    }

    /// A name that no other test uses.
    pub fn database(&self) -> String {
        format!("test_{:016x}", crate::random::<u64>())
    }

    /// A new client. Not shared: a client lives on the runtime of the test that made it.
    pub async fn client(&self) -> Client {
        Client::with_uri_str(self.uri()).await.expect("the URI is well-formed")
    }

    /// Sets `failCommand`: `data` as in MongoDB's fail point documentation, `mode` such as
    /// `{"times": 1}` or `"alwaysOn"`. Off again when the guard is dropped.
    pub async fn fail_point(&self, mode: impl Into<bson::Bson>, data: Document) -> FailPoint {
        let command = doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": data };
        let client = direct(self.address).await;
        client.database("admin").run_command(command).await.expect("the fail point is well-formed");
        FailPoint { address: self.address }
    }

    /// Starts a server that is meant to become a member of a replica set, which the caller initiates.
    pub(crate) fn launch_member() -> Self {
        Self::launch_member_at(free_address(), String::new())
    }

    /// The same, at this address of a network namespace.
    pub(crate) fn launch_member_at(address: SocketAddr, namespace: String) -> Self {
        let mongo = Self::new(address, namespace, SET, Supervisor::new());
        mongo.launch();
        mongo
    }

    /// Starts the server again after [`TestMongo::stop`], without waiting until it answers.
    pub(crate) fn launch_again(&self) {
        self.launch();
    }

    /// Returns the log of the server so far.
    pub fn log(&self) -> String {
        let dir = self.supervisor.lock().expect("no test panics while it holds this").dir.clone();
        std::fs::read_to_string(dir.join("mongod.log")).expect("the server has started")
    }

    /// Returns a client of this server alone.
    pub async fn direct(&self) -> Client {
        direct(self.address).await
    }

    /// Kills the server as a power cut would.
    pub fn stop(&self) {
        self.send("stop");
    }

    /// Starts the server again, on the same port and the same files, and waits until it is primary.
    pub async fn restart(&self) {
        self.launch();
        assert!(self.become_primary().await, "mongod does not start again");
    }

    /// Holds the server: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.send("pause");
    }

    /// Resumes the server.
    pub fn resume(&self) {
        self.send("resume");
    }

    fn launch(&self) {
        let mut supervisor = self.supervisor.lock().expect("no test panics while it holds this");
        if supervisor.shell.is_none() {
            let (mongod, dir) = (mongod(), supervisor.dir.clone());
            let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
            let paths = [mongod.as_os_str(), dir.as_os_str()];
            let arrange =
                |sh: &mut Command| _ = sh.args(paths).args([&*host, &*port, self.set, &*self.namespace]);
            supervisor.shell = Some(Shell::new(SUPERVISOR, arrange));
        }
        supervisor.send("start");
    }

    fn send(&self, command: &str) -> bool {
        self.supervisor.lock().expect("no test panics while it holds this").send(command)
    }

    /// `false` when the server has ended instead.
    async fn become_primary(&self) -> bool {
        let client = direct(self.address).await;
        let admin = client.database("admin");
        let host = self.address();
        let config = doc! { "_id": "rs0", "members": [{ "_id": 0, "host": host }] };
        let deadline = Instant::now() + START;
        while Instant::now() < deadline && self.send("alive") {
            let hello = admin.run_command(doc! { "hello": 1 }).await;
            match hello {
                Ok(hello) if hello.get_bool("isWritablePrimary").unwrap_or_default() => return true,
                Ok(hello) if !hello.contains_key("setName") => {
                    // Fails harmlessly while it is being initiated.
                    let _ = admin.run_command(doc! { "replSetInitiate": config.clone() }).await;
                }
                _ => {}
            }
            sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

/// A fail point that is set. Dropping it sets it off.
#[derive(Debug)]
#[must_use = "the fail point is off as soon as this is dropped"]
pub struct FailPoint {
    address: SocketAddr,
}

impl Drop for FailPoint {
    fn drop(&mut self) {
        let address = self.address;
        let off = doc! { "configureFailPoint": "failCommand", "mode": "off" };
        // A thread and a runtime of its own: dropping cannot wait for the test's runtime.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime starts").block_on(async {
                let _ = direct(address).await.database("admin").run_command(off).await;
            });
        });
        let _ = thread.join();
    }
}

/// Whether a server demands a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Open,
    Controlled,
}

#[derive(Debug)]
struct Supervisor {
    dir: PathBuf,
    shell: Option<Shell>,
}

impl Supervisor {
    fn new() -> Self {
        let dir = dir_of_process().join(format!("{:08x}", crate::random::<u32>()));
        std::fs::create_dir_all(&dir).expect("the folder for temporary files can be written");
        Self { dir, shell: None }
    }

    /// Writes the key that members of a replica set with access control share.
    fn write_key(&self) {
        let mut options = std::fs::File::options();
        let mut key = options.create_new(true).write(true).mode(0o600).open(self.dir.with_extension("key"));
        let key = key.as_mut().expect("the folder for temporary files can be written");
        key.write_all(b"kinsyncTests").expect("the folder for temporary files can be written");
    }

    fn send(&mut self, command: &str) -> bool {
        self.shell.as_mut().is_some_and(|shell| shell.send(command))
    }
}

/// A client of this server and not of the set.
async fn direct(address: SocketAddr) -> Client {
    let uri = format!("mongodb://{address}/?directConnection=true&serverSelectionTimeoutMS=500");
    Client::with_uri_str(uri).await.expect("the URI is well-formed")
}

fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, crate::free_port()).into()
}

fn dir_of_process() -> PathBuf {
    std::env::temp_dir().join(format!("kinsync-mongod-{}", std::process::id()))
}

/// `mongod` from the PATH, else the one that `.ci/install` has fetched.
fn mongod() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin");
    let mut places = std::env::split_paths(&path).chain([fetched]).map(|place| place.join("mongod"));
    places.find(|place| place.is_file()).expect("no mongod on the PATH nor in .tools/bin: run .ci/install")
}
