//! The queue on real RabbitMQ servers: kills, lost connections, deleted queues, policies, alarms.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::{
        queue::{
            Enqueued, Entry, Error, Found, Matched, Payload, Queue, Search,
            rabbitmq::{Config, RabbitmqQueue},
        },
        store::{Store, embedded::EmbeddedStore},
    },
};
use kinsync_testing::rabbitmq::TestRabbitmq;
use lapin::{Channel, Connection, ConnectionProperties, options as lapin_options, types::FieldTable};
use tokio::time::{Instant, timeout};

use crate::{
    queue_conformance::{
        Fresh, LEASE, accepted_until_killed, claim, claim_all, counts, dead_letter, entry, event_ids, ids,
    },
    queue_rabbitmq_promises::publish,
};

pub(crate) const WITHIN: Duration = Duration::from_secs(30);

/// A queue with dead letters in a store of its own.
pub(crate) fn open(rabbitmq: &TestRabbitmq, prefix: &str) -> Fresh {
    open_at(&rabbitmq.url(), prefix)
}

pub(crate) fn open_at(url: &str, prefix: &str) -> Fresh {
    open_with(Config { prefix: prefix.into(), ..Config::new(url.into()) })
}

pub(crate) fn open_with(config: Config) -> Fresh {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let queue = RabbitmqQueue::new(config, store, Clock::from_fn(|| Micros(5_000))).unwrap();
    Fresh { queue: Arc::new(queue), _dir: Some(dir) }
}

/// An empty queue on the shared server.
pub(crate) async fn rabbitmq() -> Fresh {
    open(TestRabbitmq::shared(), &TestRabbitmq::prefix())
}

