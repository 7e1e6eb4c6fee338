//! Leader election over a Lease: of several instances of a component one works, the others stand by.
//!
//! The protocol is client-go's, so that ours and Kubernetes' own instances can stand by for each other: a lease of
//! 15 s that the holder renews every 2 s and gives up on after failing for 10 s. Clocks of different machines are
//! never compared: a standby measures, on its own clock, how long it has seen the record unchanged. A holder that
//! ends in good order empties the record, and the next one takes over at its next look.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

const LEASE_DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// The first wait while nothing is known of the lease, as when the API server is only just starting; each next wait
/// is twice as long.
const UNKNOWN_RETRY: Duration = Duration::from_millis(20);

/// Which lease, and as whom.
#[derive(Debug, Clone)]
pub struct Election {
    pub namespace: String,
    pub name: String,
    pub identity: String,
}

impl Election {
    /// The lease `kube-system/NAME`, as `HOSTNAME_UUID`.
    pub fn new(name: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let identity = format!("{}_{}", host.trim(), uuid::Uuid::new_v4());
        Self {
            namespace: "kube-system".into(),
            name: name.into(),
            identity,
        }
    }
}

/// Leadership was lost to another instance or to an API server that cannot be reached. Work has been told to stop;
/// the process should end, as Kubernetes' do, and be started afresh.
#[derive(Debug, thiserror::Error)]
#[error("lost the lease {0}")]
pub struct Lost(String);

/// What was seen in the lease, and since when on our own clock.
struct Seen {
    lease: Lease,
    at: Instant,
}

/// What a look at the lease leads to.
#[derive(Debug, PartialEq)]
enum Attempt {
    Create(Box<Lease>),
    Update(Box<Lease>),
    /// Someone else holds it.
    Stand,
}

/// Waits for leadership, then runs `work` with a token that is cancelled when leadership ends. Returns once
/// `shutdown` was asked for and work has ended (the lease is released then), or when leadership was lost.
pub async fn run<F, Fut>(
    client: kube::Client,
    election: Election,
    shutdown: &CancellationToken,
    work: F,
) -> Result<(), Lost>
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut elector = Elector {
        api: Api::namespaced(client, &election.namespace),
        election,
        seen: None,
    };
    tracing::info!(
        lease = elector.election.name,
        identity = elector.election.identity,
        "waiting for leadership"
    );
    let mut unknown = UNKNOWN_RETRY;
    while !elector.attempt(Instant::now() + RENEW_DEADLINE).await {
        let wait = if elector.seen.is_none() && unknown < RETRY_PERIOD {
            unknown *= 2;
            unknown / 2
        } else {
            RETRY_PERIOD
        };
        let jitter = wait.mul_f64(rand::random_range(0.0..1.2));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait + jitter) => {}
        }
    }
    tracing::info!(lease = elector.election.name, "became leader");

    let leading = shutdown.child_token();
    let mut work = std::pin::pin!(work(leading.clone()));
    let kept = tokio::select! {
        () = &mut work => true,
        () = shutdown.cancelled() => { work.await; true }
        () = elector.renew() => false,
    };
    if kept {
        elector.release().await;
        return Ok(());
    }
    leading.cancel();
    tracing::error!(lease = elector.election.name, "leadership lost");
    Err(Lost(elector.election.name))
}

struct Elector {
    api: Api<Lease>,
    election: Election,
    seen: Option<Seen>,
}

impl Elector {
    /// Returns when the lease could not be renewed in time.
    async fn renew(&mut self) {
        let mut renewed = Instant::now();
        loop {
            let next = Instant::now() + RETRY_PERIOD;
            sleep_until(next).await;
            if self.attempt(renewed + RENEW_DEADLINE).await {
                renewed = next;
            } else if Instant::now() >= renewed + RENEW_DEADLINE || self.held_by_other() {
                return;
            }
        }
    }

    fn held_by_other(&self) -> bool {
        let holder = self
            .seen
            .as_ref()
            .and_then(|s| s.lease.spec.as_ref()?.holder_identity.as_deref());
        holder.is_some_and(|h| !h.is_empty() && h != self.election.identity)
    }

    /// True if the lease is ours now.
    async fn attempt(&mut self, deadline: Instant) -> bool {
        match timeout_at(deadline, self.try_acquire_or_renew()).await {
            Ok(Ok(ours)) => ours,
            Ok(Err(error)) => {
                tracing::debug!(lease = self.election.name, %error, "lease");
                false
            }
            Err(_) => false,
        }
    }

    async fn try_acquire_or_renew(&mut self) -> kube::Result<bool> {
        // The holder's fast path: what it wrote last is still there.
        if let Some(seen) = self
            .seen
            .as_ref()
            .filter(|s| holds(&s.lease, &self.election))
        {
            let renewed = renewed(&seen.lease, &self.election, Timestamp::now());
            if let Ok(lease) = self
                .api
                .replace(&self.election.name, &PostParams::default(), &renewed)
                .await
            {
                self.seen = Some(Seen {
                    lease,
                    at: Instant::now(),
                });
                return Ok(true);
            }
        }
        let found = self.api.get_opt(&self.election.name).await?;
        if let Some(lease) = found {
            let unchanged = self
                .seen
                .as_ref()
                .is_some_and(|s| s.lease.spec == lease.spec);
            let at = self
                .seen
                .as_ref()
                .filter(|_| unchanged)
                .map_or_else(Instant::now, |s| s.at);
            self.seen = Some(Seen { lease, at });
        } else {
            self.seen = None;
        }
        let age = self
            .seen
            .as_ref()
            .map_or(Duration::ZERO, |s| s.at.elapsed());
        let lease = self.seen.as_ref().map(|s| &s.lease);
        let written = match decide(lease, age, &self.election, Timestamp::now()) {
            Attempt::Stand => return Ok(false),
            Attempt::Create(lease) => self.api.create(&PostParams::default(), &lease).await?,
            Attempt::Update(lease) => {
                self.api
                    .replace(&self.election.name, &PostParams::default(), &lease)
                    .await?
            }
        };
        self.seen = Some(Seen {
            lease: written,
            at: Instant::now(),
        });
        Ok(true)
    }

