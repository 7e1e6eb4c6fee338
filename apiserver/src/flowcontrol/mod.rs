//! API priority and fairness: nobody's requests keep everybody else's from being answered.
//!
//! FlowSchemas ([`rules`]) sort requests into flows and give each a priority level. A [`level`] has seats, a share of
//! all; a request takes as many as its [`work`] is worth, waits for them in the [`queues`] of its level, or is told to
//! try again later. Levels lend seats that they do not use. [`controller`] follows the configuration, [`defaults`] has
//! the objects that every cluster starts with.
//!
//! Without `--enable-priority-and-fairness`, [`Limits`] count requests, as Kubernetes does then.

mod controller;
pub mod defaults;
mod level;
mod queues;
mod rules;
pub mod work;

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use apimachinery::status::{Result, Status};
use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use controller::start;

use crate::authn::UserInfo;
use crate::config::Config;
use crate::request::RequestInfo;
use level::{Level, Seat};
use rules::{FlowSchemaSpec, LevelSpec};

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Who is never refused, whatever the limits are.
const MASTERS: &str = "system:masters";
/// The schema of what belongs to no other one: it always comes last.
const CATCH_ALL: &str = "catch-all";

/// What decides which requests are answered now.
pub enum FlowControl {
    Fair(Arc<Fairness>),
    Limited(Limits),
}

/// What a request has to hold while it is being answered.
pub enum Permit<'a> {
    Seat { _seat: Seat },
    Counted { _permit: SemaphorePermit<'a> },
    Free,
}

impl FlowControl {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let (reads, writes) = (
            config.max_requests_inflight,
            config.max_mutating_requests_inflight,
        );
        match config.enable_priority_and_fairness {
            true => Self::Fair(Fairness::new(reads + writes)),
            false => Self::Limited(Limits::new(reads, writes)),
        }
    }

    /// Waits for the request's turn. 429 when too many wait already, or when it takes too long. `width` tells how many
    /// seats the request is worth, and is asked only if that matters.
    pub async fn turn(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        width: impl FnOnce() -> usize + Send,
    ) -> (Classified, Result<Permit<'_>>) {
        match self {
            Self::Fair(fairness) => fairness.turn(user, info, width).await,
            Self::Limited(limits) => (Classified::default(), limits.turn(user, info)),
        }
    }

    /// Metrics under Kubernetes' names.
    pub fn render(&self, out: &mut String) {
        if let Self::Fair(fairness) = self {
            fairness.render(out);
        }
    }
}

fn refused() -> Status {
    Status::too_many_requests("too many requests, please try again later.", 1)
}

/// How many requests are answered at a time, reads and writes apart.
pub struct Limits {
    reads: Option<Semaphore>,
    writes: Option<Semaphore>,
}

impl Limits {
    /// 0 is no limit.
    fn new(reads: usize, writes: usize) -> Self {
        let limit = |of: usize| (of > 0).then(|| Semaphore::new(of.min(Semaphore::MAX_PERMITS)));
        Self {
            reads: limit(reads),
            writes: limit(writes),
        }
    }

    fn turn(&self, user: &UserInfo, info: &RequestInfo) -> Result<Permit<'_>> {
        let limit = match info.verb.as_str() {
            // They are many, last, and have nothing to do once they have begun.
            "watch" => return Ok(Permit::Free),
            "get" | "list" | "head" | "options" => &self.reads,
            _ => &self.writes,
        };
        let Some(limit) = limit else {
            return Ok(Permit::Free);
        };
        match limit.try_acquire() {
            Ok(permit) => Ok(Permit::Counted { _permit: permit }),
            Err(_) if user.in_group(MASTERS) => Ok(Permit::Free),
            Err(_) => Err(refused()),
        }
    }
}

/// How a request was classified, as its answer says.
#[derive(Default)]
pub struct Classified {
    schema: Option<HeaderValue>,
    level: Option<HeaderValue>,
}

impl Classified {
    pub fn mark(&self, headers: &mut HeaderMap) {
        for (name, uid) in [(SCHEMA_UID, &self.schema), (LEVEL_UID, &self.level)] {
            if let Some(uid) = uid {
                headers.insert(name, uid.clone());
            }
        }
    }
}

/// A FlowSchema in use.
struct Schema {
    name: String,
    uid: Option<HeaderValue>,
    spec: FlowSchemaSpec,
    level: Arc<Level>,
    level_uid: Option<HeaderValue>,
    exempt: bool,
}

#[derive(Default)]
struct State {
    /// In the order of their precedence.
    schemas: Vec<Schema>,
    levels: Vec<Arc<Level>>,
}

/// Gives requests their turn by flow and level.
pub struct Fairness {
    state: ArcSwap<State>,
    /// Seats for all levels together.
    total: usize,
    in_use: AtomicUsize,
    hasher: RandomState,
}

