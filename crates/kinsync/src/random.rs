//! Draws random numbers. The lints allow it nowhere else in this crate, so that a test has one place to control.

use rand::{
    Rng,
    distr::{Distribution, StandardUniform},
    rngs::ThreadRng,
};

/// Returns a random number: a seed or a secret.
pub(crate) fn number<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    rng().random()
}

#[expect(clippy::disallowed_methods, reason = "the one place of this crate that draws random numbers")]
fn rng() -> ThreadRng {
    rand::rng()
}
