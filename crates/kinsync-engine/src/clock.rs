//! What time it is. Passed in everywhere, so that tests decide.

use std::{fmt, sync::Arc};

use kinsync_core::Micros;

/// Tells the time. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Micros + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place of this crate that reads the wall clock"
        )]
        Self::from_fn(|| Micros(jiff::Timestamp::now().as_microsecond()))
    }

    /// A clock that answers what the function says.
    pub fn from_fn(now: impl Fn() -> Micros + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The present instant in UTC. Never orders observations.
    pub fn now(&self) -> Micros {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
