//! Slow, greedy and malformed clients, on plain sockets.

use std::{
    io::{Read, Write},
    time::Duration,
};
use tokio::time::Instant;

use crate::server::{BODY, SECRET, Server, answer};

/// Short deadlines, so that the tests are short.
const QUICK: &[(&str, &str)] = &[
    ("KINSYNC_HEAD_DEADLINE", "300ms"),
    ("KINSYNC_BODY_DEADLINE", "300ms"),
    ("KINSYNC_REQUEST_DEADLINE", "5s"),
];

#[test]
fn a_head_that_does_not_end_closes_the_connection() {
    let server = Server::start(QUICK);
    let mut stream = server.connect();
    write!(stream, "POST /api/webhook HTTP/1.1\r\nhost: test\r\nx-slow: ").unwrap();
    let began = Instant::now();
    let (status, _) = answer(&mut stream);
    assert!(matches!(status, 0 | 408), "{status}");
    assert!(began.elapsed() >= Duration::from_millis(250), "not before the deadline");
    assert_eq!(server.deliver(BODY).0, 200, "others are served");
}

#[test]
fn an_idle_connection_is_closed() {
    let server = Server::start(QUICK);
    let mut stream = server.connect();
    write!(stream, "GET /health/live HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    let (status, _) = answer(&mut stream);
    assert_eq!(status, 200, "answered, and closed by the server afterwards");
}

#[test]
fn a_body_that_does_not_arrive_is_answered_408() {
    let server = Server::start(QUICK);
    let mut stream = server.connect();
    write!(
        stream,
        "POST /api/webhook HTTP/1.1\r\nhost: test\r\nx-kinde-signature: 00\r\ncontent-length: 100\r\n\r\n{{"
    )
    .unwrap();
    assert_eq!(answer(&mut stream).0, 408);
}

#[test]
fn a_content_length_above_the_limit_is_answered_413() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    write!(stream, "POST /api/webhook HTTP/1.1\r\nhost: test\r\ncontent-length: 1073741824\r\n\r\n").unwrap();
    assert_eq!(answer(&mut stream).0, 413);
}

#[test]
fn a_chunked_body_of_one_gibibyte_is_cut_off_and_memory_stays_flat() {
    let server = Server::start(&[]);
    server.deliver(BODY);
    let before = server.resident();
    for _ in 0..8 {
        let mut stream = server.connect();
        write!(stream, "POST /api/webhook HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        let chunk = [b"100000\r\n".as_slice(), &vec![b'x'; 1 << 20], b"\r\n"].concat();
        let sent = (0..1024).take_while(|_| stream.write_all(&chunk).is_ok()).count();
        assert!(sent < 64, "{sent} MiB were taken before the connection was cut");
    }
    let after = server.resident();
    assert!(after < before + 16 * 1024, "resident memory grew from {before} to {after} KiB");
}

#[test]
fn two_lengths_or_a_length_and_chunks_are_refused() {
    let server = Server::start(QUICK);
    let signature = kinde::sign::hmac_hex(SECRET, BODY.as_bytes());
    let framings = [
        format!("content-length: {}\r\ncontent-length: 5\r\n", BODY.len()),
        format!("content-length: +{}\r\n", BODY.len()),
        "content-length: -1\r\n".to_owned(),
        "transfer-encoding: chunked, identity\r\n".to_owned(),
        "transfer-encoding: xchunked\r\n".to_owned(),
    ];
    for framing in framings {
        let mut stream = server.connect();
        let head = format!(
            "POST /api/webhook HTTP/1.1\r\nhost: test\r\nx-kinde-signature: {signature}\r\n{framing}\r\n"
        );
        write!(stream, "{head}{BODY}").unwrap();
        let (status, body) = answer(&mut stream);
        assert!(status != 200, "{framing:?} was taken: {body}");
    }
    assert_eq!(server.admin("/api/admin/stats").1["store"]["events"], 0, "nothing was stored");
}

#[test]
fn a_length_that_is_too_short_is_not_the_signed_body() {
    let server = Server::start(&[]);
    let signature = kinde::sign::hmac_hex(SECRET, BODY.as_bytes());
    let mut stream = server.connect();
    write!(
        stream,
        "POST /api/webhook HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-kinde-signature: {signature}\r\n\
         content-length: 10\r\n\r\n{BODY}"
    )
    .unwrap();
    assert_eq!(answer(&mut stream).0, 401);
}

#[test]
fn a_compressed_body_is_answered_415() {
    let server = Server::start(&[]);
    let (status, _) = server.request("POST", "/api/webhook", &[("content-encoding", "gzip")], BODY);
    assert_eq!(status, 415);
}

#[test]
fn a_head_above_32_kib_is_answered_431() {
    let server = Server::start(&[]);
    let status = |length| server.request("GET", "/health/live", &[("x-long", &"x".repeat(length))], "").0;
    assert_eq!(status(31 * 1024), 200);
    for length in [33 * 1024, 40 * 1024, 60 * 1024] {
        assert_eq!(status(length), 431, "{length}");
    }
    assert!(matches!(status(1 << 20), 0 | 431), "the client may see the reset before the response");
}

#[test]
fn heads_that_are_ambiguous_are_refused() {
    let server = Server::start(&[]);
    let heads = [
        ("GET /health/live HTTP/1.1\r\n\r\n", 400, "no Host"),
        ("GET /health/live HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "two Hosts"),
        ("GET /health/live HTTP/1.0\r\n\r\n", 200, "HTTP/1.0 needs no Host"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2 without TLS"),
        (
            "POST /api/webhook HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
            "a coding under the chunks",
        ),
        (
            "POST /api/webhook HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
            "the same in two lines",
        ),
    ];
    for (head, expected, what) in heads {
        let mut stream = server.connect();
        write!(stream, "{head}").unwrap();
        assert_eq!(answer(&mut stream).0, expected, "{what}");
    }
}

#[test]
fn a_connection_serves_one_delivery_after_the_other() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    for n in 0..3 {
        let body = format!(
            r#"{{"type":"user.created","event_id":"e{n}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"u"}}}}}}"#
        );
        let signature = kinde::sign::hmac_hex(SECRET, body.as_bytes());
        let length = body.len();
        write!(
            stream,
            "POST /api/webhook HTTP/1.1\r\nhost: x\r\nx-kinde-signature: {signature}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\"duplicate\":false}") {
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "closed after {n}");
            bytes.extend_from_slice(&buffer[..read]);
        }
    }
}

#[test]
fn idle_connections_are_closed_for_new_ones_when_all_slots_are_taken() {
    let server = Server::start(&[("KINSYNC_MAX_CONNECTIONS", "2"), ("KINSYNC_HEAD_DEADLINE", "10m")]);
    let mut half = server.connect();
    write!(half, "GET /health/live HTTP/1.1\r\nx-half: ").unwrap();
    let mut idle: Vec<_> = (0..4).map(|_| server.connect()).collect();
    assert_eq!(server.deliver(BODY).0, 200, "the head deadline is far away");
    for stream in [&mut half, &mut idle[0]] {
        assert_eq!(answer(stream).0, 0, "closed without a response");
    }
}

#[test]
fn an_unsigned_body_is_refused_before_all_of_it_is_sent() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    write!(stream, "POST /api/webhook HTTP/1.1\r\nhost: test\r\ncontent-length: 200000\r\n\r\n{{").unwrap();
    assert_eq!(answer(&mut stream).0, 401);
}

