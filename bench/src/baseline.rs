//! The server that does nothing: reads the body and answers 200. What HTTP alone costs.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

/// Serves until killed.
pub async fn serve(port: u16) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/api/webhook", post(|_body: Bytes| async { StatusCode::OK }))
        .route("/health/ready", get(|| async { StatusCode::OK }));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listening")?;
    // As kinsync does.
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY can be set"));
    axum::serve(listener, router).await.context("serving")
}
