//! The backends of the queues without kinsync: the fastest way in which a client stores as many entries, and consumes them.

use std::path::Path;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use redis::{Pipeline, Value, cmd};
use rusqlite::params;
use tokio::sync::Mutex;

use super::{CLAIM, Message};

/// Calls at the same time where the backend takes several entries in one.
const CALLS: usize = 4;
/// Messages that RabbitMQ delivers before it gets an ack, as in kinsync.
const PREFETCH: u16 = 1024;
/// Name of the stream and its group, or of the queue.
const NAME: &str = "raw";

/// A client of one backend.
pub trait Raw {
    /// The number of calls at any time and of entries in each, so that `window` entries are outstanding.
    fn shape(&self, window: usize) -> (usize, usize);

    /// Stores entries durably.
    async fn store(&self, messages: &[Message]) -> anyhow::Result<()>;

    /// Consumes this many entries and acks them.
    async fn consume(&self, count: usize) -> anyhow::Result<()>;

    /// Removes what consumed entries leave behind.
    async fn clean(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A table in a file with the same settings as that of kinsync. One transaction stores a whole window.
#[derive(Debug)]
pub struct Sqlite(std::sync::Mutex<rusqlite::Connection>);

impl Sqlite {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let sqlite = rusqlite::Connection::open(path)?;
        sqlite.pragma_update(None, "journal_mode", "wal")?;
        sqlite.pragma_update(None, "wal_autocheckpoint", 2048)?;
        sqlite.execute_batch(
            "CREATE TABLE entries (id INTEGER PRIMARY KEY, event_id TEXT NOT NULL, body BLOB NOT NULL) STRICT",
        )?;
        Ok(Self(std::sync::Mutex::new(sqlite)))
    }

    fn run<T>(
        &self,
        work: impl FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> anyhow::Result<T> {
        let mut sqlite = self.0.lock().map_err(|_| anyhow::anyhow!("a call panicked"))?;
        Ok(tokio::task::block_in_place(|| work(&mut sqlite))?)
    }
}

impl Raw for Sqlite {
    fn shape(&self, window: usize) -> (usize, usize) {
        (1, window)
    }

    async fn store(&self, messages: &[Message]) -> anyhow::Result<()> {
        self.run(|sqlite| {
            sqlite.pragma_update(None, "synchronous", "full")?;
            let transaction = sqlite.transaction()?;
            let mut insert =
                transaction.prepare_cached("INSERT INTO entries (event_id, body) VALUES (?1, ?2)")?;
            for Message { id, body } in messages {
                insert.execute(params![id, &body[..]])?;
            }
            drop(insert);
            transaction.commit()
        })
    }

    /// Reads and deletes in one transaction for as many entries as a claim has, not synced, as acks of kinsync are not.
    async fn consume(&self, count: usize) -> anyhow::Result<()> {
        let (mut consumed, most) = (0, i64::try_from(CLAIM)?);
        while consumed < count {
            consumed += self.run(|sqlite| {
                sqlite.pragma_update(None, "synchronous", "normal")?;
                let transaction = sqlite.transaction()?;
                let mut select = transaction
                    .prepare_cached("SELECT id, event_id, body FROM entries ORDER BY id LIMIT ?1")?;
                let read = |row: &rusqlite::Row<'_>| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?))
                };
                let found: Vec<_> = select.query_map([most], read)?.collect::<rusqlite::Result<_>>()?;
                drop(select);
                let last = found.last().map(|(id, ..)| *id);
                transaction.execute("DELETE FROM entries WHERE id <= ?1", [last])?;
                transaction.commit()?;
                Ok(found.len())
            })?;
        }
        Ok(())
    }
}

/// One connection and pipelines of `XADD`; `XREADGROUP` and `XACK`.
#[derive(Debug)]
pub struct Redis(MultiplexedConnection);

impl Redis {
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(NAME).arg(NAME).arg("0").arg("MKSTREAM");
        create.exec_async(&mut connection).await?;
        Ok(Self(connection))
    }
}