#[test]
fn half_bodies_keep_neither_deliveries_nor_health_checks_out() {
    let limits = [
        ("KINSYNC_BODY_BUDGET", "1MiB"),
        ("KINSYNC_BODY_DEADLINE", "10m"),
        ("KINSYNC_REQUEST_DEADLINE", "10m"),
    ];
    let server = Server::start(&limits);
    let half = vec![b'x'; 128 * 1024];
    let mut open = Vec::new();
    for _ in 0..64 {
        let mut stream = server.connect();
        write!(
            stream,
            "POST /api/webhook HTTP/1.1\r\nhost: test\r\nx-kinde-signature: 00\r\ncontent-length: 200000\r\n\r\n"
        )
        .unwrap();
        // The server may answer 503 and close before all of it is sent.
        _ = stream.write_all(&half);
        open.push(stream);
    }
    let refused = open.iter_mut().filter_map(|stream| {
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).ok().map(|()| status)
    });
    let refused: Vec<_> = refused.collect();
    assert!(refused.len() >= 48 && refused.iter().all(|status| status == b"HTTP/1.1 503"), "{refused:?}");
    assert_eq!(server.deliver(BODY).0, 200);
    for path in ["/health", "/health/ready", "/metrics"] {
        // Bodies that never arrive hold up none of these: each is answered long before a deadline of ten minutes.
        assert_eq!(server.request("GET", path, &[], "").0, 200, "{path}");
    }
}

#[test]
fn sigterm_answers_what_is_in_flight_and_exits_with_0() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    let signature = kinde::sign::hmac_hex(SECRET, BODY.as_bytes());
    let length = BODY.len();
    let (first, rest) = BODY.split_at(10);
    write!(
        stream,
        "POST /api/webhook HTTP/1.1\r\nhost: x\r\nx-kinde-signature: {signature}\r\ncontent-length: {length}\r\n\
         expect: 100-continue\r\n\r\n"
    )
    .unwrap();
    // The server requests the body: the request is in flight.
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100"), "{:?}", String::from_utf8_lossy(&interim));
    write!(stream, "{first}").unwrap();
    server.terminate();
    let refused = Instant::now();
    while std::net::TcpStream::connect(server.address).is_ok() {
        assert!(refused.elapsed() < Duration::from_secs(30), "it still accepts");
    }
    write!(stream, "{rest}").unwrap();
    let (status, body) = answer(&mut stream);
    assert_eq!(status, 200, "{body}");
    let (status, lines) = server.end();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
}
