//! Stretches of network that can be cut: relays on the loopback between programs.
//!
//! What is cut loses nothing that TCP would not deliver in the end: bytes stay where they are until it is mended, and new
//! connections are taken by the kernel and then get no further. Whoever cannot wait has to give up by itself, as in a
//! network whose packets are dropped.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Lets bytes through, or makes them wait.
trait Gate: Clone + Send + 'static {
    /// Waits until it is open; false if it never will be again.
    fn opened(&mut self) -> impl Future<Output = bool> + Send;
}

/// From one program to another.
pub struct Link {
    /// Where to connect instead of to the target.
    pub address: SocketAddr,
    whole: watch::Sender<bool>,
    /// Ends with the link.
    _relay: JoinSet<()>,
}

impl Gate for watch::Receiver<bool> {
    async fn opened(&mut self) -> bool {
        self.wait_for(|whole| *whole).await.is_ok()
    }
}

impl Link {
    pub async fn to(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (whole, state) = watch::channel(true);
        let mut relay = JoinSet::new();
        relay.spawn(accept(listener, move |near| {
            carry(near, target, state.clone())
        }));
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

/// Among the members of an etcd cluster, each of which can be cut off from all others in both directions.
pub struct Peers {
    /// Where each member is reached by the others.
    pub addresses: Vec<SocketAddr>,
    cut: watch::Sender<BTreeSet<usize>>,
    _relays: JoinSet<()>,
}

/// One connection between members.
#[derive(Clone)]
struct Between {
    cut: watch::Receiver<BTreeSet<usize>>,
    /// Which member has which id, as far as is known.
    ids: Arc<Mutex<HashMap<String, usize>>>,
    to: usize,
    /// The id of the one that connected.
    from: Option<String>,
}

impl Gate for Between {
    async fn opened(&mut self) -> bool {
        let (ids, to, from) = (&self.ids, self.to, &self.from);
        let is_open = |cut: &BTreeSet<usize>| {
            let from = from.as_ref().and_then(|id| ids.lock().get(id).copied());
            !cut.contains(&to) && from.is_none_or(|from| !cut.contains(&from))
        };
        self.cut.wait_for(is_open).await.is_ok()
    }
}

impl Peers {
    pub async fn of(members: &[SocketAddr]) -> Result<Self> {
        let (cut, state) = watch::channel(BTreeSet::new());
        let (mut addresses, mut relays) = (Vec::new(), JoinSet::new());
        let ids = Arc::default();
        for (to, target) in members.iter().copied().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            addresses.push(listener.local_addr()?);
            let between = Between {
                cut: state.clone(),
                ids: Arc::clone(&ids),
                to,
                from: None,
            };
            relays.spawn(accept(listener, move |near| {
                introduced(near, target, between.clone())
            }));
        }
        Ok(Peers {
            addresses,
            cut,
            _relays: relays,
        })
    }

    pub fn cut(&self, member: usize) {
        self.cut.send_modify(|cut| {
            cut.insert(member);
        });
    }

    pub fn mend(&self, member: usize) {
        self.cut.send_modify(|cut| {
            cut.remove(&member);
        });
    }
}

/// Members say in their first request who they are, and streams for whom they are.
async fn introduced(near: TcpStream, target: SocketAddr, mut between: Between) {
    let mut head = vec![0; 4096];
    let Ok(read) = near.peek(&mut head).await else {
        return;
    };
    let head = String::from_utf8_lossy(&head[..read]);
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned())
    };
    if let Some(id) = header("X-Raft-To:") {
        between.ids.lock().insert(id, between.to);
    }
    between.from = header("X-Server-From:");
    carry(near, target, between).await;
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    carry: impl Fn(TcpStream) -> F,
) {
    let mut connections = JoinSet::new();
    loop {
        if let Ok((near, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            connections.spawn(carry(near));
        }
    }
}

/// Ends when either end does.
async fn carry(near: TcpStream, target: SocketAddr, mut gate: impl Gate) {
    if !gate.opened().await {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    // Small messages are what both ends exchange; a relay must not make them late.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = pump(near_in, far_out, gate.clone()) => {}
        () = pump(far_in, near_out, gate) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: impl Gate) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        if !gate.opened().await || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
