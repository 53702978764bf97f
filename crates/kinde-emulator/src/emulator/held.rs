//! Requests that wait until a test releases them.

use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use super::{Emulator, lock};

/// The routes that are held.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<Vec<Arc<Hold>>>);

#[derive(Debug)]
struct Hold {
    route: String,
    /// Requests that are still to be held.
    requests: Mutex<usize>,
    released: CancellationToken,
}

/// Holds requests until it is dropped. See [`Emulator::hold`].
#[must_use = "requests are released as soon as this is dropped"]
pub struct Held {
    emulator: Emulator,
    hold: Arc<Hold>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("route", &self.hold.route).finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.hold.released.cancel();
        lock(&self.emulator.shared.holds.0).retain(|hold| !Arc::ptr_eq(hold, &self.hold));
    }
}

impl Emulator {
    /// Lets the next requests to this route wait, at most so many of them, until the returned guard is dropped. They are counted
    /// when they arrive and answered from the state after the wait. Route names are those of [`Emulator::requests`].
    pub fn hold(&self, route: &str, requests: usize) -> Held {
        let (requests, released) = (Mutex::new(requests), CancellationToken::new());
        let hold = Arc::new(Hold { route: route.to_owned(), requests, released });
        lock(&self.shared.holds.0).push(Arc::clone(&hold));
        Held { emulator: self.clone(), hold }
    }

    /// Returns what releases this request, if it is held.
    pub(crate) fn held(&self, route: &str) -> Option<CancellationToken> {
        let takes = |hold: &&Arc<Hold>| {
            let mut left = lock(&hold.requests);
            let takes = hold.route == route && *left > 0;
            *left -= usize::from(takes);
            takes
        };
        lock(&self.shared.holds.0).iter().find(takes).map(|hold| hold.released.clone())
    }
}
