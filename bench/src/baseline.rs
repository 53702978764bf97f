//! The baseline server: reads the body and answers 200 or a constant document. It shows the cost of HTTP alone.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

/// Serves until the process is killed. `me` is the file with the document of /api/me.
pub async fn serve(port: u16, me: Option<PathBuf>) -> anyhow::Result<()> {
    let me = me.map_or_else(|| Ok(Vec::new()), std::fs::read).context("reading the document")?;
    let me = ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Bytes::from(me));
    let router = Router::new()
        .route("/api/me", get(async move || me.clone()))
        .route("/api/webhook", post(|_body: Bytes| async { StatusCode::OK }))
        .route("/health/ready", get(|| async { StatusCode::OK }));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listening")?;
    // Same as kinsync.
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY can be set"));
    axum::serve(listener, router).await.context("serving")
}