    /// Lets another instance take over at once, instead of after the lease's time.
    async fn release(&mut self) {
        let Some(seen) = self.seen.take().filter(|s| holds(&s.lease, &self.election)) else {
            return;
        };
        let mut lease = renewed(&seen.lease, &self.election, Timestamp::now());
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let params = PostParams::default();
        let write = self.api.replace(&self.election.name, &params, &lease);
        match timeout_at(Instant::now() + RETRY_PERIOD, write).await {
            Ok(Ok(_)) => tracing::info!(lease = self.election.name, "released the lease"),
            _ => tracing::warn!(
                lease = self.election.name,
                "could not release the lease; it will run out"
            ),
        }
    }
}

fn holds(lease: &Lease, election: &Election) -> bool {
    lease
        .spec
        .as_ref()
        .and_then(|s| s.holder_identity.as_deref())
        == Some(election.identity.as_str())
}

fn renewed(lease: &Lease, election: &Election, now: Timestamp) -> Lease {
    let old = lease.spec.clone().unwrap_or_default();
    let mut lease = lease.clone();
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(election.identity.clone()),
        lease_duration_seconds: Some(LEASE_DURATION.as_secs() as i32),
        renew_time: Some(MicroTime(now)),
        acquire_time: old.acquire_time.clone(),
        lease_transitions: old.lease_transitions,
        ..old
    });
    lease
}

/// What to write, given the lease and for how long it has been seen unchanged.
fn decide(
    lease: Option<&Lease>,
    unchanged_for: Duration,
    election: &Election,
    now: Timestamp,
) -> Attempt {
    let Some(lease) = lease else {
        let mut lease = renewed(&Lease::default(), election, now);
        lease.metadata.name = Some(election.name.clone());
        lease.metadata.namespace = Some(election.namespace.clone());
        if let Some(spec) = &mut lease.spec {
            spec.acquire_time = Some(MicroTime(now));
            spec.lease_transitions = Some(0);
        }
        return Attempt::Create(Box::new(lease));
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let duration = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0) as u64);
    if holder == election.identity {
        return Attempt::Update(Box::new(renewed(lease, election, now)));
    }
    if !holder.is_empty() && unchanged_for < duration {
        return Attempt::Stand;
    }
    let mut taken = renewed(lease, election, now);
    if let Some(new) = &mut taken.spec {
        new.acquire_time = Some(MicroTime(now));
        new.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
    }
    Attempt::Update(Box::new(taken))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use kube::client::Body;

    use super::*;

    fn lease(holder: &str, transitions: i32) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(15),
                lease_transitions: Some(transitions),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn who_may_take_the_lease() {
        let me = Election {
            namespace: "kube-system".into(),
            name: "x".into(),
            identity: "me".into(),
        };
        let now = Timestamp::UNIX_EPOCH;
        // (lease, seen unchanged for, expected transitions when taken)
        let cases = [
            (None, 0, Some(0)),
            (Some(lease("other", 3)), 14, None),
            (Some(lease("other", 3)), 15, Some(4)),
            (Some(lease("", 3)), 0, Some(4)),
            (Some(lease("me", 3)), 0, Some(3)),
        ];
        for (lease, seconds, want) in cases {
            let got = match decide(lease.as_ref(), Duration::from_secs(seconds), &me, now) {
                Attempt::Stand => None,
                Attempt::Create(l) | Attempt::Update(l) => {
                    assert!(holds(&l, &me));
                    l.spec.and_then(|s| s.lease_transitions)
                }
            };
            assert_eq!(got, want, "{lease:?} after {seconds} s");
        }
    }

    /// The clock stands still but for what is waited for, so that what passes is what `run` waits.
    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_starts_later_is_found_soon() {
        let asked = Arc::new(AtomicU32::new(0));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let turn = asked.fetch_add(1, Ordering::Relaxed);
            async move {
                if turn < 3 {
                    return Err("connection refused".into());
                }
                let (status, body) = if request.method() == http::Method::GET {
                    let missing =
                        r#"{"kind":"Status","status":"Failure","reason":"NotFound","code":404}"#;
                    (404, missing.into())
                } else {
                    (201, request.into_body().collect_bytes().await?)
                };
                let response = http::Response::builder()
                    .status(status)
                    .body(Body::from(body))?;
                Ok::<_, tower::BoxError>(response)
            }
        });
        let client = kube::Client::new(service, "default");
        let shutdown = CancellationToken::new();
        let election = Election::new("late");
        let began = Instant::now();
        run(client, election, &shutdown, |_| async { shutdown.cancel() })
            .await
            .unwrap();
        assert!(shutdown.is_cancelled(), "never led");
        assert!(began.elapsed() < Duration::from_millis(350));
    }
}
