//! The baseline server: reads the body and answers 200 or a document. It shows the cost of HTTP alone, or of HTTP and of one
//! lookup in memory.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

/// Serves until the process is killed. `me` is the file with the document of /api/me. With `by_token` each token has a copy of
/// it, found in a map as any server must find the user of a token.
pub async fn serve(port: u16, me: Option<PathBuf>, by_token: bool) -> anyhow::Result<()> {
    let me = me.map_or_else(|| Ok(Vec::new()), std::fs::read).context("reading the document")?;
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let me = Bytes::from(me);
    let documents: Arc<Mutex<HashMap<HeaderValue, Bytes>>> = Arc::default();
    let answer = async move |headers: HeaderMap| {
        let token = headers.get(header::AUTHORIZATION).filter(|_| by_token);
        let Some(token) = token else { return (json, me.clone()) };
        let mut documents = documents.lock().expect("no holder of the lock panics");
        let document = if let Some(document) = documents.get(token) {
            document.clone()
        } else {
            // Copies: the headers of a request share the buffer of its connection.
            let token = HeaderValue::from_bytes(token.as_bytes()).expect("it was a header");
            documents.entry(token).or_insert(Bytes::copy_from_slice(&me)).clone()
        };
        (json, document)
    };
    let router = Router::new()
        .route("/api/me", get(answer))
        .route("/api/webhook", post(|_body: Bytes| async { StatusCode::OK }))
        .route("/health/ready", get(|| async { StatusCode::OK }));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listening")?;
    // Same as kinsync.
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY can be set"));
    axum::serve(listener, router).await.context("serving")
}
