//! The fuzz targets on their kept seeds, and on a fixed number of variations of each: a short run without fuzzing tools.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::forward_auth::ROOT;

#[path = "../../../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets are binaries that use this file as a library")]
mod targets;

use targets::{
    admin_parameters, decode_event, http_head, jwks_document, server::Server, verify_bearer, verify_webhook,
};

/// Variations of each seed.
const VARIATIONS: usize = 100;
/// Bytes that often matter to a parser.
const TOKENS: [&[u8]; 12] =
    [b"\r\n", b"\n", b"\0", b"\xff", b"\"", b"{", b"]", b":", b"%", b"..", b"-1", b"\\ud800"];

/// Runs the target with each seed and its variations. The variations are the same each time.
fn replay(target: &str, run: impl Fn(&[u8])) {
    let mut seeds: Vec<_> = fs::read_dir(format!("{ROOT}/fuzz/seeds/{target}"))
        .unwrap()
        .map(|seed| fs::read(seed.unwrap().path()).unwrap())
        .collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds.sort();
    let mut random = StdRng::seed_from_u64(1);
    for seed in seeds {
        for n in 0..=VARIATIONS {
            let input = if n == 0 { seed.clone() } else { vary(&seed, &mut random) };
            let ended = catch_unwind(AssertUnwindSafe(|| run(&input)));
            assert!(ended.is_ok(), "{target} fails with the input b\"{}\"", input.escape_ascii());
        }
    }
}

/// Removes, repeats, changes and inserts bytes.
fn vary(seed: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut input = seed.to_vec();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=input.len());
        let end = random.random_range(at..=input.len().min(at + 32));
        match random.random_range(0..4) {
            0 => drop(input.drain(at..end)),
            1 => input.extend_from_within(at..end),
            2 => _ = input.get_mut(at).map(|byte| *byte ^= 1 << random.random_range(0..8)),
            _ => drop(input.splice(at..at, TOKENS[random.random_range(0..TOKENS.len())].iter().copied())),
        }
    }
    input
}

#[test]
fn every_seed_of_verify_webhook_passes() {
    replay("verify_webhook", verify_webhook::run);
}

#[test]
fn every_seed_of_decode_event_passes() {
    replay("decode_event", decode_event::run);
}

#[test]
fn every_seed_of_verify_bearer_passes() {
    replay("verify_bearer", verify_bearer::run);
}

#[test]
fn every_seed_of_jwks_document_passes() {
    replay("jwks_document", jwks_document::run);
}

#[test]
fn every_seed_of_admin_parameters_passes() {
    let server = Server::start();
    replay("admin_parameters", |input| admin_parameters::run(&server, input));
}

#[test]
fn every_seed_of_http_head_passes() {
    let server = Server::start();
    replay("http_head", |input| http_head::run(&server, input));
    http_head::assert_nothing_is_stored(&server);
}
