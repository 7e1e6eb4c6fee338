//! A stretch of network that can be cut: a relay on the loopback between one program and another.
//!
//! A cut link loses nothing that TCP would not deliver in the end: bytes stay where they are until it is mended, and new
//! connections are taken by the kernel and then get no further. Whoever cannot wait has to give up by itself, as in a
//! network whose packets are dropped.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub struct Link {
    /// Where to connect instead of to the target.
    pub address: SocketAddr,
    whole: watch::Sender<bool>,
    /// Ends with the link.
    _relay: JoinSet<()>,
}

impl Link {
    pub async fn to(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (whole, state) = watch::channel(true);
        let mut relay = JoinSet::new();
        relay.spawn(accept(listener, target, state));
        Ok(Link {
            address,
            whole,
            _relay: relay,
        })
    }

    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, mut whole: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while whole.wait_for(|whole| *whole).await.is_ok() {
        let Ok((near, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(relay(near, target, whole.clone()));
    }
}

/// Ends when either end does.
async fn relay(near: TcpStream, target: SocketAddr, mut whole: watch::Receiver<bool>) {
    if whole.wait_for(|whole| *whole).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    // Small messages are what both ends exchange; a relay must not make them late.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = pump(near_in, far_out, whole.clone()) => {}
        () = pump(far_in, near_out, whole) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut whole: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        if whole.wait_for(|whole| *whole).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}