/// Repeats until the server is back.
async fn until_accepted(queue: &dyn Queue, id: &str) -> Enqueued {
    let deadline = Instant::now() + WITHIN;
    loop {
        match queue.enqueue(entry(id)).await {
            Ok(enqueued) => return enqueued,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Claims as soon as a claim succeeds.
pub(crate) async fn until_claimed(queue: &dyn Queue, id: &str) {
    let claimed = async {
        loop {
            if let Ok(claimed) = queue.claim(9, LEASE).await {
                queue.ack(&ids(&claimed)).await.unwrap();
                if event_ids(&claimed).contains(&id) {
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, claimed).await.expect("the entry is claimed");
}

/// A connection of another program.
pub(crate) async fn other_program(rabbitmq: &TestRabbitmq) -> (Connection, Channel) {
    let connection = Connection::connect(&rabbitmq.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(lapin_options::ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_accepted_is_lost_by_a_kill_of_the_server() {
    let rabbitmq = TestRabbitmq::start();
    let Fresh { queue, .. } = &open(&rabbitmq, "kinsync");
    let accepted = accepted_until_killed(queue, || {
        rabbitmq.until_saved("kinsync");
        rabbitmq.kill();
    })
    .await;
    rabbitmq.launch();
    until_accepted(&**queue, "after").await;
    let mut found = BTreeSet::new();
    while counts(&**queue).await.0 > 0 {
        let claimed = claim(&**queue, 500).await;
        queue.ack(&ids(&claimed)).await.unwrap();
        found.extend(claimed.into_iter().map(|claimed| claimed.entry.event_id));
    }
    assert_eq!(accepted.iter().find(|id| !found.contains(*id)), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_claimed_entries_and_dead_letters_and_refuses_while_others_wait() {
    let Fresh { queue, .. } = &rabbitmq().await;
    for id in ["dead", "claimed"] {
        queue.enqueue(entry(id)).await.unwrap();
    }
    let found = async |search| queue.search(Arc::new(|_: &str, body: &[u8]| !body.is_empty()), search).await;
    let refused = found(Search::List).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    let claimed = claim_all(&**queue, 2).await;
    dead_letter(&**queue, &claimed[..1], "why").await;
    let expected = Matched { queued: 1, dead_letters: 1, entries: Vec::new() };
    let entries = vec![Found::from(&entry("claimed"))];
    assert_eq!(found(Search::List).await.unwrap(), Matched { entries, ..expected.clone() });
    assert_eq!(counts(&**queue).await, (1, 1), "a list removes nothing");
    assert_eq!(found(Search::Remove).await.unwrap(), expected);
    assert_eq!(counts(&**queue).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_purged_or_deleted_takes_and_gives_entries_again() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let Fresh { queue, .. } = &open(rabbitmq, &prefix);
    queue.enqueue(entry("held")).await.unwrap();
    let held = ids(&claim(&**queue, 1).await);
    let (_connection, channel) = other_program(rabbitmq).await;
    let name = format!("{prefix}.queue");
    channel.queue_purge(name.as_str().into(), lapin_options::QueuePurgeOptions::default()).await.unwrap();
    queue.enqueue(entry("after the purge")).await.unwrap();
    until_claimed(&**queue, "after the purge").await;
    channel.queue_delete(name.as_str().into(), lapin_options::QueueDeleteOptions::default()).await.unwrap();
    until_accepted(&**queue, "after the deletion").await;
    until_claimed(&**queue, "after the deletion").await;
    // What a worker still holds of the lost entries changes nothing.
    queue.ack(&held).await.unwrap();
    queue.retry(&held, Duration::ZERO).await.unwrap();
    queue.dead_letter(&[(held[0].clone(), "why".into())]).await.unwrap();
    assert_eq!(counts(&**queue).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_process_that_ends_or_loses_its_connection_come_to_another_at_once() {
    let (rabbitmq, prefix) = (TestRabbitmq::start(), TestRabbitmq::prefix());
    let (one, other) = (open(&rabbitmq, &prefix), open(&rabbitmq, &prefix));
    one.queue.enqueue(entry("a")).await.unwrap();
    let held = claim(&*one.queue, 1).await;
    rabbitmq.control(&["close_all_connections", "a test"]);
    let claimed = timeout(WITHIN, async {
        loop {
            if let Ok(claimed) = other.queue.claim(1, LEASE).await {
                return claimed;
            }
        }
    });
    let claimed = claimed.await.expect("within the hour of the lease");
    assert_eq!((event_ids(&claimed), claimed[0].attempts), (vec!["a"], 1));
    one.queue.ack(&ids(&held)).await.unwrap();
    assert_eq!(counts(&*other.queue).await, (1, 0), "an ack of a lost connection changes nothing");
    other.queue.close().await;
    until_claimed(&*one.queue, "a").await;
    assert_eq!(counts(&*one.queue).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_claims_nothing_any_more_gives_its_entries_back() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let give_back_after = Duration::from_millis(200);
    let config = Config { prefix: prefix.clone(), give_back_after, ..Config::new(rabbitmq.url().into()) };
    let (stuck, live) = (open_with(config), open(rabbitmq, &prefix));
    for number in 0..10 {
        stuck.queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    // It gets all, and its worker hangs beyond the lease of the one that it claimed.
    let claimed = stuck.queue.claim(1, Duration::from_secs(2)).await.unwrap();
    let mut found = BTreeSet::new();
    let all = async {
        while found.len() < 10 {
            let claimed = live.queue.claim(9, LEASE).await.unwrap();
            live.queue.ack(&ids(&claimed)).await.unwrap();
            found.extend(claimed.into_iter().map(|claimed| claimed.entry.event_id));
        }
    };
    timeout(WITHIN, all).await.expect("another process gets all of them");
    stuck.queue.ack(&ids(&claimed)).await.unwrap();
    assert_eq!(counts(&*live.queue).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_beyond_the_delivery_limit_comes_again_and_again() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let config = Config { prefix, delivery_limit: 2, ..Config::new(rabbitmq.url().into()) };
    open_with(config.clone()).queue.enqueue(entry("survivor")).await.unwrap();
    for _ in 0..8 {
        let Fresh { queue, .. } = open_with(config.clone());
        assert_eq!(event_ids(&claim(&*queue, 1).await), ["survivor"]);
        queue.close().await;
    }
    let Fresh { queue, .. } = open_with(config);
    until_claimed(&*queue, "survivor").await;
    // A process that ended between its publication and its ack has left a repetition.
    while counts(&*queue).await != (0, 0) {
        until_claimed(&*queue, "survivor").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_sightings_first_and_accepts_again_after_a_claim() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let config = Config { prefix, max_entries: 4, ..Config::new(rabbitmq.url().into()) };
    let Fresh { queue, .. } = &open_with(config);
    let sighting = Entry { payload: Payload::Sighting("{}".into()), ..entry("sighting") };
    let until_full = async |entry: &Entry| {
        // The count is at most a second old.
        loop {
            match queue.enqueue(entry.clone()).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(Error::Full { .. }) => return,
                Err(other) => panic!("{other}"),
            }
        }
    };
    timeout(WITHIN, until_full(&sighting)).await.expect("a full queue refuses a sighting");
    timeout(WITHIN, until_full(&entry("a"))).await.expect("a full queue refuses a delivery");
    while counts(&**queue).await.0 > 0 {
        let claimed = claim(&**queue, 1000).await;
        queue.ack(&ids(&claimed)).await.unwrap();
    }
    let accepted = async { while queue.enqueue(entry("after")).await.is_err() {} };
    timeout(WITHIN, accepted).await.expect("it accepts again");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_server_name_what_to_change() {
    let rabbitmq = TestRabbitmq::shared();
    let address = |user: &str, vhost: &str| format!("amqp://{user}@127.0.0.1:{}{vhost}", rabbitmq.port());
    for (url, hint) in
        [(address("guest:wrong", ""), "password"), (address("guest:guest", "/nowhere"), "virtual host")]
    {
        let refused = open_at(&url, "kinsync").queue.enqueue(entry("a")).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Refused { hint: found, .. } if found.contains(hint)),
            "{refused:?}"
        );
    }
    let (prefix, (_connection, channel)) = (TestRabbitmq::prefix(), other_program(rabbitmq).await);
    let options = lapin_options::QueueDeclareOptions::durable();
    let name = format!("{prefix}.queue");
    channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.unwrap();
    let refused = open(rabbitmq, &prefix).queue.enqueue(entry("a")).await.unwrap_err();
    assert!(refused.to_string().contains("KINSYNC_QUEUE_PREFIX"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_host_is_used_while_the_first_does_not_answer() {
    let rabbitmq = TestRabbitmq::shared();
    let url = format!("amqp://guest:guest@127.0.0.1:1,127.0.0.1:{}", rabbitmq.port());
    let Fresh { queue, .. } = open_at(&url, &TestRabbitmq::prefix());
    assert_eq!(queue.enqueue(entry("a")).await.unwrap(), Enqueued::New);
    assert_eq!(event_ids(&claim(&*queue, 1).await), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_another_program_becomes_a_dead_letter() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let Fresh { queue, .. } = &open(rabbitmq, &prefix);
    queue.enqueue(entry("a")).await.unwrap();
    let (_connection, channel) = other_program(rabbitmq).await;
    publish(&channel, &format!("{prefix}.queue"), lapin::BasicProperties::default()).await;
    queue.enqueue(entry("b")).await.unwrap();
    assert_eq!(event_ids(&claim_all(&**queue, 2).await), ["a", "b"]);
    let letters = async {
        loop {
            match queue.dead_letters(None, 9).await.unwrap() {
                letters if letters.is_empty() => tokio::task::yield_now().await,
                letters => return letters,
            }
        }
    };
    let letters = timeout(WITHIN, letters).await.expect("it becomes a dead letter");
    assert_eq!((letters.len(), letters[0].payload.as_deref()), (1, Some("\u{fffd}")));
    queue.drop_dead_letter(&letters[0].id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_one_process_is_seen_and_retried_by_another() {
    let (rabbitmq, dir) = (TestRabbitmq::shared(), tempfile::tempdir().unwrap());
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let config = Config { prefix: TestRabbitmq::prefix(), ..Config::new(rabbitmq.url().into()) };
    let process =
        || RabbitmqQueue::new(config.clone(), Arc::<EmbeddedStore>::clone(&store), Clock::system()).unwrap();
    let (one, other) = (process(), process());
    one.enqueue(entry("poison")).await.unwrap();
    let claimed = claim(&one, 1).await;
    dead_letter(&one, &claimed, "no user id").await;
    assert_eq!(counts(&other).await, (0, 1));
    let letter = other.dead_letters(None, 9).await.unwrap().remove(0);
    other.retry_dead_letter(&letter.id).await.unwrap();
    until_claimed(&one, "poison").await;
    assert_eq!((counts(&one).await, counts(&other).await), ((0, 0), (0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_another_version_are_listed_and_hide_no_others() {
    let (rabbitmq, dir) = (TestRabbitmq::shared(), tempfile::tempdir().unwrap());
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let config = Config { prefix: TestRabbitmq::prefix(), ..Config::new(rabbitmq.url().into()) };
    let queue = RabbitmqQueue::new(config, Arc::<EmbeddedStore>::clone(&store), Clock::system()).unwrap();
    for id in ["0", "00"] {
        let record = serde_json::json!({ "format": 9 });
        assert!(store.put_state(&format!("dead_letter/{id}"), &record, 0).await.unwrap());
    }
    queue.enqueue(entry("poison")).await.unwrap();
    dead_letter(&queue, &claim(&queue, 1).await, "no user id").await;
    let first = queue.dead_letters(None, 2).await.unwrap();
    assert!(first.iter().all(|letter| letter.reason.contains("cannot read") && letter.payload.is_none()));
    let second = queue.dead_letters(Some(&first[1].id), 2).await.unwrap();
    assert_eq!((first.len(), second[0].event_id.as_str()), (2, "poison"));
    assert!(matches!(queue.retry_dead_letter(&first[0].id).await, Err(Error::Refused { .. })));
    queue.drop_dead_letter(&first[0].id).await.unwrap();
    assert_eq!(counts(&queue).await, (0, 2));
}

/// Open connections to this port.
fn connections(port: u16) -> usize {
    let established = |line: &&str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns[2].ends_with(&format!(":{port:04X}")) && columns[3] == "01"
    };
    std::fs::read_to_string("/proc/self/net/tcp").unwrap().lines().skip(1).filter(established).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_gets_one_connection_for_each_direction() {
    let rabbitmq = TestRabbitmq::start();
    rabbitmq.pause();
    let Fresh { queue, .. } = &open(&rabbitmq, "kinsync");
    let mut attempts = 0;
    while attempts < 3 {
        let began = Instant::now();
        let (enqueued, stats) = tokio::join!(queue.enqueue(entry("a")), queue.stats());
        assert!(matches!(enqueued, Err(Error::Unavailable { .. })), "{enqueued:?}");
        assert!(matches!(stats, Err(Error::Unavailable { .. })), "{stats:?}");
        // Soon after a failure, calls fail at once.
        attempts += u32::from(began.elapsed() > Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(connections(rabbitmq.port()), 2, "one publishes, and one delivers");
    rabbitmq.resume();
    until_accepted(&**queue, "b").await;
    until_claimed(&**queue, "b").await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_of_the_server_refuses_entries_and_acks_go_on() {
    let rabbitmq = TestRabbitmq::start();
    let Fresh { queue, .. } = &open(&rabbitmq, "kinsync");
    queue.enqueue(entry("a")).await.unwrap();
    let claimed = ids(&claim(&**queue, 1).await);
    rabbitmq.control(&["set_vm_memory_high_watermark", "0.00001"]);
    let refused = async {
        loop {
            if let Err(error) = queue.enqueue(entry("b")).await {
                return error;
            }
        }
    };
    let refused = timeout(WITHIN, refused).await.expect("a server without memory accepts nothing");
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    queue.ack(&claimed).await.unwrap();
    rabbitmq.control(&["set_vm_memory_high_watermark", "0.6"]);
    until_accepted(&**queue, "c").await;
    until_claimed(&**queue, "c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_an_error_within_its_deadline_and_is_found_later() {
    let rabbitmq = TestRabbitmq::start();
    rabbitmq.kill();
    let Fresh { queue, .. } = &open(&rabbitmq, "kinsync");
    let began = Instant::now();
    assert!(matches!(queue.enqueue(entry("a")).await, Err(Error::Unavailable { .. })));
    assert!(began.elapsed() < Duration::from_secs(10));
    rabbitmq.launch();
    until_accepted(&**queue, "a").await;
    rabbitmq.pause();
    assert!(matches!(queue.enqueue(entry("b")).await, Err(Error::Unavailable { .. })));
    rabbitmq.resume();
    until_accepted(&**queue, "c").await;
    until_claimed(&**queue, "c").await;
}
