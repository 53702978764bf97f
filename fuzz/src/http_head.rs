//! Every sequence of bytes on a connection is answered with well-formed responses or with none, without an internal error,
//! and stores nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use kinsync::http::server::{Limits, serve_one};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::server::Server;

/// Inputs so far: the queue is read for some of them only.
static RUNS: AtomicU64 = AtomicU64::new(0);

pub fn run(server: &Server, input: &[u8]) {
    if input.len() > 1 << 19 {
        return;
    }
    let responses = server.runtime.block_on(exchange(server, input));
    if let Some(first) = responses.get(..12) {
        let is_http = first.starts_with(b"HTTP/1.1 ") || first.starts_with(b"HTTP/1.0 ");
        assert!(is_http, "{:?}", first.escape_ascii());
        let status = std::str::from_utf8(&first[9..12]).expect("a status").parse::<u16>().expect("a status");
        // Without keys of the issuer a token is answered 503; codings that are not known 501; HTTP/2 505.
        assert!((100..500).contains(&status) || [501, 503, 505].contains(&status), "{status}");
    }
    if RUNS.fetch_add(1, Relaxed).is_multiple_of(512) {
        assert_nothing_is_stored(server);
    }
}

pub fn assert_nothing_is_stored(server: &Server) {
    let stats = server.runtime.block_on(server.state.engine.queue().stats()).expect("the queue answers");
    assert_eq!((stats.depth, stats.dead_letters), (0, 0), "something without a signature was stored");
}

fn limits() -> Limits {
    let (deadline, grace) = (Duration::from_secs(5), Duration::from_secs(1));
    Limits {
        max_connections: 1,
        max_connections_per_client: 1,
        proxies: Vec::new(),
        head_deadline: deadline,
        write_stall: deadline,
        grace,
    }
}

async fn exchange(server: &Server, input: &[u8]) -> Vec<u8> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let serve = serve_one(theirs, server.router.clone(), limits());
    let client = async {
        let (mut read, mut write) = tokio::io::split(ours);
        let send = async {
            _ = write.write_all(input).await;
            _ = write.shutdown().await;
        };
        let mut responses = Vec::new();
        let ((), read) = tokio::join!(send, read.read_to_end(&mut responses));
        read.expect("a pipe does not fail");
        responses
    };
    let (_, responses) = tokio::join!(serve, client);
    responses
}
