//! The key set of an issuer, as a page of a plain HTTP server.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    thread,
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use crate::server::Server;

/// Answers every request with this document. Returns the address.
fn serve(document: &'static str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n";
            _ = write!(stream, "{head}content-length: {}\r\n\r\n{document}", document.len());
        }
    });
    address
}

#[test]
fn a_private_key_in_the_key_set_is_a_problem_in_the_health_report() {
    const KEYS: &str = include_str!("../../../../fuzz/seeds/jwks_document/seed-private");
    let server = Server::start(&[("KINDE_DOMAIN", &serve(KEYS))]);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let health: Value = serde_json::from_str(&server.request("GET", "/health", &[], "").1).unwrap();
        let problems = health["problems"].to_string();
        if problems.contains("private key") {
            assert_eq!(
                (health["status"].as_str(), &health["accepting"]),
                (Some("degraded"), &Value::from(true))
            );
            return;
        }
        assert!(Instant::now() < deadline, "{health}");
        thread::sleep(Duration::from_millis(20));
    }
}
