//! Draws random numbers. The lints allow it nowhere else in this crate, so that a test has one place to control.

use std::{ops::RangeInclusive, time::Duration};

use rand::{
    Rng,
    distr::{Distribution, StandardUniform},
    rngs::ThreadRng,
};

/// Returns a random share of `pause`, for example `0.5..=1.0` of it, so that callers do not all return at the same time.
pub(crate) fn jitter(pause: Duration, share: RangeInclusive<f64>) -> Duration {
    pause.mul_f64(rng().random_range(share))
}

/// Returns a random number: an id, a seed, a secret, a term or a write mark.
pub fn number<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    rng().random()
}

#[expect(clippy::disallowed_methods, reason = "the one place of this crate that draws random numbers")]
fn rng() -> ThreadRng {
    rand::rng()
}
