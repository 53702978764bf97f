//! Deadlines for heads of requests, for next to nothing: one alarm for each connection, set anew only when it rings.
//!
//! Each request has a deadline of its own, and nearly all are over long before. A timer of the runtime for each would
//! be set and taken back again, under a lock that all connections share.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

/// The timer of one connection. Its deadlines may only grow, as those of heads do.
#[derive(Debug)]
pub struct HeadTimer(Alarm);

type Alarm = Arc<Mutex<Pin<Box<tokio::time::Sleep>>>>;

/// Nothing is waited for yet.
impl Default for HeadTimer {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Box::pin(tokio::time::sleep(Duration::ZERO)))))
    }
}

impl hyper::rt::Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(tokio::time::Instant::now().into_std() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Wait { deadline, alarm: Arc::clone(&self.0) })
    }
}

struct Wait {
    deadline: Instant,
    alarm: Alarm,
}

impl hyper::rt::Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // Set for the deadline of an earlier request, or for ours.
            ready!(alarm.as_mut().poll(cx));
            if tokio::time::Instant::now().into_std() >= self.deadline {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(self.deadline.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::rt::Timer;

    use super::*;

    #[tokio::test]
    async fn every_deadline_is_kept_and_none_is_early() {
        let timer = HeadTimer::default();
        let limit = Duration::from_millis(60);
        drop(timer.sleep(limit));
        let abandoned = tokio::time::timeout(limit / 3, timer.sleep(limit)).await;
        assert!(abandoned.is_err());
        let last = tokio::time::Instant::now().into_std() + limit;
        let rang = tokio::time::timeout(20 * limit, timer.sleep_until(last)).await;
        assert!(rang.is_ok(), "it rings");
        assert!(tokio::time::Instant::now().into_std() >= last, "the alarm of the one before is not ours");
    }
}
