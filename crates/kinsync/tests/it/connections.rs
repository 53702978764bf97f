//! Senders that are slow, greedy or wrong, on plain sockets.

use std::{
    io::{Read, Write},
    time::Duration,
};
use tokio::time::Instant;

use crate::server::{BODY, SECRET, Server, answer};

/// Short, so that the tests are.
const QUICK: &[(&str, &str)] = &[
    ("KINSYNC_HEAD_DEADLINE", "300ms"),
    ("KINSYNC_BODY_DEADLINE", "300ms"),
    ("KINSYNC_REQUEST_DEADLINE", "5s"),
];

#[test]
fn a_head_that_does_not_end_is_cut_off() {
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
fn a_body_that_does_not_come_is_a_408() {
    let server = Server::start(QUICK);
    let mut stream = server.connect();
    write!(stream, "POST /api/webhook HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{{").unwrap();
    assert_eq!(answer(&mut stream).0, 408);
}

#[test]
fn a_body_that_says_it_is_huge_is_refused_at_once() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    write!(stream, "POST /api/webhook HTTP/1.1\r\nhost: test\r\ncontent-length: 1073741824\r\n\r\n").unwrap();
    assert_eq!(answer(&mut stream).0, 413);
}

#[test]
fn a_chunked_body_of_one_gibibyte_is_cut_and_memory_stays_flat() {
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
fn a_compressed_body_is_a_415() {
    let server = Server::start(&[]);
    let (status, _) = server.request("POST", "/api/webhook", &[("content-encoding", "gzip")], BODY);
    assert_eq!(status, 415);
}

#[test]
fn a_head_of_a_megabyte_is_refused() {
    let server = Server::start(&[]);
    let (status, _) = server.request("GET", "/health/live", &[("x-long", &"x".repeat(1 << 20))], "");
    assert!(matches!(status, 0 | 431), "{status}");
}

#[test]
fn a_connection_serves_one_delivery_after_the_other() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    for n in 0..3 {
        let body = format!(r#"{{"type":"user.created","event_id":"e{n}","data":{{"user":{{"id":"u"}}}}}}"#);
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
fn more_connections_than_allowed_wait_and_are_served() {
    let server = Server::start(&[("KINSYNC_MAX_CONNECTIONS", "2"), ("KINSYNC_HEAD_DEADLINE", "300ms")]);
    let idle: Vec<_> = (0..4).map(|_| server.connect()).collect();
    assert_eq!(server.deliver(BODY).0, 200, "as soon as the idle ones are cut");
    drop(idle);
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
    // The server asks for the body: the request is in flight.
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).unwrap();
    assert!(asked.starts_with(b"HTTP/1.1 100"), "{:?}", String::from_utf8_lossy(&asked));
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
