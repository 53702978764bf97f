//! Every path, query and body of a request to the admin routes is answered with JSON and without an internal error.
//!
//! The first byte of the input chooses the method, the rest of the first line is the path and query below `/api/admin/`,
//! and what follows is the body.

use axum::body::{Body, to_bytes};
use http::{Request, StatusCode, Uri};
use tower_service::Service as _;

use super::server::{ADMIN_TOKEN, Server};

pub fn run(server: &Server, input: &[u8]) {
    let (head, body) = match input.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[][..]),
    };
    let Some((method, path)) = head.split_first() else { return };
    let method = match method {
        b'P' => "POST",
        b'D' => "DELETE",
        _ => "GET",
    };
    let Ok(uri) = Uri::try_from([b"/api/admin/", path].concat()) else { return };
    let request = Request::builder().method(method).uri(uri).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {ADMIN_TOKEN}"));
    let request = request.body(Body::from(body.to_vec())).expect("a valid request");
    let (status, body) = server.runtime.block_on(async {
        let Ok(response) = server.router.clone().call(request).await;
        let (head, body) = response.into_parts();
        (head.status, to_bytes(body, usize::MAX).await.expect("a whole body"))
    });
    assert!(status != StatusCode::INTERNAL_SERVER_ERROR && status != StatusCode::UNAUTHORIZED, "{status}");
    serde_json::from_slice::<serde_json::Value>(&body).expect("a JSON document");
}
