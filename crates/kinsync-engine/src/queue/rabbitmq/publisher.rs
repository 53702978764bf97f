//! Entries that are published together. Each group has one wait for its confirms, and several groups are on their way at once.

use std::{sync::Arc, time::Duration};

use futures_util::{TryFutureExt as _, future::join_all};
use lapin::{
    BasicProperties, Confirmation,
    message::DeliveryResult,
    options::{BasicAckOptions, BasicPublishOptions},
};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    POLL, Shared,
    connection::{Failure, Live, RESPONSE},
    examine::count_ready,
    rows,
};
use crate::{
    queue::{Enqueued, Entry, Error, Payload, apart, batches::Outcomes, unanswered},
    supervisor::Supervisor,
};

/// Groups that wait for their confirms at the same time.
const IN_FLIGHT: usize = 8;

/// Age of a connection that is replaced when the server refuses an entry. RabbitMQ 3.10 refuses all further entries of a channel once a
/// policy limited the queue, also after the policy was removed.
const RENEW: Duration = Duration::from_secs(10);

const ALARM: &str = "it accepts no entries: its memory or its disk is nearly full";

impl Shared {
    /// Publishes entries until the token is cancelled.
    pub(super) async fn publish_all(self: &Arc<Self>, stop: &CancellationToken, supervisor: &Supervisor) {
        let shared = Arc::clone(self);
        let store = move |entries: Arc<[Entry]>| {
            let shared = Arc::clone(&shared);
            async move { shared.store(&entries).await }
        };
        self.batches.run(IN_FLIGHT, &self.tasks, stop, supervisor, store).await;
    }

    async fn store(&self, entries: &[Entry]) -> Outcomes {
        let (ready, most) = (self.ready_recently().await.ok(), self.config.max_entries);
        // A sighting can be made again by the next request.
        let bound =
            |entry: &Entry| if matches!(entry.payload, Payload::Sighting(_)) { most / 2 } else { most };
        let full = |entry: &Entry| ready.filter(|ready| *ready >= bound(entry));
        let accepted = entries.iter().filter(|entry| full(entry).is_none());
        let messages: Vec<_> = accepted
            .map(|entry| (rows::properties(entry, &self.message_id()), entry.payload.bytes()))
            .collect();
        let mut published = self.publish(&messages).await.into_iter();
        let outcome = |entry| match full(entry) {
            Some(depth) => Err(Error::Full { depth, bytes: 0 }),
            None => published
                .next()
                .map_or_else(|| Err(unanswered()), |published| Ok(published.map(|()| Enqueued::New)?)),
        };
        entries.iter().map(outcome).collect()
    }

    /// Publishes messages and waits for their confirms. The results are in the order of the messages.
    pub(super) async fn publish(
        &self,
        messages: &[(BasicProperties, impl AsRef<[u8]> + Sync)],
    ) -> Vec<Result<(), Failure>> {
        let every = |failure: Failure| messages.iter().map(|_| Err(failure.clone())).collect();
        let live = match self.publishing.live().await {
            Ok(live) => live,
            Err(failure) => return every(failure),
        };
        if live.is_blocked() {
            return every(live.unavailable(ALARM, "connection.blocked"));
        }
        let until = Instant::now() + RESPONSE;
        // A deadline for each: the others may have been confirmed.
        let sent = messages.iter().map(|(properties, body)| {
            let published = timeout_at(until, self.publish_one(&live, properties, body.as_ref()));
            published.unwrap_or_else(|elapsed| {
                Err(live.unavailable("it does not confirm entries: see its log", elapsed.to_string()))
            })
        });
        // In order: the futures of `join_all` are polled in the order of the messages.
        let published = join_all(sent).await;
        let is_old = live.opened.elapsed() > RENEW;
        let ends = |failure: &Failure| failure.ends_connection() || is_old;
        if published.iter().any(|one| one.as_ref().is_err_and(ends)) {
            // A new connection declares a queue again that was deleted.
            self.publishing.replace(live.generation).await;
        }
        published
    }

    async fn publish_one(
        &self,
        live: &Live,
        properties: &BasicProperties,
        body: &[u8],
    ) -> Result<(), Failure> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let queue = self.publishing.topology().queue.as_str();
        let published =
            live.channel.basic_publish("".into(), queue.into(), options, body, properties.clone());
        let confirm = published.await.map_err(|error| live.failure(&error))?;
        match confirm.await.map_err(|error| live.failure(&error))? {
            Confirmation::Ack(None) => Ok(()),
            // The library reports a message without a queue as acked.
            Confirmation::Ack(Some(_)) => {
                Err(live.unavailable("the queue was deleted; it is declared again", "not routed"))
            }
            Confirmation::Nack(_) | Confirmation::NotRequested => {
                const REFUSED: &str =
                    "it refused an entry: a policy limits the length of the queue, or see its log";
                Err(live.rejected(REFUSED))
            }
        }
    }

    /// Publishes an entry again that the server had moved to the second queue.
    pub(super) async fn publish_again(&self, generation: u64, delivery: DeliveryResult) {
        let Ok(Some(mut delivery)) = delivery else { return self.held.lose(generation) };
        let message = rows::of_delivery(&mut delivery);
        tracing::warn!(
            event = message.entry().map(|entry| &entry.event_id),
            "RabbitMQ moved an entry out of the queue, after a limit of deliveries or of time; it is put back"
        );
        let properties = match message.entry() {
            Some(entry) => rows::properties(entry, &message.id),
            None => delivery.properties.clone(),
        };
        while delivery.acker.usable() {
            match self.publish(&[(properties.clone(), &message.body)]).await.pop() {
                Some(Ok(())) => {
                    _ = delivery.acker.ack(BasicAckOptions::default()).await;
                    return;
                }
                _ => sleep(apart(POLL)).await,
            }
        }
    }

    /// Returns the number of entries that no process holds, counted at most a second ago.
    async fn ready_recently(&self) -> Result<u64, Failure> {
        let mut ready = self.ready.lock().await;
        if let Some((at, count)) = *ready
            && at.elapsed() < POLL
        {
            return Ok(count);
        }
        let live = self.publishing.live().await?;
        if live.is_blocked() {
            // It answers nothing on this connection.
            return Err(live.unavailable(ALARM, "connection.blocked"));
        }
        let count = count_ready(&live, self.publishing.topology()).await?;
        self.backlog(count);
        *ready = Some((Instant::now(), count.entries));
        Ok(count.entries)
    }
}
