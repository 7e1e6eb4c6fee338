//! The loop: watches feed the state, the state becomes a model, backends bring the kernel in line.
//!
//! The first change after a quiet time takes effect after a breath (so that a Service and its slices
//! come together); under a burst, a sync waits longer the longer the last one took.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher::{Config as WatchConfig, Event};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::conntrack::{self, Targets};
use crate::health::{ServiceChecks, Shared};
use crate::model::{self, Family, State};
use crate::objects::{HEADLESS, Node, PROXY_NAME, Service, Slice};

/// How long after the first change a sync begins.
const BREATH: Duration = Duration::from_millis(10);
/// At most this share of the time goes into syncs.
const DUTY: u32 = 5;
const RETRY: Duration = Duration::from_secs(1);
/// Everything is written afresh this often, whatever we believe to be in place.
const FULL_SYNC: Duration = Duration::from_secs(3600);

#[allow(clippy::large_enum_variant)] // one at a time, and taken apart at once
pub enum Change {
    Service(Event<core::Service>),
    Slice(Event<EndpointSlice>),
    Node(Event<core::Node>),
}

/// All that the proxy watches, as one stream.
pub fn watch(client: &kube::Client, node: &str) -> impl Stream<Item = Change> + Send + use<> {
    use client::informer::events;
    let services = Api::<core::Service>::all(client.clone());
    let slices = Api::<EndpointSlice>::all(client.clone());
    let nodes = Api::<core::Node>::all(client.clone());
    let default = WatchConfig::default;
    stream::select_all([
        events(services, default().labels(&format!("!{PROXY_NAME}")))
            .map(Change::Service)
            .boxed(),
        events(
            slices,
            default().labels(&format!("!{HEADLESS},!{PROXY_NAME}")),
        )
        .map(Change::Slice)
        .boxed(),
        events(nodes, default().fields(&format!("metadata.name={node}")))
            .map(Change::Node)
            .boxed(),
    ])
}

/// Metric names as kube-proxy's.
pub struct Metrics {
    duration: Histogram,
    failures: Counter,
    last: Gauge,
    queued: Gauge,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let buckets = prometheus_client::metrics::histogram::exponential_buckets(0.001, 2.0, 15);
        let new = Self {
            duration: Histogram::new(buckets),
            failures: Counter::default(),
            last: Gauge::default(),
            queued: Gauge::default(),
        };
        let name = |name: &str| format!("kubeproxy_sync_proxy_rules_{name}");
        registry.register(
            name("duration_seconds"),
            "How long syncs took",
            new.duration.clone(),
        );
        registry.register(
            name("iptables_restore_failures"),
            "Syncs that failed",
            new.failures.clone(),
        );
        registry.register(
            name("last_timestamp_seconds"),
            "When the last sync succeeded",
            new.last.clone(),
        );
        let help = "When a change last waited for a sync";
        registry.register(
            name("last_queued_timestamp_seconds"),
            help,
            new.queued.clone(),
        );
        new
    }
}

/// One address family: its backend and what was last done about flows.
pub struct Plane<B> {
    pub family: Family,
    pub backend: B,
    flows: Targets,
}

impl<B: Backend> Plane<B> {
    pub fn new(family: Family, backend: B) -> Self {
        Self {
            family,
            backend,
            flows: Targets::default(),
        }
    }

    async fn sync(&mut self, state: &State) -> Result<model::Model, crate::backend::Error> {
        let model = model::build(state, self.family);
        if self.backend.sync(&model).await? {
            tracing::debug!(family = ?self.family, ports = model.ports.len(), "rules written");
        }
        // After the rules: a flow that is forgotten earlier would come back the old way.
        let flows = Targets::of(&model);
        if flows != self.flows {
            if !flows.is_empty() {
                conntrack::clean(self.family, &flows).await;
            }
            self.flows = flows;
        }
        Ok(model)
    }
}

