//! A real MongoDB replica set with three members on this machine: step-downs, killed, paused and cut off members, elections.

use std::time::Duration;

use bson::{Document, doc};
use tokio::time::{Instant, sleep};

use crate::{
    mongo::TestMongo,
    partition::{Host, TestNetwork},
};

/// Longest time until the set has a primary. Elections take a few seconds with the timeout set below.
const ELECTION: Duration = Duration::from_mins(3);

/// Whether a secondary copies writes of the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replication {
    /// It copies them, as usual.
    Running,
    /// It copies none.
    Stopped,
}

/// A replica set of one test. Its servers end with the test process.
#[derive(Debug)]
pub struct TestReplicaSet {
    members: Vec<TestMongo>,
    /// Ends after the members.
    network: Option<TestNetwork>,
}

impl TestReplicaSet {
    /// Starts three members and waits until one of them is primary and the others are secondaries.
    pub async fn start() -> Self {
        let members = (0..3).map(|_| TestMongo::launch_member()).collect();
        let set = Self { members, network: None };
        // An election soon after the primary fails.
        set.initiate(doc! { "electionTimeoutMillis": 1500, "heartbeatIntervalMillis": 250 }).await;
        set
    }

    /// Starts three members with one host each in a network that [`Self::cut`] divides, with MongoDB's own timeouts. Root alone may
    /// create such a network.
    ///
    /// # Panics
    /// When the network cannot be created.
    pub async fn start_in_network() -> Self {
        let network = TestNetwork::start(3);
        let member = |n| {
            let (address, namespace) = network.place(n);
            TestMongo::launch_member_at(address, namespace)
        };
        let set = Self { members: (0..3).map(member).collect(), network: Some(network) };
        set.initiate(doc! {}).await;
        set
    }

    /// Lets no packet pass between these two from now on, in either direction and without an error for either.
    ///
    /// # Panics
    /// When the set is not [in a network](Self::start_in_network).
    pub fn cut(&self, one: Host, other: Host) {
        self.network().cut(one, other);
    }

    /// Lets every packet pass again.
    ///
    /// # Panics
    /// When the set is not [in a network](Self::start_in_network).
    pub fn heal(&self) {
        self.network().heal();
    }

    fn network(&self) -> &TestNetwork {
        self.network.as_ref().expect("the set was started in a network")
    }

    /// Returns the connection string with all members.
    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(TestMongo::address).collect();
        format!("mongodb://{}/?replicaSet=rs0", hosts.join(","))
    }

    /// Returns a name that no other test uses.
    pub fn database(&self) -> String {
        self.members[0].database()
    }

    /// Returns a member.
    pub fn member(&self, n: usize) -> &TestMongo {
        &self.members[n]
    }

    /// Waits until a member is primary, and returns its number.
    pub async fn primary(&self) -> usize {
        self.primary_among(&[0, 1, 2]).await
    }

    /// Waits until one of these members is primary, and returns its number. A primary that was cut off from them reports that it is
    /// primary for a while.
    pub async fn primary_among(&self, members: &[usize]) -> usize {
        self.until("there is a primary", async |states: &[Option<String>]| {
            members.iter().copied().find(|n| states[*n].as_deref() == Some("PRIMARY"))
        })
        .await
    }

    /// Waits until one member is primary and all others are secondaries.
    pub async fn until_whole(&self) {
        self.until("every member is up", async |states: &[Option<String>]| {
            let count = |name: &str| states.iter().filter(|state| state.as_deref() == Some(name)).count();
            (count("PRIMARY") == 1 && count("SECONDARY") == states.len() - 1).then_some(())
        })
        .await;
    }

    /// Makes the primary step down for a minute and waits until another member is primary.
    pub async fn step_down(&self) {
        let old = self.primary().await;
        let command = doc! { "replSetStepDown": 60, "secondaryCatchUpPeriodSecs": 10, "force": true };
        // The reply is lost when the server closes its connections.
        let _ = self.members[old].direct().await.database("admin").run_command(command).await;
        self.until("another member is primary", async |states: &[Option<String>]| {
            let new = states.iter().position(|state| state.as_deref() == Some("PRIMARY"));
            new.filter(|new| *new != old)
        })
        .await;
    }

    /// Makes a secondary stop or resume copying writes of the primary. It votes meanwhile.
    pub async fn set_replication(&self, n: usize, runs: Replication) {
        let mode = match runs {
            Replication::Stopped => "alwaysOn",
            Replication::Running => "off",
        };
        let command = doc! { "configureFailPoint": "stopReplProducer", "mode": mode };
        let admin = self.members[n].direct().await.database("admin");
        admin.run_command(command).await.expect("the member answers");
    }

    /// Waits until a former primary rolls back what the others lack.
    pub async fn until_rolled_back(&self, n: usize) {
        let deadline = Instant::now() + ELECTION;
        while !self.members[n].log().contains("ROLLBACK") {
            assert!(Instant::now() < deadline, "the member rolls nothing back");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts a member again that was stopped.
    pub fn restart(&self, n: usize) {
        self.members[n].launch_again();
    }

    async fn initiate(&self, settings: Document) {
        let deadline = Instant::now() + ELECTION;
        while !self.is_initiated(&settings).await {
            assert!(Instant::now() < deadline, "the replica set was not initiated");
            sleep(Duration::from_millis(50)).await;
        }
        self.until_whole().await;
    }

    async fn is_initiated(&self, settings: &Document) -> bool {
        let members: Vec<Document> = (0_i32..)
            .zip(&self.members)
            .map(|(id, member)| doc! { "_id": id, "host": member.address() })
            .collect();
        let config = doc! { "_id": "rs0", "members": members, "settings": settings };
        let admin = self.members[0].direct().await.database("admin");
        // Fails until every member answers, and after it has succeeded.
        let _ = admin.run_command(doc! { "replSetInitiate": config }).await;
        let hello = admin.run_command(doc! { "hello": 1 }).await;
        hello.is_ok_and(|hello| hello.contains_key("setName"))
    }

    async fn until<T>(&self, what: &str, is_so: impl AsyncFn(&[Option<String>]) -> Option<T>) -> T {
        let deadline = Instant::now() + ELECTION;
        loop {
            let mut states = Vec::new();
            for member in &self.members {
                states.push(state(member).await);
            }
            if let Some(found) = is_so(&states).await {
                return found;
            }
            assert!(Instant::now() < deadline, "{what}: {states:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Returns the state that a member reports, such as `PRIMARY`; `None` if it does not answer.
async fn state(member: &TestMongo) -> Option<String> {
    let client = member.direct().await;
    let admin = client.database("admin");
    let hello = tokio::time::timeout(Duration::from_secs(5), admin.run_command(doc! { "hello": 1 }));
    let hello = hello.await.ok()?.ok()?;
    let is = |key: &str| hello.get_bool(key).unwrap_or_default();
    Some(
        if is("isWritablePrimary") {
            "PRIMARY"
        } else if is("secondary") {
            "SECONDARY"
        } else {
            "OTHER"
        }
        .into(),
    )
}
