//! Times to live. etcd ties them to leases, and a lease for every event would be more work than the event: keys that
//! are to live equally long share one for a while, at the price of living that much longer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use etcd_client::LeaseClient;
use tokio::sync::Mutex;

use super::{Shared as Connection, fault, retry};
use crate::Result;

/// How many keys share a lease at most: when it expires, they are all deleted at once.
const MAX_KEYS: u32 = 1000;
/// How much longer than it asked for a key may live.
const MAX_EXTRA: Duration = Duration::from_secs(60);

const A_MOMENT: Duration = Duration::from_millis(1);

pub(super) struct Leases {
    client: LeaseClient,
    /// By the seconds asked for.
    shared: Mutex<HashMap<u64, Shared>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shared {
    id: i64,
    expires: Instant,
    keys: u32,
}

impl Leases {
    pub fn new(client: LeaseClient) -> Self {
        Leases {
            client,
            shared: Mutex::default(),
        }
    }

    /// A lease that lasts for `ttl` from now at least. Waits for `timeout` at most.
    pub async fn get(&self, ttl: Duration, timeout: Duration) -> Result<i64> {
        let seconds = round_up(ttl);
        let mut shared = self.shared.lock().await;
        let now = Instant::now();
        shared.retain(|_, lease| lease.expires > now);
        if let Some(lease) = shared
            .get_mut(&seconds)
            .filter(|lease| usable(lease, now, ttl))
        {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let length = Duration::from_secs(seconds) + extra(seconds);
        // One that nobody gets to know runs out by itself.
        let granted = retry(timeout, || {
            let mut client = self.client.clone();
            let length = length.as_secs() as i64;
            async move { client.grant(length, None).await.map_err(fault) }
        })
        .await?;
        // Counted from before the request, so that etcd's own count ends no earlier.
        shared.insert(
            seconds,
            Shared {
                id: granted.id(),
                expires: now + length,
                keys: 1,
            },
        );
        Ok(granted.id())
    }
}

impl Connection {
    /// How long each of these keys has left to live.
    pub(super) async fn lifetimes(
        &self,
        kvs: &[etcd_client::KeyValue],
    ) -> Result<Vec<Option<Duration>>> {
        let mut known: HashMap<i64, Option<Duration>> = HashMap::from([(0, None)]);
        for id in kvs.iter().map(etcd_client::KeyValue::lease) {
            if known.contains_key(&id) {
                continue;
            }
            let left = retry(self.options.timeout, || {
                let mut lease = self.lease.clone();
                async move { lease.time_to_live(id, None).await.map_err(fault) }
            })
            .await?;
            // Of a lease that has just ended etcd says -1; its keys are as good as gone.
            let seconds = left.ttl().max(0) as u64;
            known.insert(id, Some(Duration::from_secs(seconds).max(A_MOMENT)));
        }
        Ok(kvs.iter().map(|kv| known[&kv.lease()]).collect())
    }
}

fn round_up(ttl: Duration) -> u64 {
    (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).max(1)
}

/// A twentieth of what was asked for, as Kubernetes does it.
fn extra(seconds: u64) -> Duration {
    Duration::from_secs(seconds / 20).min(MAX_EXTRA)
}

fn usable(lease: &Shared, now: Instant, ttl: Duration) -> bool {
    lease.keys < MAX_KEYS && lease.expires >= now + ttl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_share_a_lease_that_lasts_long_enough() {
        for (ttl, seconds) in [(1, 1), (1000, 1), (1001, 2), (3_600_000, 3600)] {
            assert_eq!(round_up(Duration::from_millis(ttl)), seconds);
        }
        for (seconds, longer) in [(1, 0), (19, 0), (20, 1), (3600, 60)] {
            assert_eq!(extra(seconds), Duration::from_secs(longer));
        }
        let now = Instant::now();
        let lease = |expires, keys| Shared {
            id: 1,
            expires: now + Duration::from_secs(expires),
            keys,
        };
        let ttl = Duration::from_secs(100);
        for (lease, expected) in [
            (lease(105, 1), true),
            (lease(100, 999), true),
            (lease(99, 1), false),
            (lease(105, 1000), false),
        ] {
            assert_eq!(usable(&lease, now, ttl), expected, "{lease:?}");
        }
    }
}
