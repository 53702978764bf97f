//! The queues that several processes share.

use std::sync::Arc;

use super::{Error, Queue};
use crate::{clock::Clock, store::Store, supervisor::Supervisor};

/// Settings of a queue that several processes share.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SharedQueue {
    /// Redis Streams.
    #[cfg(feature = "redis")]
    Redis(super::redis::Config),
    /// RabbitMQ. Its dead letters are kept in the store.
    #[cfg(feature = "rabbitmq")]
    Rabbitmq(super::rabbitmq::Config),
}

impl SharedQueue {
    /// Creates the queue, with its background task in this supervisor. Connects when it is first used. Call it within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] if the address cannot be understood.
    pub(crate) fn create(
        self,
        store: &Arc<dyn Store>,
        clock: &Clock,
        supervisor: &Supervisor,
    ) -> Result<Arc<dyn Queue>, Error> {
        _ = (store, clock, supervisor);
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(config) => {
                Ok(Arc::new(super::redis::RedisQueue::supervised(config, clock.clone(), supervisor)?))
            }
            #[cfg(feature = "rabbitmq")]
            Self::Rabbitmq(config) => {
                let (store, clock) = (Arc::clone(store), clock.clone());
                let queue = super::rabbitmq::RabbitmqQueue::supervised(config, store, clock, supervisor)?;
                Ok(Arc::new(queue))
            }
        }
    }
}
