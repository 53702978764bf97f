//! Proves it: real servers, a test application, seeded histories.

pub mod app;
pub mod mongo;
pub mod partition;
pub mod rabbitmq;
pub mod redis;
pub mod replica_set;
pub mod sentinels;
mod shell;
pub mod slow;
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

/// Returns a port of the loopback interface that is free at this moment, below those that the system gives to clients: a connection
/// of another process does not take it before a server binds it.
///
/// # Panics
/// When no port is free.
pub fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| 10_000 + random::<u16>() % 20_000).take(1_000);
    let is_free = |port: &u16| std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports.into_iter().find(is_free).expect("loopback has a free port")
}

/// Returns how often a test repeats its disturbance: the environment variable `variable`, which `.ci/nightly` sets, or `default`.
///
/// # Panics
/// When the variable holds no number.
pub fn repetitions(variable: &str, default: u32) -> u32 {
    std::env::var_os(variable).map_or(default, |text| {
        let number = text.to_str().and_then(|text| text.parse().ok());
        number.unwrap_or_else(|| panic!("{variable} must be a number"))
    })
}
