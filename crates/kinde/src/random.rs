//! Draws random numbers. The lints allow it nowhere else in this crate, so that a test has one place to control.

use std::{ops::RangeInclusive, time::Duration};

use rand::{Rng, rngs::ThreadRng};

/// Returns a random share of `pause`, for example `0.5..=1.0` of it, so that concurrent callers do not retry at the same time.
pub(crate) fn jitter(pause: Duration, share: RangeInclusive<f64>) -> Duration {
    pause.mul_f64(rng().random_range(share))
}

#[expect(clippy::disallowed_methods, reason = "the one place of this crate that draws random numbers")]
fn rng() -> ThreadRng {
    rand::rng()
}
