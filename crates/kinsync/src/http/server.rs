//! Accepts connections, with or without TLS, and limits each: their number, the time for a TLS handshake and for a head, the
//! time that a client may not read, and the time for a shutdown.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use super::{
    connections::{Connections, End, Slot},
    network::{Network, Peer},
    request_check::{self, MAX_HEAD_BYTES, MAX_HEADERS},
    stall::Stall,
    tls::Tls,
    tracked::{Arriving, Tracked},
};

/// Pause after a failed accept, for example while the process has no free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time for a connection that is closed for another one to finish a response.
const EVICTION_GRACE: Duration = Duration::from_millis(250);
/// Time after the stop for the first bytes on a new connection: its client has usually sent a request already.
const FIRST_REQUEST: Duration = Duration::from_millis(250);
/// The first bytes of HTTP/2 without TLS (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
const HTTP2_RESPONSE: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Limits of connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections. When all are open, the longest idle one is closed for a new one.
    pub max_connections: usize,
    /// Open connections per client address. More are closed when they are accepted.
    pub max_connections_per_client: usize,
    /// Networks without a limit per client. Loopback addresses have none either.
    pub proxies: Vec<Network>,
    /// Longest time for the head of a request, from the end of the previous one: also for an idle connection and for a TLS
    /// handshake.
    pub head_deadline: Duration,
    /// Longest time that a write may make no progress because the client does not read.
    pub write_stall: Duration,
    /// Longest time for connections to finish after the stop.
    pub grace: Duration,
}

/// A bound socket that does not accept connections yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    limits: Limits,
    tls: Option<Arc<Tls>>,
}

/// What the connections of one server share.
#[derive(Debug)]
struct Shared {
    router: Router,
    limits: Limits,
    tls: Option<Arc<Tls>>,
}

impl Server {
    /// Binds the address. Without a certificate it serves plain HTTP.
    pub async fn bind(address: SocketAddr, limits: Limits, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, limits, tls })
    }

    /// Returns the bound address, with the real port when port 0 was requested.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the token is cancelled, then lets requests in progress finish, within the grace.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let Self { listener, limits, tls } = self;
        let slots = Connections::new(
            limits.max_connections,
            limits.max_connections_per_client,
            limits.proxies.clone(),
            stop.clone(),
        );
        let grace = limits.grace;
        let shared = Arc::new(Shared { router, limits, tls });
        let mut tasks = JoinSet::new();
        while let Some((stream, slot)) = stop.run_until_cancelled(next(&listener, &slots)).await {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(log_end(stream, Arc::clone(&shared), slot));
        }
        for stream in accepted_by_the_kernel(listener) {
            let Some(slot) = slot_of(&stream, &slots).await else { continue };
            tasks.spawn(log_end(stream, Arc::clone(&shared), slot));
        }
        let finished = async { while tasks.join_next().await.is_some() {} };
        if timeout(grace, finished).await.is_err() {
            tracing::warn!("connections did not finish within the grace and are closed");
        }
        tasks.shutdown().await;
    }
}

/// Serves one connection of another transport until it ends, as [`Server::serve`] does. For the fuzz targets.
#[doc(hidden)]
pub async fn serve_one(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    limits: Limits,
) -> hyper::Result<()> {
    let slots = Connections::new(1, 1, Vec::new(), CancellationToken::new());
    let Ok(slot) = slots.open(Ipv4Addr::LOCALHOST.into()).await else { return Ok(()) };
    serve_http(stream, &Shared { router, limits, tls: None }, &slot).await
}

/// Closes the listener and returns the connections that are established and not accepted yet: the end of the listener would reset
/// them, and their clients could not know whether a request was carried out.
fn accepted_by_the_kernel(listener: TcpListener) -> Vec<TcpStream> {
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let streams = std::iter::from_fn(|| listener.accept().ok());
    let streams = streams.filter_map(|(stream, _)| {
        stream.set_nonblocking(true).ok()?;
        TcpStream::from_std(stream).ok()
    });
    streams.collect()
}