pub struct Proxy<B> {
    pub node: String,
    pub planes: Vec<Plane<B>>,
    pub status: Shared,
    pub metrics: Metrics,
    /// How often to look whether somebody else threw our rules away.
    pub check_period: Duration,
    /// The longest that a change waits under a burst.
    pub max_delay: Duration,
}

impl<B: Backend> Proxy<B> {
    /// Runs until `shutdown`. Rules stay when it ends: a restart must not interrupt traffic.
    pub async fn run(
        mut self,
        changes: impl Stream<Item = Change> + Unpin,
        shutdown: &CancellationToken,
    ) {
        let mut changes = changes;
        let mut state = State {
            node: Node {
                name: self.node.clone(),
                ..Node::default()
            },
            ..State::default()
        };
        let mut checks = ServiceChecks::new(Arc::clone(&self.status));
        let (mut due, mut earliest) = (None::<Instant>, Instant::now());
        let mut check =
            tokio::time::interval_at(Instant::now() + self.check_period, self.check_period);
        let mut full = tokio::time::interval_at(Instant::now() + FULL_SYNC, FULL_SYNC);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Partial state would take Services away that are only not listed yet.
            let ready = state.services.synced() && state.slices.synced();
            let at = due.filter(|_| ready).map(|due| due.max(earliest));
            tokio::select! {
                // A due sync goes before yet another change.
                biased;
                () = shutdown.cancelled() => return,
                () = sleep_until(at.unwrap_or(earliest)), if at.is_some() => {
                    let begun = Instant::now();
                    let ok = self.sync(&state, &mut checks).await;
                    let took = begun.elapsed();
                    earliest = Instant::now() + (took * DUTY).min(self.max_delay);
                    due = (!ok).then(|| Instant::now() + RETRY);
                }
                Some(change) = changes.next() => {
                    if self.apply(&mut state, change) && due.is_none() {
                        due = Some(Instant::now() + BREATH);
                    }
                }
                _ = check.tick(), if ready => {
                    for plane in &mut self.planes {
                        if !plane.backend.verify().await {
                            tracing::warn!(family = ?plane.family, "rules are gone, writing them again");
                            due = Some(Instant::now());
                        }
                    }
                }
                _ = full.tick(), if ready => {
                    self.planes.iter_mut().for_each(|plane| plane.backend.forget());
                    due = Some(Instant::now());
                }
            }
        }
    }

    /// True when rules may have to change.
    fn apply(&self, state: &mut State, change: Change) -> bool {
        let mut changed = false;
        match change {
            Change::Service(event) => {
                // An empty cluster needs the fixed chains too.
                changed = matches!(event, Event::InitDone) && !state.services.synced();
                state
                    .services
                    .apply(event, Service::reduce, |_, _, _| changed = true);
            }
            Change::Slice(event) => {
                let reduce = |slice: &EndpointSlice| Slice::reduce(slice, &self.node);
                state.slices.apply(event, reduce, |_, _, _| changed = true);
            }
            Change::Node(event) => match event {
                Event::Apply(node) | Event::InitApply(node) => {
                    let node = Node::reduce(&node);
                    self.status.lock().node_eligible = !node.leaving;
                    changed = node != state.node;
                    state.node = node;
                }
                Event::Delete(_) => self.status.lock().node_eligible = false,
                Event::Init | Event::InitDone => {}
            },
        }
        if changed {
            self.status.lock().queued();
            self.metrics.queued.set(jiff::Timestamp::now().as_second());
        }
        changed
    }

    async fn sync(&mut self, state: &State, checks: &mut ServiceChecks) -> bool {
        let begun = Instant::now();
        for plane in &mut self.planes {
            match plane.sync(state).await {
                Ok(model) if plane.family == Family::V4 => checks.sync(&model.health_checks).await,
                Ok(_) => {}
                Err(error) => {
                    self.metrics.failures.inc();
                    tracing::error!(family = ?plane.family, %error, "cannot write rules, trying again");
                    return false;
                }
            }
        }
        self.metrics.duration.observe(begun.elapsed().as_secs_f64());
        self.metrics.last.set(jiff::Timestamp::now().as_second());
        self.status.lock().updated();
        true
    }
}
