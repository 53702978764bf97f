//! Proves it: real servers, a test application, seeded histories.

pub mod app;
pub mod mongo;
pub mod tokens;

/// Returns the time of the machine's clock.
pub fn wall_clock() -> jiff::Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the one place where tests read the wall clock")]
    jiff::Timestamp::now()
}

/// Returns a random number for a name that no other test uses.
fn random<T>() -> T
where
    rand::distr::StandardUniform: rand::distr::Distribution<T>,
{
    #[expect(clippy::disallowed_methods, reason = "the one place where tests draw unseeded random numbers")]
    rand::random()
}
