//! A network that delays or holds what it forwards, in front of a local server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Forwards connections. Ends when it is dropped.
#[derive(Debug)]
pub struct SlowNetwork {
    address: SocketAddr,
    conditions: Conditions,
    is_open: watch::Sender<bool>,
    _connections: JoinSet<()>,
}

#[derive(Clone, Debug)]
struct Conditions {
    delay: Arc<AtomicU64>,
    is_open: watch::Receiver<bool>,
}

impl Conditions {
    /// Waits until the network forwards.
    async fn until_open(&mut self) {
        let _ = self.is_open.wait_for(|is_open| *is_open).await;
    }
}

impl SlowNetwork {
    /// Starts in front of the server on this port, without a delay.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let (sender, is_open) = watch::channel(true);
        let conditions = Conditions { delay: Arc::default(), is_open };
        let mut connections = JoinSet::new();
        let current = conditions.clone();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                open.spawn(connect(client, port, current.clone()));
            }
        });
        Self { address, conditions, is_open: sender, _connections: connections }
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Delays each byte by this from now on, in each direction.
    pub fn set_delay(&self, delay: Duration) {
        self.conditions.delay.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Holds each byte and each end of a connection from now on, until [`Self::release`]. A client still connects, and nothing answers.
    pub fn hold(&self) {
        self.is_open.send_replace(false);
    }

    /// Forwards what was held and what comes.
    pub fn release(&self) {
        self.is_open.send_replace(true);
    }
}

async fn connect(client: TcpStream, port: u16, mut conditions: Conditions) {
    conditions.until_open().await;
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(
        forward(from_client, to_server, conditions.clone()),
        forward(from_server, to_client, conditions)
    );
}

/// Forwards until either side ends. What is read is on its way while the next part is read, as in a long cable.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut conditions: Conditions) {
    let delay = Arc::clone(&conditions.delay);
    let (sent, mut received) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(size @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + Duration::from_millis(delay.load(Relaxed));
            if sent.send((due, buffer[..size].to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, part)) = received.recv().await {
            sleep_until(due).await;
            conditions.until_open().await;
            if to.write_all(&part).await.is_err() {
                return;
            }
        }
        // The end is held too.
        conditions.until_open().await;
    };
    tokio::join!(read, write);
}
