//! API servers and their store as real processes on the loopback, and how they are broken and mended.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bench::load::Client;
use bench::plane::{Process, apiserver_flags, identities};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use storage::Store;
use storage::etcd::{Etcd, Options};
use tempfile::TempDir;

use crate::faults::{Condition, Fault, Harm, Program};
use crate::link::{Link, Peers};

const PATIENCE: Duration = Duration::from_secs(60);

/// How long the embedded store keeps history here: less than a run takes, so that compaction happens in every one.
const HISTORY: &str = "50ms";

pub struct World {
    servers: Vec<Server>,
    members: Vec<Member>,
    /// The network among the members.
    peers: Peers,
    directory: TempDir,
}

/// One API server.
struct Server {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    /// Its own way to each member.
    links: Vec<Link>,
    state: State,
}

/// One member of etcd.
struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    state: State,
}

/// A process, running or not, and what is wrong with it.
#[derive(Default)]
struct State {
    process: Option<Process>,
    harm: Option<Harm>,
}

impl State {
    fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(process) = &self.process {
            kill(Pid::from_raw(i32::try_from(process.pid())?), signal)?;
        }
        Ok(())
    }

    fn suffer(&mut self, harm: Harm, cut: impl FnOnce()) -> Result<()> {
        match harm {
            Harm::Killed => self.process = None,
            Harm::Paused => self.signal(Signal::SIGSTOP)?,
            Harm::CutOff => cut(),
        }
        self.harm = Some(harm);
        Ok(())
    }

    /// Undoes everything but a kill, after which the process has to be started.
    fn recover(&mut self, mend: impl FnOnce()) -> Result<()> {
        match self.harm.take() {
            Some(Harm::Paused) => self.signal(Signal::SIGCONT)?,
            Some(Harm::CutOff) => mend(),
            Some(Harm::Killed) | None => {}
        }
        Ok(())
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// On a loopback address of its own, so that nobody else's connection takes the port while its program is dead.
fn free_address() -> Result<SocketAddr> {
    let [.., b, c, d] = rand::random_range(0x0001_0000..0x00ff_0000_u32).to_be_bytes();
    let listener = std::net::TcpListener::bind((Ipv4Addr::new(127, b, c, d), 0))?;
    Ok(listener.local_addr()?)
}

impl World {
    pub async fn embedded() -> Result<Self> {
        Self::start(1, 0).await
    }

    pub async fn etcd() -> Result<Self> {
        Self::start(3, 3).await
    }

    async fn start(servers: usize, members: usize) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("skiff-histories-")
            .tempdir()?;
        let members = (0..members).map(|_| {
            Ok(Member {
                client: free_address()?,
                peer: free_address()?,
                state: State::default(),
            })
        });
        let members: Vec<Member> = members.collect::<Result<_>>()?;
        let own: Vec<SocketAddr> = members.iter().map(|member| member.peer).collect();
        let mut world = World {
            servers: Vec::new(),
            members,
            peers: Peers::of(&own).await?,
            directory,
        };
        for n in 0..servers {
            let address = free_address()?;
            let dir = world.server_dir(n);
            std::fs::create_dir(&dir)?;
            let mut links = Vec::new();
            for member in &world.members {
                links.push(Link::to(member.client).await?);
            }
            world.servers.push(Server {
                address,
                tls: identities(&dir, address)?,
                links,
                state: State::default(),
            });
        }
        // Servers that share objects share the keys of their tokens.
        for n in 1..servers {
            for file in ["sa.key", "sa.pub"] {
                std::fs::copy(
                    world.server_dir(0).join(file),
                    world.server_dir(n).join(file),
                )?;
            }
        }
        world.heal().await?;
        Ok(world)
    }

    /// What the programs printed last, for whoever looks into a failure.
    pub fn logs(&self) -> String {
        let dir = self.directory.path();
        let servers = (0..self.servers.len()).map(|n| self.server_dir(n).join("log"));
        let members = (0..self.members.len()).map(|n| dir.join(format!("member-{n}.log")));
        let last = |path: std::path::PathBuf| {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            format!("--- {}\n{tail}\n", path.display())
        };
        servers.chain(members).map(last).collect()
    }

    fn server_dir(&self, n: usize) -> std::path::PathBuf {
        self.directory.path().join(format!("server-{n}"))
    }

    pub fn clients(&self) -> Vec<Client> {
        let client = |server: &Server| Client {
            address: server.address,
            tls: server.tls.clone(),
        };
        self.servers.iter().map(client).collect()
    }

    pub fn condition(&self) -> Condition {
        Condition {
            servers: self.servers.iter().map(|s| s.state.harm).collect(),
            members: self.members.iter().map(|m| m.state.harm).collect(),
        }
    }

    pub async fn inflict(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Harm(Program::Server(n), harm) => {
                let Server { links, state, .. } = &mut self.servers[n];
                state.suffer(harm, || links.iter().for_each(Link::cut))
            }
            Fault::Harm(Program::Member(n), harm) => {
                self.members[n].state.suffer(harm, || self.peers.cut(n))
            }
            Fault::Heal(program) => self.recover(program),
            Fault::Compact(keep) => {
                self.compact(keep).await;
                Ok(())
            }
        }
    }

    fn recover(&mut self, program: Program) -> Result<()> {
        match program {
            Program::Server(n) => {
                let Server { links, state, .. } = &mut self.servers[n];
                state.recover(|| links.iter().for_each(Link::mend))?;
                match state.process {
                    Some(_) => Ok(()),
                    None => self.start_server(n),
                }
            }
            Program::Member(n) => {
                let state = &mut self.members[n].state;
                state.recover(|| self.peers.mend(n))?;
                match state.process {
                    Some(_) => Ok(()),
                    None => self.start_member(n),
                }
            }
        }
    }

    /// Undoes all harm and waits until every server serves.
    pub async fn heal(&mut self) -> Result<()> {
        for n in 0..self.members.len() {
            self.recover(Program::Member(n))?;
        }
        for n in 0..self.servers.len() {
            self.recover(Program::Server(n))?;
        }
        let clients = self.clients();
        for (n, client) in clients.iter().enumerate() {
            let log = self.server_dir(n).join("log");
            self.until_ready(n, client)
                .await
                .with_context(|| std::fs::read_to_string(log).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Starts a server again that has given up, as its supervisor would: one does that when it is started while etcd has
    /// no leader.
    async fn until_ready(&mut self, n: usize, client: &Client) -> Result<()> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let one = PATIENCE / 20;
            // A server that is stopped may leave it without an answer, and one that is not ready says why.
            let asked = tokio::time::timeout(2 * one, client.ready("/readyz", one)).await;
            let error = match asked.map_err(anyhow::Error::from).flatten() {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if tokio::time::Instant::now() > end {
                return Err(error);
            }
            let process = &mut self.servers[n].state.process;
            if !process.as_mut().is_some_and(Process::runs) {
                self.start_server(n)?;
            }
        }
    }

    fn start_server(&mut self, n: usize) -> Result<()> {
        let dir = self.server_dir(n);
        let server = &mut self.servers[n];
        let mut flags = apiserver_flags(&dir, server.address);
        if self.members.is_empty() {
            flags.push(("data-dir", dir.join("store").display().to_string()));
            flags.push(("etcd-compaction-interval", HISTORY.to_owned()));
        } else {
            let urls: Vec<_> = server.links.iter().map(|l| url(l.address)).collect();
            flags.push(("etcd-servers", urls.join(",")));
            // Compaction is a fault that the run chooses.
            flags.push(("etcd-compaction-interval", "0s".to_owned()));
        }
        let program = e2e::bin_dir().join("apiserver");
        server.state.process = Some(Process::start(&program, &flags, &dir.join("log"))?);
        Ok(())
    }

    fn start_member(&mut self, n: usize) -> Result<()> {
        let advertised: Vec<String> = self.peers.addresses.iter().copied().map(url).collect();
        let all: Vec<String> = advertised
            .iter()
            .enumerate()
            .map(|(n, url)| format!("member-{n}={url}"))
            .collect();
        let dir = self.directory.path();
        let member = &mut self.members[n];
        let flags = [
            ("name", format!("member-{n}")),
            (
                "data-dir",
                dir.join(format!("member-{n}")).display().to_string(),
            ),
            ("listen-client-urls", url(member.client)),
            ("advertise-client-urls", url(member.client)),
            ("listen-peer-urls", url(member.peer)),
            ("initial-advertise-peer-urls", advertised[n].clone()),
            ("initial-cluster", all.join(",")),
            ("heartbeat-interval", "100".to_owned()),
            ("election-timeout", "800".to_owned()),
            ("log-level", "error".to_owned()),
        ];
        let log = dir.join(format!("member-{n}.log"));
        member.state.process = Some(Process::start(Path::new("etcd"), &flags, &log)?);
        Ok(())
    }

    /// Compacts as another server's timer would. While etcd has no leader it may fail: then it does not happen.
    async fn compact(&self, keep: u64) {
        let options = Options {
            history: None,
            timeout: Duration::from_millis(500),
            ..Options::default()
        };
        let urls: Vec<String> = self.members.iter().map(|m| url(m.client)).collect();
        let compacting = async {
            let store = Etcd::connect(&urls, options).await?;
            let revision = store.current_revision().await?;
            let result = store.compact(revision.saturating_sub(keep).max(1)).await;
            store.close().await;
            result
        };
        let _: storage::Result<()> = compacting.await;
    }
}