impl Raw for Redis {
    fn shape(&self, window: usize) -> (usize, usize) {
        (CALLS, window.div_ceil(CALLS))
    }

    async fn store(&self, messages: &[Message]) -> anyhow::Result<()> {
        let mut pipeline = Pipeline::with_capacity(messages.len());
        for Message { id, body } in messages {
            pipeline.cmd("XADD").arg(NAME).arg("*").arg("event_id").arg(id).arg("body").arg(&body[..]);
        }
        Ok(pipeline.exec_async(&mut self.0.clone()).await?)
    }

    async fn consume(&self, count: usize) -> anyhow::Result<()> {
        let mut consumed = 0;
        while consumed < count {
            let mut read = cmd("XREADGROUP");
            read.arg("GROUP").arg(NAME).arg(NAME).arg("COUNT").arg(CLAIM).arg("STREAMS").arg(NAME).arg(">");
            let read: Option<StreamReadReply> = read.query_async(&mut self.0.clone()).await?;
            let read = read.context("the stream is empty")?;
            let ids: Vec<_> = read.keys.iter().flat_map(|key| &key.ids).map(|entry| &entry.id).collect();
            cmd("XACK").arg(NAME).arg(NAME).arg(&ids).exec_async(&mut self.0.clone()).await?;
            consumed += ids.len();
        }
        Ok(())
    }

    async fn clean(&self) -> anyhow::Result<()> {
        let trim: Value =
            cmd("XTRIM").arg(NAME).arg("MAXLEN").arg(0).query_async(&mut self.0.clone()).await?;
        anyhow::ensure!(matches!(trim, Value::Int(_)), "XTRIM answered {trim:?}");
        Ok(())
    }
}

/// A quorum queue: publishes with confirms on one connection; a consumer with one ack for many messages on another.
#[derive(Debug)]
pub struct Rabbitmq {
    publishing: Channel,
    consuming: Channel,
    consumer: Mutex<Consumer>,
    _connections: [Connection; 2],
}

impl Rabbitmq {
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let connect = || Connection::connect(url, ConnectionProperties::default());
        let connections = [connect().await?, connect().await?];
        let publishing = connections[0].create_channel().await?;
        publishing.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        publishing.queue_declare(NAME.into(), QueueDeclareOptions::durable(), arguments).await?;
        let consuming = connections[1].create_channel().await?;
        consuming.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consumer = consuming.basic_consume(
            NAME.into(),
            NAME.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = Mutex::new(consumer.await?);
        Ok(Self { publishing, consuming, consumer, _connections: connections })
    }

    async fn publish(&self, Message { id, body }: &Message) -> anyhow::Result<()> {
        let persistent = BasicProperties::default().with_delivery_mode(2).with_message_id(id.as_str().into());
        let options = BasicPublishOptions::default();
        let published = self.publishing.basic_publish("".into(), NAME.into(), options, body, persistent);
        let confirmed = published.await?.await?;
        anyhow::ensure!(matches!(confirmed, Confirmation::Ack(None)), "RabbitMQ answered {confirmed:?}");
        Ok(())
    }
}

impl Raw for Rabbitmq {
    fn shape(&self, window: usize) -> (usize, usize) {
        (CALLS, window.div_ceil(CALLS))
    }

    async fn store(&self, messages: &[Message]) -> anyhow::Result<()> {
        try_join_all(messages.iter().map(|message| self.publish(message))).await?;
        Ok(())
    }

    async fn consume(&self, count: usize) -> anyhow::Result<()> {
        let mut consumer = self.consumer.lock().await;
        for consumed in 1..=count {
            let delivery = consumer.next().await.context("the consumer ended")??;
            // Before the server waits for it.
            if consumed == count || consumed.is_multiple_of(usize::from(PREFETCH) / 2) {
                let all_before = BasicAckOptions { multiple: true };
                self.consuming.basic_ack(delivery.delivery_tag, all_before).await?;
            }
        }
        Ok(())
    }
}
