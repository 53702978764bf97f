//! Refuses a client for a while after wrong admin tokens: a few are free, each further one doubles the pause.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::network::client_of;

/// Wrong tokens without a pause.
const FREE: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Time without a wrong token after which the earlier ones do not count any more.
const FORGET_AFTER: Duration = Duration::from_mins(15);
/// Clients in memory. Above it, the client with the pause that ends first is forgotten.
const MAX_CLIENTS: usize = 4096;

/// The clients that sent wrong tokens.
#[derive(Debug, Default)]
pub struct BackOff(Mutex<HashMap<IpAddr, Failures>>);

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    /// End of the pause.
    until: Instant,
}

impl BackOff {
    /// Returns the rest of the client's pause, if it has one.
    pub fn pause(&self, client: IpAddr) -> Option<Duration> {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = clients.get(&client_of(client))?.until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Counts a wrong token. Returns the pause that it causes.
    pub fn fail(&self, client: IpAddr) -> Duration {
        let (client, now) = (client_of(client), Instant::now());
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = clients.get(&client).filter(|failures| now < failures.until + FORGET_AFTER);
        let count = before.map_or(0, |failures| failures.count).saturating_add(1);
        let pause = pause_after(count);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&client) {
            make_room(&mut clients, now);
        }
        clients.insert(client, Failures { count, until: now + pause });
        pause
    }
}

fn pause_after(failures: u32) -> Duration {
    match failures.checked_sub(FREE + 1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE),
    }
}

fn make_room(clients: &mut HashMap<IpAddr, Failures>, now: Instant) {
    clients.retain(|_, failures| now < failures.until + FORGET_AFTER);
    if clients.len() >= MAX_CLIENTS
        && let Some(first) =
            clients.iter().min_by_key(|(_, failures)| failures.until).map(|(client, _)| *client)
    {
        clients.remove(&first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_limit_and_end() {
        let (back_off, one) = (BackOff::default(), client(1));
        let pauses: Vec<u64> = (0..20).map(|_| back_off.fail(one).as_secs()).collect();
        assert_eq!(pauses[..10], [0, 0, 0, 0, 0, 1, 2, 4, 8, 16]);
        assert_eq!(pauses[19], 300);
        assert_eq!((back_off.pause(one), back_off.pause(client(2))), (Some(LONGEST_PAUSE), None));
        tokio::time::advance(LONGEST_PAUSE).await;
        assert_eq!(back_off.pause(one), None);
        assert_eq!(back_off.fail(one), LONGEST_PAUSE, "the earlier ones still count");
        tokio::time::advance(LONGEST_PAUSE + FORGET_AFTER).await;
        assert_eq!(back_off.fail(one), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_has_one_pause_for_its_ipv6_network() {
        let back_off = BackOff::default();
        for n in 0..6_u16 {
            back_off.fail(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]));
        }
        assert!(back_off.pause("2001:db8::ffff".parse().unwrap()).is_some());
        assert_eq!(back_off.pause("2001:db8:0:1::1".parse().unwrap()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn many_clients_take_no_more_memory_and_free_no_client_with_a_long_pause() {
        let back_off = BackOff::default();
        for _ in 0..12 {
            back_off.fail(client(0));
        }
        for n in 1..20_000 {
            back_off.fail(client(n));
        }
        assert_eq!(back_off.0.lock().unwrap().len(), MAX_CLIENTS);
        assert!(back_off.pause(client(0)).is_some());
    }
}
