//! API servers and their store as real processes on the loopback, and what may befall them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bench::load::Client;
use bench::plane::{Process, apiserver_flags, free_port, identities};
use rand::Rng;
use rand::rngs::StdRng;
use storage::Store;
use storage::etcd::{Etcd, Options};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    servers: Vec<Server>,
    members: Vec<Member>,
    directory: TempDir,
}

/// One API server, running or not.
struct Server {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    process: Option<Process>,
}

/// One member of etcd, running or not.
struct Member {
    client: String,
    peer: String,
    process: Option<Process>,
}

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// SIGKILL, and a start some time later (by the next fault that concerns it, or by [`World::heal`]).
    KillServer(usize),
    KillMember(usize),
    StartServer(usize),
    StartMember(usize),
    /// Forget all but the last so many revisions.
    Compact(u64),
}

impl Fault {
    /// A fault that leaves a majority of members and one server.
    pub fn any(world: &World, random: &mut StdRng) -> Self {
        let down = |process: &Option<Process>| process.is_none();
        let server = random.random_range(0..world.servers.len());
        if world.members.is_empty() {
            return match down(&world.servers[server].process) {
                true => Fault::StartServer(server),
                false => Fault::KillServer(server),
            };
        }
        let member = random.random_range(0..world.members.len());
        let members_down = world.members.iter().filter(|m| down(&m.process)).count();
        let servers_down = world.servers.iter().filter(|s| down(&s.process)).count();
        match random.random_range(0..3) {
            0 if down(&world.servers[server].process) => Fault::StartServer(server),
            0 if servers_down + 1 < world.servers.len() => Fault::KillServer(server),
            1 if down(&world.members[member].process) => Fault::StartMember(member),
            1 if members_down == 0 => Fault::KillMember(member),
            _ => Fault::Compact(random.random_range(0..200)),
        }
    }
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
        let url = || Ok::<_, anyhow::Error>(format!("http://127.0.0.1:{}", free_port()?));
        let mut world = World {
            servers: Vec::new(),
            members: Vec::new(),
            directory,
        };
        for _ in 0..members {
            world.members.push(Member {
                client: url()?,
                peer: url()?,
                process: None,
            });
        }
        for n in 0..servers {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            let dir = world.directory.path().join(format!("server-{n}"));
            std::fs::create_dir(&dir)?;
            world.servers.push(Server {
                address,
                tls: identities(&dir, address)?,
                process: None,
            });
        }
        // Servers that share objects share the keys of their tokens.
        for n in 1..servers {
            for file in ["sa.key", "sa.pub"] {
                let at = |n: usize| {
                    world
                        .directory
                        .path()
                        .join(format!("server-{n}"))
                        .join(file)
                };
                std::fs::copy(at(0), at(n))?;
            }
        }
        world.heal().await?;
        Ok(world)
    }

    pub fn clients(&self) -> Vec<Client> {
        let client = |server: &Server| Client {
            address: server.address,
            tls: server.tls.clone(),
        };
        self.servers.iter().map(client).collect()
    }

    pub async fn inflict(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::KillServer(n) => self.servers[n].process = None,
            Fault::KillMember(n) => self.members[n].process = None,
            Fault::StartServer(n) => self.start_server(n)?,
            Fault::StartMember(n) => self.start_member(n)?,
            Fault::Compact(keep) => self.compact(keep).await,
        }
        Ok(())
    }

    /// Starts what is down and waits until every server serves.
    pub async fn heal(&mut self) -> Result<()> {
        for n in 0..self.members.len() {
            if self.members[n].process.is_none() {
                self.start_member(n)?;
            }
        }
        for n in 0..self.servers.len() {
            if self.servers[n].process.is_none() {
                self.start_server(n)?;
            }
        }
        for (n, client) in self.clients().iter().enumerate() {
            let log = self.directory.path().join(format!("server-{n}/log"));
            client
                .ready("/readyz", PATIENCE)
                .await
                .with_context(|| std::fs::read_to_string(log).unwrap_or_default())?;
        }
        Ok(())
    }

    fn start_server(&mut self, n: usize) -> Result<()> {
        let dir = self.directory.path().join(format!("server-{n}"));
        let mut flags = apiserver_flags(&dir, self.servers[n].address);
        if self.members.is_empty() {
            flags.push(("data-dir", dir.join("store").display().to_string()));
        } else {
            flags.push(("etcd-servers", self.urls().join(",")));
        }
        let program = e2e::bin_dir().join("apiserver");
        self.servers[n].process = Some(Process::start(&program, &flags, &dir.join("log"))?);
        Ok(())
    }

    fn start_member(&mut self, n: usize) -> Result<()> {
        let all: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(n, member)| format!("member-{n}={}", member.peer))
            .collect();
        let dir = self.directory.path();
        let member = &self.members[n];
        let flags = [
            ("name", format!("member-{n}")),
            (
                "data-dir",
                dir.join(format!("member-{n}")).display().to_string(),
            ),
            ("listen-client-urls", member.client.clone()),
            ("advertise-client-urls", member.client.clone()),
            ("listen-peer-urls", member.peer.clone()),
            ("initial-advertise-peer-urls", member.peer.clone()),
            ("initial-cluster", all.join(",")),
            ("heartbeat-interval", "50".to_owned()),
            ("election-timeout", "500".to_owned()),
            ("log-level", "error".to_owned()),
        ];
        let log = dir.join(format!("member-{n}.log"));
        self.members[n].process = Some(Process::start(Path::new("etcd"), &flags, &log)?);
        Ok(())
    }

    fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| m.client.clone()).collect()
    }

    /// Compacts as another server's timer would. While etcd has no leader it may fail: then it does not happen.
    async fn compact(&self, keep: u64) {
        let options = Options {
            history: None,
            timeout: Duration::from_secs(2),
            ..Options::default()
        };
        let compacting = async {
            let store = Etcd::connect(&self.urls(), options).await?;
            let revision = store.current_revision().await?;
            let result = store.compact(revision.saturating_sub(keep).max(1)).await;
            store.close().await;
            result
        };
        let _: storage::Result<()> = compacting.await;
    }
}
