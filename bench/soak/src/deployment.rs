//! The servers of a soak: Kinde, MongoDB, the shared queue behind a network, the processes, and the load balancer in front of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use kinde_emulator::config::{DeliverySettings, Retry};
use kinde_emulator::{Config, Emulator, WebhookSpec};
use kinsync_testing::app::{SECRET, TestApp};
use kinsync_testing::mongo::TestMongo;
use kinsync_testing::rabbitmq::TestRabbitmq;
use kinsync_testing::redis::{DURABLE, TestRedis};
use kinsync_testing::slow::SlowNetwork;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::disk::Disk;
use crate::{Backend, Options};

/// Name of the database.
pub const DATABASE: &str = "soak";
/// Start of the names in the shared queue, by kinsync's default.
pub const PREFIX: &str = "kinsync";

/// The shared queue.
#[derive(Debug)]
pub enum QueueServer {
    Redis(TestRedis),
    Rabbitmq(TestRabbitmq),
}

impl QueueServer {
    fn start(backend: Backend) -> Self {
        match backend {
            Backend::Redis => Self::Redis(TestRedis::start(DURABLE)),
            Backend::Rabbitmq => Self::Rabbitmq(TestRabbitmq::start()),
        }
    }

    fn address(&self) -> (&'static str, u16) {
        match self {
            Self::Redis(server) => ("redis", server.port()),
            Self::Rabbitmq(server) => ("amqp", server.port()),
        }
    }

    /// Runs one of these.
    pub fn run(&self, redis: fn(&TestRedis), rabbitmq: fn(&TestRabbitmq)) {
        tokio::task::block_in_place(|| match self {
            Self::Redis(server) => redis(server),
            Self::Rabbitmq(server) => rabbitmq(server),
        });
    }
}

/// All servers. Dropping it stops them.
#[derive(Debug)]
pub struct Deployment {
    /// Of the last process; `None` without the permission to mount one.
    pub disk: Option<Disk>,
    pub apps: Vec<TestApp>,
    kinsync: PathBuf,
    /// Settings of all processes.
    settings: Vec<(&'static str, String)>,
    pub kinde: Emulator,
    pub mongo: TestMongo,
    pub queue: QueueServer,
    /// Between the processes and the queue.
    pub network: SlowNetwork,
    /// Address of the load balancer.
    pub address: SocketAddr,
    _balancer: JoinSet<()>,
}

impl Deployment {
    /// Starts all servers and subscribes the load balancer to the webhook.
    pub async fn start(options: &Options, seed: u64) -> anyhow::Result<Self> {
        let retry = Retry {
            delays: vec![Duration::from_secs(1), Duration::from_secs(5)],
            then_every: Duration::from_secs(10),
            ..Retry::default()
        };
        let timeout = Duration::from_secs(5);
        // As many records as there will be deliveries: the checks read all of them.
        let delivery = DeliverySettings { timeout, max_in_flight: 64, log: usize::MAX };
        let kinde = Emulator::start(Config { seed, retry, delivery, ..Config::default() }).await?;
        let mongo = TestMongo::start_own().await;
        let queue = tokio::task::block_in_place(|| QueueServer::start(options.queue));
        let (scheme, port) = queue.address();
        let network = SlowNetwork::start(port).await;
        let settings = vec![
            ("MONGODB_URI", mongo.uri()),
            ("KINSYNC_DATABASE", DATABASE.into()),
            ("KINSYNC_QUEUE", format!("{scheme}://{}", network.address())),
            ("KINDE_DOMAIN", kinde.issuer().into()),
            ("KINDE_M2M_CLIENT_ID", kinde.config().client_id.clone()),
            ("KINDE_M2M_CLIENT_SECRET", kinde.config().client_secret.clone()),
            ("KINSYNC_RECONCILE_EVERY", "2m".into()),
            // Lost events of deletions are many here.
            ("KINSYNC_RECONCILE_MAX_DELETES", "1000000".into()),
        ];
        let (mut apps, mut disk) = (Vec::new(), None);
        for number in 1..=options.processes {
            let mut app = TestApp::new(&options.kinsync)?;
            if number == options.processes {
                disk = Disk::mount(&app.data_dir())?;
            }
            app.leaves_entries();
            for (name, value) in &settings {
                app.set(name, value);
            }
            app.start().await?;
            app.prepared().await?;
            apps.push(app);
        }
        // Killed before, RabbitMQ starts the queue empty.
        queue.run(|_| {}, |server| server.until_saved(PREFIX));
        let mut balancer = JoinSet::new();
        let address = balance(&apps, &mut balancer).await?;
        let endpoint = format!("http://{address}/api/webhook");
        kinde.add_webhook(WebhookSpec::new(endpoint.parse().context("the address of the balancer")?));
        let kinsync = options.kinsync.clone();
        Ok(Self { disk, apps, kinsync, settings, kinde, mongo, queue, network, address, _balancer: balancer })
    }

    /// Runs a command of kinsync. Returns its exit code and what it printed.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(&self.kinsync);
        command.args(arguments).env_clear().envs(self.settings.iter().cloned()).current_dir(folder.path());
        command.env("KINSYNC_DATA_DIR", folder.path()).env("KINDE_WEBHOOK_SECRET", SECRET);
        let output = command.output().await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr)))
    }
}

/// Connects each client to the next process that accepts the connection.
async fn balance(apps: &[TestApp], tasks: &mut JoinSet<()>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let processes: Arc<[SocketAddr]> = apps.iter().map(TestApp::address).collect();
    let next = Arc::new(AtomicUsize::new(0));
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let (processes, next) = (Arc::clone(&processes), Arc::clone(&next));
            open.spawn(async move {
                for _ in 0..processes.len() {
                    let process = processes[next.fetch_add(1, Relaxed) % processes.len()];
                    if let Ok(mut server) = TcpStream::connect(process).await {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                }
            });
            while open.try_join_next().is_some() {}
        }
    });
    Ok(address)
}
