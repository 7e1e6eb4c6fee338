//! What may befall a server or a member, and which of it a run chooses next.

use rand::Rng;
use rand::rngs::StdRng;

/// What is wrong with a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// SIGKILL: it is gone with everything that it had not made durable.
    Killed,
    /// SIGSTOP: it answers nobody, and goes on later as if no time had passed.
    Paused,
    /// It runs, and its links carry nothing: those of a server to the store, those between a member and the others.
    CutOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Server(usize),
    Member(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Harm(Program, Harm),
    /// Undoes what is wrong with it.
    Heal(Program),
    /// Forget all but the last so many revisions.
    Compact(u64),
}

/// What is wrong with whom, when the next fault is chosen.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    pub servers: Vec<Option<Harm>>,
    pub members: Vec<Option<Harm>>,
}

impl Condition {
    /// A fault that leaves a majority of members and, of several servers, one.
    pub fn worsen(&self, random: &mut StdRng) -> Fault {
        let server = random.random_range(0..self.servers.len());
        if self.members.is_empty() {
            return match self.servers[server] {
                Some(_) => Fault::Heal(Program::Server(server)),
                None => {
                    let harm = [Harm::Killed, Harm::Paused][random.random_range(0..2)];
                    Fault::Harm(Program::Server(server), harm)
                }
            };
        }
        let member = random.random_range(0..self.members.len());
        let harm = [Harm::Killed, Harm::Paused, Harm::CutOff][random.random_range(0..3)];
        let whole = |all: &[Option<Harm>]| all.iter().filter(|harm| harm.is_none()).count();
        match random.random_range(0..5) {
            0 | 1 if self.servers[server].is_some() => Fault::Heal(Program::Server(server)),
            0 | 1 if whole(&self.servers) > 1 => Fault::Harm(Program::Server(server), harm),
            2 | 3 if self.members[member].is_some() => Fault::Heal(Program::Member(member)),
            2 | 3 if whole(&self.members) == self.members.len() => {
                Fault::Harm(Program::Member(member), harm)
            }
            // Never all: older etcds may lose the last revision, if it is a deletion, in a crash after that
            // (etcd-io/etcd#17780).
            _ => Fault::Compact(random.random_range(1..8)),
        }
    }
}
