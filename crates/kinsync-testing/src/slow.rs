//! A network with a delay, in front of a local server.

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
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Forwards connections. Ends when it is dropped.
#[derive(Debug)]
pub struct SlowNetwork {
    address: SocketAddr,
    delay: Arc<AtomicU64>,
    _connections: JoinSet<()>,
}

impl SlowNetwork {
    /// Starts in front of the server on this port, without a delay.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let delay = Arc::new(AtomicU64::new(0));
        let mut connections = JoinSet::new();
        let current = Arc::clone(&delay);
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                    open.spawn(connect(client, server, Arc::clone(&current)));
                }
            }
        });
        Self { address, delay, _connections: connections }
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Delays each byte by this from now on, in each direction.
    pub fn set_delay(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }
}

async fn connect(client: TcpStream, server: TcpStream, delay: Arc<AtomicU64>) {
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(forward(from_client, to_server, &delay), forward(from_server, to_client, &delay));
}

/// Forwards until either side ends. What is read is on its way while the next part is read, as in a long cable.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: &AtomicU64) {
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
            if to.write_all(&part).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
