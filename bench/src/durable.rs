//! The simplest durable server: it verifies the signature, and answers 200 after the commit of a transaction that contains the
//! body as received, in which one thread stores all bodies that wait. It shows what the parts of a delivery cost together, with a channel
//! to the thread that syncs and another one back, in the libraries of kinsync: repeated events are stored again, an RSA key is parsed for each
//! signature, and it has no deadlines, limits, leases, metrics or problem documents.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use anyhow::Context as _;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::{Connection, params};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::kinsync::SECRET;

/// Capacity of the channel, and the most rows of a transaction: more than the connections of the load.
const WAITING: usize = 1024;

/// How a body is verified.
enum Key {
    /// With the header `x-kinde-signature`.
    Hmac(Box<hmac::Key>),
    /// As a JWT that is signed with RS256.
    Rsa(UnparsedPublicKey<Vec<u8>>),
}

struct Row {
    body: Bytes,
    /// Gets the answer after the commit.
    stored: oneshot::Sender<()>,
}

/// What was stored since the start.
#[derive(Default)]
struct Counts {
    rows: AtomicUsize,
    transactions: AtomicUsize,
}

/// Serves until the process is killed. `public_key` is the file with the RSA key of the JWTs; without it deliveries have an HMAC.
pub async fn serve(port: u16, folder: &Path, public_key: Option<&Path>) -> anyhow::Result<()> {
    let (rows, waiting) = mpsc::channel(WAITING);
    let sqlite = open(&folder.join("durable.sqlite"))?;
    let counts = Arc::new(Counts::default());
    let stored = Arc::clone(&counts);
    thread::spawn(move || store(sqlite, waiting, &stored));
    let key = Arc::new(match public_key {
        Some(file) => Key::Rsa(UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, std::fs::read(file)?)),
        None => Key::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()))),
    });
    let accept = async move |headers: HeaderMap, body: Bytes| {
        if !key.has_signed(&headers, &body) {
            return StatusCode::UNAUTHORIZED;
        }
        let (stored, answer) = oneshot::channel();
        if rows.send(Row { body, stored }).await.is_err() || answer.await.is_err() {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        StatusCode::OK
    };
    let group = async move || {
        let [rows, transactions] = [&counts.rows, &counts.transactions].map(|count| count.load(Relaxed));
        (rows as f64 / transactions as f64).to_string()
    };
    let router = Router::new()
        .route("/api/webhook", post(accept))
        .route("/group", get(group))
        .route("/health/ready", get(|| async { StatusCode::OK }));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listening")?;
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY can be set"));
    axum::serve(listener, router).await.context("serving")
}

impl Key {
    fn has_signed(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        match self {
            Self::Hmac(key) => {
                let signature = headers.get("x-kinde-signature").and_then(|text| text.to_str().ok());
                let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                let tag = signature
                    .and_then(|text| text.as_bytes().chunks(2).map(digit).collect::<Option<Vec<_>>>());
                tag.is_some_and(|tag| hmac::verify(key, body, &tag).is_ok())
            }
            Self::Rsa(key) => {
                let Some(dot) = body.iter().rposition(|byte| *byte == b'.') else { return false };
                let (signed, signature) = (&body[..dot], URL_SAFE_NO_PAD.decode(&body[dot + 1..]));
                signature.is_ok_and(|signature| key.verify(signed, &signature).is_ok())
            }
        }
    }
}

/// The settings of kinsync's queue.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let sqlite = Connection::open(path)?;
    sqlite.pragma_update(None, "journal_mode", "wal")?;
    sqlite.pragma_update(None, "synchronous", "full")?;
    sqlite.pragma_update(None, "wal_autocheckpoint", 2048)?;
    sqlite.execute_batch("CREATE TABLE entries (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")?;
    Ok(sqlite)
}

/// Stores what waits, and ends with the first failure: the answers that follow are then 503.
fn store(mut sqlite: Connection, mut waiting: mpsc::Receiver<Row>, counts: &Counts) {
    let mut rows = Vec::with_capacity(WAITING);
    while let Some(first) = waiting.blocking_recv() {
        rows.push(first);
        while rows.len() < WAITING
            && let Ok(row) = waiting.try_recv()
        {
            rows.push(row);
        }
        commit(&mut sqlite, &rows).expect("the rows are stored");
        counts.rows.fetch_add(rows.len(), Relaxed);
        counts.transactions.fetch_add(1, Relaxed);
        for row in rows.drain(..) {
            // Sending fails if the client is gone.
            _ = row.stored.send(());
        }
    }
}

fn commit(sqlite: &mut Connection, rows: &[Row]) -> anyhow::Result<()> {
    let transaction = sqlite.transaction()?;
    let mut insert = transaction.prepare_cached("INSERT INTO entries (body) VALUES (?1)")?;
    for row in rows {
        insert.execute(params![&row.body[..]])?;
    }
    drop(insert);
    Ok(transaction.commit()?)
}
