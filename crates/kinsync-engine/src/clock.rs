//! The current time. Passed to every component, so that tests control it.

use std::{fmt, sync::Arc};

use kinsync_core::Micros;

/// Source of the current time. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Micros + Send + Sync>);

impl Clock {
    /// Returns the wall clock of the machine.
    pub fn system() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place of this crate that reads the wall clock"
        )]
        Self::from_fn(|| Micros(jiff::Timestamp::now().as_microsecond()))
    }

    /// Returns a clock that calls `now`.
    pub fn from_fn(now: impl Fn() -> Micros + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Returns the current instant in UTC. Never orders observations: only provider times do.
    pub fn now(&self) -> Micros {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