fn uid_header(uid: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(uid)
        .ok()
        .filter(|uid| !uid.is_empty())
}

impl Fairness {
    /// With so many seats for all levels together, and the default objects until the stored ones are known.
    fn new(total: usize) -> Arc<Self> {
        let fairness = Arc::new(Self {
            state: ArcSwap::from_pointee(State::default()),
            total: total.max(1),
            in_use: AtomicUsize::new(0),
            hasher: RandomState::new(),
        });
        fairness.configure(&defaults::levels(), &defaults::schemas());
        fairness
    }

    async fn turn(
        self: &Arc<Self>,
        user: &UserInfo,
        info: &RequestInfo,
        width: impl FnOnce() -> usize + Send,
    ) -> (Classified, Result<Permit<'static>>) {
        let (level, classified, flow) = {
            let state = self.state.load();
            // Without a schema, which can only be while the configuration is incomplete, nothing is known against it.
            let Some(schema) = state.schemas.iter().find(|s| s.spec.matches(user, info)) else {
                return (Classified::default(), Ok(Permit::Free));
            };
            let classified = Classified {
                schema: schema.uid.clone(),
                level: schema.level_uid.clone(),
            };
            if schema.exempt {
                return (classified, Ok(Permit::Free));
            }
            let width = schema.level.clamped(width());
            if let Some(seat) = self.take(&schema.level, width) {
                return (classified, Ok(Permit::Seat { _seat: seat }));
            }
            let flow = (&schema.name, schema.spec.flow(user, info));
            let flow = (self.hasher.hash_one(flow), width);
            (schema.level.clone(), classified, flow)
        };
        let seat = self.wait(&level, flow.0, flow.1).await;
        (classified, seat.map(|seat| Permit::Seat { _seat: seat }))
    }

    /// Takes a configuration: levels and schemas by name, uid and spec.
    fn configure(
        self: &Arc<Self>,
        levels: &[(String, String, LevelSpec)],
        schemas: &[(String, String, FlowSchemaSpec)],
    ) {
        let old = self.state.load_full();
        let shares: u32 = levels.iter().map(|(.., spec)| spec.shares()).sum();
        let mut by_name = HashMap::new();
        for (name, uid, spec) in levels {
            let level = old.levels.iter().find(|level| level.name == *name).cloned();
            let level = level.unwrap_or_else(|| Arc::new(Level::new(name)));
            level.configure(spec.seats(self.total, shares), spec.queuing());
            by_name.insert(name.as_str(), (level, uid_header(uid), spec.is_exempt()));
        }
        let used = schemas.iter().filter_map(|(name, uid, spec)| {
            let level = by_name.get(spec.priority_level_configuration.name.as_str())?;
            Some(Schema {
                name: name.clone(),
                uid: uid_header(uid),
                spec: spec.clone(),
                level: level.0.clone(),
                level_uid: level.1.clone(),
                exempt: level.2,
            })
        });
        let mut used: Vec<Schema> = used.collect();
        used.sort_by(|a, b| {
            let order = |s: &Schema| (s.name == CATCH_ALL, s.spec.matching_precedence);
            order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name))
        });
        let mut levels: Vec<Arc<Level>> = by_name.into_values().map(|(level, ..)| level).collect();
        levels.sort_by(|a, b| a.name.cmp(&b.name));
        let state = State {
            schemas: used,
            levels,
        };
        self.state.store(Arc::new(state));
        // Shares may have grown.
        for level in &self.state.load().levels {
            self.dispatch(level);
        }
    }

    fn render(&self, out: &mut String) {
        let state = self.state.load();
        let prefix = "apiserver_flowcontrol_";
        let mut series = |name: &str, kind: &str, value: &dyn Fn(&Level) -> u64| {
            // A String takes every write.
            let _ = writeln!(out, "# TYPE {prefix}{name} {kind}");
            for level in &state.levels {
                let labels = format!("{{priority_level=\"{}\"}}", level.name);
                let _ = writeln!(out, "{prefix}{name}{labels} {}", value(level));
            }
        };
        series("nominal_limit_seats", "gauge", &|l| {
            l.seats().nominal as u64
        });
        series("current_executing_seats", "gauge", &|l| {
            l.in_use.load(SeqCst) as u64
        });
        series("current_inqueue_requests", "gauge", &|l| {
            l.waiting.load(SeqCst) as u64
        });
        series("dispatched_requests_total", "counter", &|l| {
            l.dispatched.load(SeqCst)
        });
        series("rejected_requests_total", "counter", &|l| {
            l.rejected.load(SeqCst)
        });
    }
}

#[cfg(test)]
mod tests;
