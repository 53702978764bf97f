//! Three Redis Sentinels that watch a primary and a replica.

use std::time::Duration;

use tokio::time::Instant;

use crate::redis::{DURABLE, TestRedis};

/// Longest time for a failover. A sentinel that got no processor time for two seconds changes nothing for half a minute.
pub const FAILOVER: Duration = Duration::from_mins(2);
/// Name of the primary.
pub const NAME: &str = "main";

/// Real servers and sentinels.
#[derive(Debug)]
pub struct TestSentinels {
    servers: [TestRedis; 2],
    sentinels: [TestRedis; 3],
}

impl TestSentinels {
    /// Starts all of them, and waits until they know each other.
    ///
    /// # Panics
    /// When they do not start.
    pub fn start() -> Self {
        let primary = TestRedis::start(&[DURABLE, &["--repl-diskless-sync-delay", "0"]].concat());
        let port = primary.port().to_string();
        let replica = TestRedis::start(&[DURABLE, &["--replicaof", "127.0.0.1", &port]].concat());
        let lines = ["down-after-milliseconds", "failover-timeout"]
            .map(|name| format!("sentinel {name} {NAME} 2000"));
        let lines = lines.each_ref().map(String::as_str);
        let sentinels = [(); 3].map(|()| TestRedis::start_sentinel(NAME, primary.port(), 2, &lines));
        let all = Self { servers: [primary, replica], sentinels };
        all.until(|all| {
            all.sentinels.iter().all(|one| one.text("INFO sentinel").contains("slaves=1,sentinels=3"))
        });
        all.until_replicated();
        all
    }

    /// Address of the primary, by the sentinels.
    pub fn url(&self) -> String {
        let hosts = self.sentinels.each_ref().map(|one| format!("127.0.0.1:{}", one.port()));
        format!("redis+sentinel://{}/{NAME}", hosts.join(","))
    }

    /// The servers: first the primary of the start.
    pub fn servers(&self) -> &[TestRedis; 2] {
        &self.servers
    }

    /// The sentinels.
    pub fn sentinels(&self) -> &[TestRedis; 3] {
        &self.sentinels
    }

    /// Waits until the primary of the start is a replica. Until then it accepts entries that it loses.
    ///
    /// # Panics
    /// When it does not become one.
    pub fn until_demoted(&self) {
        // It closes its connections when its role changes.
        self.until(|all| {
            all.servers[0].try_text("INFO replication").is_ok_and(|text| text.contains("role:slave"))
        });
    }

    /// Waits until every sentinel names the other server as the primary.
    ///
    /// # Panics
    /// When they do not.
    pub fn until_failed_over(&self) {
        let named = format!("address=127.0.0.1:{},", self.servers[1].port());
        self.until(|all| all.sentinels.iter().all(|one| one.text("INFO sentinel").contains(&named)));
    }

    /// Waits until a server has the other one as its replica.
    ///
    /// # Panics
    /// When none has.
    pub fn until_replicated(&self) {
        let has_replica = |one: &TestRedis| {
            one.try_text("INFO replication").is_ok_and(|text| text.contains("state=online"))
        };
        self.until(|all| all.servers.iter().any(has_replica));
    }

    fn until(&self, is_done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + FAILOVER;
        while !is_done(self) {
            assert!(Instant::now() < deadline, "{}", self.sentinels[0].text("INFO sentinel"));
            std::thread::yield_now();
        }
    }
}
