//! Accepts connections and gives each its bounds: how many there are, how long a head may take, how long a peer may
//! not read, how long a shutdown lasts. What is answered is the front's affair.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{front::Answer, stall::Stall, timer::HeadTimer};

/// Heads above this size are answered 431.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Pauses after a failed accept: descriptors run out and come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The bounds of connections.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time. More wait in the kernel's backlog.
    pub max_connections: usize,
    /// The longest time for the head of a request, from the end of the last one: also for an idle connection.
    pub head_deadline: Duration,
    /// The longest time for a peer not to read what is written.
    pub write_stall: Duration,
    /// The longest time for connections to finish after the stop.
    pub grace: Duration,
}

/// A bound socket that does not accept yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    bounds: Bounds,
}

impl Server {
    /// Takes the address.
    pub async fn bind(address: SocketAddr, bounds: Bounds) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, bounds })
    }

    /// Where it listens: the real port, when 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop, then lets requests in flight finish, within the grace.
    pub async fn serve(self, front: impl Answer, stop: CancellationToken) {
        let Self { listener, bounds } = self;
        let slots = Arc::new(Semaphore::new(bounds.max_connections));
        let mut connections = JoinSet::new();
        while let Some((stream, slot)) = stop.run_until_cancelled(accept(&listener, &slots)).await {
            while connections.try_join_next().is_some() {}
            // A token of its own: one that all connections wait on is a lock that all of them take.
            let (front, stop) = (front.clone(), stop.child_token());
            connections.spawn(async move {
                if let Err(error) = run(stream, &front, &bounds, stop).await {
                    tracing::debug!(error = %error, "connection ended early");
                }
                drop(slot);
            });
        }
        drop(listener);
        let finished = async { while connections.join_next().await.is_some() {} };
        if timeout(bounds.grace, finished).await.is_err() {
            tracing::warn!("connections did not finish within the grace and are cut");
        }
        connections.shutdown().await;
    }
}

/// Until the peer or the stop ends it; a request in flight is answered.
async fn run(
    stream: TcpStream,
    front: &impl Answer,
    bounds: &Bounds,
    stop: CancellationToken,
) -> hyper::Result<()> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "TCP_NODELAY could not be set");
    }
    let service = service_fn(async |request| Ok::<_, Infallible>(front.answer(request).await));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(HeadTimer::default())
            .header_read_timeout(bounds.head_deadline)
            .max_buf_size(MAX_HEAD_BYTES)
            // Answers are short: to copy one behind its head costs less than to write two pieces.
            .writev(false)
            .serve_connection(TokioIo::new(Stall::new(stream, bounds.write_stall)), service)
    );
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// The next connection, as soon as there is a slot for it. Cancel safe.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(error = %error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors that say something of the peer, not of us.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
