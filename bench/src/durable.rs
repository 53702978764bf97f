//! The simplest durable server: it verifies the signature, and answers 200 after the commit of a transaction that contains the
//! event, in which one thread stores all events that wait. It shows the cost of a durable answer with the libraries of
//! kinsync and without the rest of it: no deadlines, no limits, no metrics, no problem documents.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use rusqlite::{Connection, params};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::kinsync::SECRET;

/// Capacity of the channel, and the most rows of a transaction: more than the connections of the load.
const WAITING: usize = 1024;

/// What identifies an event.
#[derive(Deserialize)]
struct Event<'a> {
    event_id: &'a str,
}

struct Row {
    body: Bytes,
    /// Gets the answer after the commit.
    stored: oneshot::Sender<()>,
}

/// Serves until the process is killed.
pub async fn serve(port: u16, folder: &Path) -> anyhow::Result<()> {
    let (rows, waiting) = mpsc::channel(WAITING);
    let sqlite = open(&folder.join("durable.sqlite"))?;
    thread::spawn(move || store(sqlite, waiting));
    let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()));
    let accept = async move |headers: HeaderMap, body: Bytes| {
        if !is_signed(&key, &headers, &body) {
            return StatusCode::UNAUTHORIZED;
        }
        let (stored, answer) = oneshot::channel();
        if rows.send(Row { body, stored }).await.is_err() || answer.await.is_err() {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        StatusCode::OK
    };
    let router = Router::new()
        .route("/api/webhook", post(accept))
        .route("/health/ready", get(|| async { StatusCode::OK }));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listening")?;
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY can be set"));
    axum::serve(listener, router).await.context("serving")
}

fn is_signed(key: &hmac::Key, headers: &HeaderMap, body: &[u8]) -> bool {
    let signature = headers.get("x-kinde-signature").and_then(|text| text.to_str().ok());
    let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let tag = signature.and_then(|text| text.as_bytes().chunks(2).map(digit).collect::<Option<Vec<_>>>());
    tag.is_some_and(|tag| hmac::verify(key, body, &tag).is_ok())
}

/// The journal of kinsync's queue, with the checkpoints that SQLite has by default, and its row: a key in the order of arrival, and the id that makes a repeated event one row.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let sqlite = Connection::open(path)?;
    sqlite.pragma_update(None, "journal_mode", "wal")?;
    sqlite.pragma_update(None, "synchronous", "full")?;
    sqlite.execute_batch(
        "CREATE TABLE entries (id INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL) STRICT",
    )?;
    Ok(sqlite)
}

/// Stores what waits, and ends with the first failure: the answers that follow are then 503.
fn store(mut sqlite: Connection, mut waiting: mpsc::Receiver<Row>) {
    let mut rows = Vec::with_capacity(WAITING);
    while let Some(first) = waiting.blocking_recv() {
        rows.push(first);
        while rows.len() < WAITING
            && let Ok(row) = waiting.try_recv()
        {
            rows.push(row);
        }
        commit(&mut sqlite, &rows).expect("the rows are stored");
        for row in rows.drain(..) {
            // Sending fails if the client is gone.
            _ = row.stored.send(());
        }
    }
}

fn commit(sqlite: &mut Connection, rows: &[Row]) -> anyhow::Result<()> {
    let transaction = sqlite.transaction()?;
    let mut insert =
        transaction.prepare_cached("INSERT OR IGNORE INTO entries (event_id, body) VALUES (?1, ?2)")?;
    for Row { body, .. } in rows {
        let Event { event_id } = serde_json::from_slice(body)?;
        insert.execute(params![event_id, &body[..]])?;
    }
    drop(insert);
    Ok(transaction.commit()?)
}