/// `None` if the client has left or has too many connections.
async fn slot_of(stream: &TcpStream, slots: &Arc<Connections>) -> Option<Slot> {
    slots.open(stream.peer_addr().ok()?.ip()).await.ok()
}

async fn log_end(stream: TcpStream, shared: Arc<Shared>, slot: Slot) {
    if let Err(error) = serve_connection(stream, &shared, &slot).await {
        tracing::debug!(%error, "connection ended early");
    }
}

/// Runs until the client, the stop or an eviction ends it. A request in progress gets its response.
async fn serve_connection(stream: TcpStream, shared: &Shared, slot: &Slot) -> hyper::Result<()> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let deadline = shared.limits.head_deadline;
    if let Some(tls) = &shared.tls {
        let acceptor = tls.acceptor();
        return match or_end(timeout(deadline, acceptor.accept(stream)), slot).await {
            Some(Ok(Ok(stream))) => serve_http(stream, shared, slot).await,
            Some(Ok(Err(error))) => {
                tracing::debug!(%error, "a TLS handshake failed");
                Ok(())
            }
            Some(Err(_)) | None => Ok(()),
        };
    }
    match or_end(timeout(deadline, is_http2(&stream)), slot).await {
        Some(Ok(true)) => refuse_http2(stream).await,
        Some(Ok(false)) => return serve_http(stream, shared, slot).await,
        Some(Err(_)) | None => {}
    }
    Ok(())
}

/// `None` if an eviction comes first, or the stop and [`FIRST_REQUEST`] after it.
async fn or_end<T>(work: impl Future<Output = T>, slot: &Slot) -> Option<T> {
    let ended = async {
        if slot.ended().await == End::Stopped {
            sleep(FIRST_REQUEST).await;
        }
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = ended => None,
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shared: &Shared,
    slot: &Slot,
) -> hyper::Result<()> {
    let Shared { router, limits, .. } = shared;
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(router, slot, request).await));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_deadline)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            // Not `half_close`: a client that leaves during a request would keep its place until the response (RFC 9112, section 9.5).
            // Responses are short: copying one behind its head costs less than two writes.
            .writev(false)
            .serve_connection(TokioIo::new(Stall::new(stream, limits.write_stall)), service)
    );
    let end = tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        end = slot.ended() => end,
    };
    connection.as_mut().graceful_shutdown();
    match end {
        End::Stopped => connection.await,
        End::Evicted => timeout(EVICTION_GRACE, connection).await.unwrap_or(Ok(())),
    }
}

async fn answer(router: &Router, slot: &Slot, mut request: Request<Incoming>) -> Response<Tracked<Body>> {
    let in_progress = slot.begin_request();
    request.extensions_mut().insert(Peer(slot.peer()));
    let response = match request_check::refusal(&request) {
        None => {
            let request = request.map(|body| Arriving::new(body, || slot.begin_body()));
            let Ok(response) = router.clone().call(request).await;
            response
        }
        Some(problem) => {
            let mut response = problem.into_response().map(Body::new);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    response.map(|body| Tracked::new(body, in_progress))
}

/// Waits for the first bytes and returns whether they are those of HTTP/2.
async fn is_http2(stream: &TcpStream) -> bool {
    let mut first = [0; HTTP2_PREFACE.len()];
    stream.peek(&mut first).await.is_ok() && first == HTTP2_PREFACE
}

/// The client may not read the response, so errors are of no use.
async fn refuse_http2(mut stream: TcpStream) {
    _ = stream.write_all(HTTP2_RESPONSE).await;
    _ = stream.shutdown().await;
}

/// Returns the next connection with its slot. Cancel safe.
async fn next(listener: &TcpListener, slots: &Arc<Connections>) -> (TcpStream, Slot) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                if let Ok(slot) = slots.open(address.ip()).await {
                    return (stream, slot);
                }
                metrics::counter!("kinsync_http_connections_refused_total").increment(1);
                tracing::debug!(%address, "a client has too many connections: one was closed");
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the error is of the connection and not of the listener.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
