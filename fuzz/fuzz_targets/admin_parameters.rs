//! Every path, query and body of a request to the admin routes is answered with JSON and without an internal error.
//!
//! The first byte of the input chooses the method, the rest of the first line is the path and query below `/api/admin/`,
//! and what follows is the body.
#![no_main]

use axum::body::Body;
use http::{Request, StatusCode, Uri};
use http_body_util::BodyExt as _;
use kinde_fuzz::{ADMIN_TOKEN, server};
use libfuzzer_sys::{Corpus, fuzz_target};
use tower_service::Service as _;

fuzz_target!(|input: &[u8]| -> Corpus {
    let (head, body) = match input.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[][..]),
    };
    let Some((method, path)) = head.split_first() else { return Corpus::Reject };
    let method = match method {
        b'P' => "POST",
        b'D' => "DELETE",
        _ => "GET",
    };
    let Ok(uri) = Uri::try_from([b"/api/admin/", path].concat()) else { return Corpus::Reject };
    let request = Request::builder().method(method).uri(uri).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {ADMIN_TOKEN}"));
    let request = request.body(Body::from(body.to_vec())).expect("a valid request");
    let server = server();
    let (status, body) = server.runtime.block_on(async {
        let Ok(response) = server.router.clone().call(request).await;
        let (head, body) = response.into_parts();
        (head.status, body.collect().await.expect("a whole body").to_bytes())
    });
    assert!(status != StatusCode::INTERNAL_SERVER_ERROR && status != StatusCode::UNAUTHORIZED, "{status}");
    serde_json::from_slice::<serde_json::Value>(&body).expect("a JSON document");
    Corpus::Keep
});
