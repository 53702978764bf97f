//! Many hostile connections at once, on the real binary. Run by `.ci/nightly`; it prints its figures.
#![expect(clippy::print_stdout, reason = "its figures are for the reader of the log")]

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use kinde_emulator::{Emulator, NewUser, TokenSpec};
use tokio::time::Instant;

use crate::server::{Server, answer};

const IDLE: usize = 10_000;
const HALF_BODIES: usize = 4_000;
const MAX_RESIDENT: u64 = 200 * 1024;
const MAX_LATENCY: Duration = Duration::from_secs(1);

/// Begins a delivery with a signature and never ends its body.
fn half_body(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = "POST /api/webhook HTTP/1.1\r\nhost: localhost\r\nx-kinde-signature: 00\r\ncontent-length: 262144\r\n\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    stream.set_nonblocking(true).ok()?;
    // As much as the server takes without waiting.
    let half = [b'x'; 16 * 1024];
    while stream.write(&half).is_ok_and(|written| written > 0) {}
    Some(stream)
}

/// The longest of several deliveries and logins.
fn slowest(server: &Server, token: &str, rounds: usize) -> (Duration, Duration) {
    let (mut delivery, mut login) = (Duration::ZERO, Duration::ZERO);
    for round in 0..rounds {
        let began = Instant::now();
        let event =
            format!(r#"{{"type":"user.created","event_id":"e{round}","data":{{"user":{{"id":"u"}}}}}}"#);
        assert_eq!(server.deliver(&event).0, 200);
        delivery = delivery.max(began.elapsed());
        let began = Instant::now();
        let me = server.request("GET", "/api/me", &[("authorization", &format!("Bearer {token}"))], "");
        assert_eq!(me.0, 200, "{}", me.1);
        login = login.max(began.elapsed());
    }
    (delivery, login)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "opens 14,000 sockets: run by `.ci/nightly`, or with `ulimit -n 20000`"]
async fn idle_sockets_and_half_bodies_take_little_memory_and_keep_neither_deliveries_nor_logins_out() {
    let kinde = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
    let user = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let token = kinde.access_token(&user, &TokenSpec::default()).unwrap();
    let issuer = kinde.issuer().to_owned();
    let load = move || {
        let server = Server::start(&[("KINDE_DOMAIN", &issuer)]);
        let (delivery, login) = slowest(&server, &token, 20);
        println!("before: {} KiB, delivery {delivery:?}, login {login:?}", server.resident());
        let idle: Vec<_> = (0..IDLE).map(|_| TcpStream::connect(server.address).unwrap()).collect();
        let (delivery, login) = slowest(&server, &token, 20);
        println!("{IDLE} idle: {} KiB, delivery {delivery:?}, login {login:?}", server.resident());
        let half: Vec<_> = (0..HALF_BODIES).filter_map(|_| half_body(server.address)).collect();
        assert_eq!(half.len(), HALF_BODIES);
        let (delivery, login) = slowest(&server, &token, 50);
        let resident = server.resident();
        println!("{} half bodies: {resident} KiB, delivery {delivery:?}, login {login:?}", half.len());
        assert!(resident < MAX_RESIDENT, "{resident} KiB");
        assert!(delivery < MAX_LATENCY && login < MAX_LATENCY, "delivery {delivery:?}, login {login:?}");
        drop(idle);
        drop(half);
        renewed_half_bodies(&server, &token);
    };
    tokio::task::spawn_blocking(load).await.unwrap();
}

/// More half bodies than slots, opened again as soon as the server closes them.
fn renewed_half_bodies(server: &Server, token: &str) {
    let (stop, address) = (AtomicBool::new(false), server.address);
    let (delivery, login) = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut open = std::collections::VecDeque::new();
                while !stop.load(Relaxed) {
                    open.extend(half_body(address));
                    if open.len() > 2_500 {
                        open.pop_front();
                    }
                }
            });
        }
        thread::sleep(Duration::from_secs(3));
        let slowest = slowest(server, token, 20);
        stop.store(true, Relaxed);
        slowest
    });
    println!(
        "half bodies on all slots, renewed: {} KiB, delivery {delivery:?}, login {login:?}",
        server.resident()
    );
    assert!(server.resident() < MAX_RESIDENT, "{} KiB", server.resident());
    let mut stream = server.connect();
    write!(stream, "GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    assert_eq!(answer(&mut stream).0, 200);
}
