//! The etcd engine: the contract over an etcd cluster, with the compare-and-set transactions, leases and watches that
//! Kubernetes' own API server uses.
//!
//! One etcd watch over the whole key space feeds the [`Hub`] ([`pump`]), and all watchers are served from there. Since
//! every revision of etcd is a change of some key, the hub passes through every revision, and a reader knows when it has
//! caught up without etcd's progress notifications, which older servers are known to send too early. A watcher from
//! before the hub's position reads what it missed with an etcd watch of its own.
//!
//! What callers see as a revision is etcd's own and the *offset* of this etcd, which is 0 unless a backup was restored into
//! it: etcd counts from 1, and revisions must never go back ([`epoch`]).
//!
//! Reads are repeated while no server answers. Writes are only while it is certain that no server has begun them: else
//! whether one has happened is unknown, and the caller, who sees [`Error::Unavailable`], has to look.

mod epoch;
mod leases;
mod pump;
mod restore;
mod revision;

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use epoch::Epoch;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions,
    GetResponse, Identity, KvClient, LeaseClient, PutOptions, ResponseHeader, TlsOptions, Txn,
    TxnOp, TxnOpResponse, WatchClient,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Code;

pub use restore::restore;

use crate::hub::{Hub, Log};
use crate::{Batch, Deleted, Error, Expect, KeyValue, Range, RangeResult, Result, Store, Watch};

/// etcd has no empty key: this is the first there can be, and as an end it means "all that follow".
const FIRST_KEY: &str = "\0";

#[derive(Clone, Debug)]
pub struct Options {
    /// Server certificates to trust, and ours, for `https` endpoints.
    pub tls: Option<Tls>,
    /// Compact what is older than this; `None` leaves that to somebody else.
    pub history: Option<Duration>,
    /// How long one request may take, repetitions included.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tls: None,
            history: Some(Duration::from_secs(300)),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Certificates and keys as PEM.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authority that has signed the servers' certificates.
    pub ca: Option<Vec<u8>>,
    /// Our certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// What calls, the pump and watches share.
struct Shared {
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    epoch: Epoch,
    hub: Hub,
    options: Options,
    closed: AtomicBool,
}

/// A store in an etcd cluster.
pub struct Etcd {
    shared: Arc<Shared>,
    leases: leases::Leases,
    revision: revision::SingleFlight,
    pump: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Etcd {
    /// Connects to the cluster that the endpoints, URLs, belong to. Waits for one of them to answer.
    pub async fn connect<E: AsRef<str>>(endpoints: &[E], options: Options) -> Result<Self> {
        let client = client(endpoints, &options).await?;
        let kv = client.kv_client().max_decoding_message_size(usize::MAX);
        let watch = client.watch_client().max_decoding_message_size(usize::MAX);
        let found = retry(options.timeout, || epoch::read(kv.clone())).await?;
        if found.unfinished {
            return Err(Error::Corrupt(
                "a restore of a backup into this etcd was not finished; run it again".into(),
            ));
        }
        let epoch = Epoch::new(found.offset);
        let shared = Arc::new(Shared {
            kv,
            watch,
            lease: client.lease_client(),
            hub: Hub::new(epoch.outward(found.revision)),
            epoch,
            options,
            closed: AtomicBool::new(false),
        });
        let pump = tokio::spawn(pump::run(shared.clone()));
        Ok(Etcd {
            leases: leases::Leases::new(client.lease_client()),
            revision: revision::SingleFlight::default(),
            pump: Mutex::new(Some(pump)),
            shared,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<(bool, u64, Option<TxnOpResponse>)> {
        let kv = self.shared.open()?;
        let response = repeat(self.shared.options.timeout, not_begun, || {
            let (mut kv, txn) = (kv.clone(), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await?
        .map_err(fault)?;
        let outcome = response.op_responses().into_iter().next();
        let revision = self.shared.epoch.outward(revision_of(response.header()));
        Ok((response.succeeded(), revision, outcome))
    }
}

async fn client<E: AsRef<str>>(endpoints: &[E], options: &Options) -> Result<Client> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(2))
        .with_keep_alive(Duration::from_secs(30), Duration::from_secs(10))
        .with_keep_alive_while_idle(true)
        // A server cut off from its cluster then says so instead of keeping silent on watches.
        .with_require_leader(true);
    if let Some(tls) = &options.tls {
        connect = connect.with_tls(tls_options(tls));
    }
    Client::connect(endpoints, Some(connect))
        .await
        .map_err(fault)
}

fn tls_options(tls: &Tls) -> TlsOptions {
    let mut options = TlsOptions::new();
    if let Some(ca) = &tls.ca {
        options = options.ca_certificate(Certificate::from_pem(ca));
    }
    if let Some((certificate, key)) = &tls.identity {
        options = options.identity(Identity::from_pem(certificate, key));
    }
    options
}

/// etcd's own current revision, confirmed by a majority.
async fn probe(mut kv: KvClient) -> Result<u64> {
    let options = GetOptions::new().with_count_only();
    let response = kv.get(FIRST_KEY, Some(options)).await.map_err(fault)?;
    Ok(revision_of(response.header()))
}

/// Compacts at etcd's own revision. To do that twice does no harm.
async fn compact(kv: &KvClient, revision: i64, timeout: Duration) -> Result<()> {
    let compacted = retry(timeout, || {
        let mut kv = kv.clone();
        async move { kv.compact(revision, None).await.map(drop).map_err(fault) }
    });
    match compacted.await {
        // Somebody was there before.
        Err(Error::Compacted { .. }) => Ok(()),
        result => result,
    }
}

fn revision_of(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.revision() as u64)
}

/// etcd tells its errors apart by their messages only.
fn fault(error: etcd_client::Error) -> Error {
    let etcd_client::Error::GRpcStatus(status) = &error else {
        return Error::Unavailable(error.to_string());
    };
    let message = status.message();
    if message.contains("has been compacted") {
        Error::Compacted {
            requested: 0,
            oldest: 0,
        }
    } else if message.contains("is a future revision") {
        Error::FutureRevision {
            requested: 0,
            current: 0,
        }
    } else if message.contains("request is too large")
        // gRPC's own limit comes before etcd's when a request exceeds both.
        || message.contains("larger than max")
        || status.code() == Code::OutOfRange
    {
        Error::TooLarge { size: 0, limit: 0 }
    } else if message.contains("database space exceeded") {
        Error::Full(message.to_owned())
    } else {
        Error::Unavailable(message.to_owned())
    }
}

/// Whether it is certain that no server has begun what failed: there was no connection to send it on, or the server, asked
/// for one with a leader, had none.
fn not_begun(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return false;
    };
    let mut causes = std::iter::successors(
        status.source(),
        |error: &&(dyn std::error::Error + 'static)| (*error).source(),
    );
    status.message() == "etcdserver: no leader"
        || causes.any(|cause| {
            let unsent = cause.downcast_ref().is_some_and(hyper::Error::is_canceled);
            unsent || cause.is::<tonic::ConnectError>()
        })
}

/// Waits no longer than `timeout`.
async fn limited<T>(timeout: Duration, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(timeout, work).await.map_err(|_| {
        Error::Unavailable(format!(
            "etcd did not answer within {} s",
            timeout.as_secs()
        ))
    })
}

/// How long to wait before trying again, for the `attempt`th time.
fn back_off(attempt: u32) -> Duration {
    Duration::from_millis(50 << attempt.min(5))
}

/// Asks until there is an answer, or a failure after which one must not ask again, or `timeout` has passed.
async fn repeat<T, E, F: Future<Output = std::result::Result<T, E>>>(
    timeout: Duration,
    again: impl Fn(&E) -> bool,
    ask: impl Fn() -> F,
) -> Result<std::result::Result<T, E>> {
    let deadline = Instant::now() + timeout;
    let mut attempt = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match limited(left, ask()).await? {
            Err(error) if again(&error) && Instant::now() + back_off(attempt) < deadline => {
                tokio::time::sleep(back_off(attempt)).await;
                attempt += 1;
            }
            result => return Ok(result),
        }
    }
}

/// Asks until there is an answer, `timeout` has passed, or something else than silence comes back.
async fn retry<T, F: Future<Output = Result<T>>>(
    timeout: Duration,
    ask: impl Fn() -> F,
) -> Result<T> {
    let silent = |error: &Error| matches!(error, Error::Unavailable(_));
    repeat(timeout, silent, ask).await?
}

impl Shared {
    fn open(&self) -> Result<KvClient> {
        if self.closed.load(Ordering::Acquire) {
            Err(Error::Closed)
        } else {
            Ok(self.kv.clone())
        }
    }

    /// The current revision, confirmed by a majority.
    async fn current(&self) -> Result<u64> {
        probe(self.kv.clone()).await.map(|r| self.epoch.outward(r))
    }

    fn conflict(&self, outcome: Option<TxnOpResponse>) -> Error {
        let current = match outcome {
            Some(TxnOpResponse::Get(response)) => response
                .kvs()
                .first()
                .map(|kv| Box::new(self.epoch.key_value(kv))),
            _ => None,
        };
        Error::Conflict { current }
    }

    async fn get(&self, key: &str, options: GetOptions) -> Result<GetResponse> {
        let kv = self.open()?;
        retry(self.options.timeout, || {
            let (mut kv, options) = (kv.clone(), options.clone());
            async move { kv.get(key, Some(options)).await.map_err(fault) }
        })
        .await
    }

    async fn range(&self, range: Range) -> Result<RangeResult> {
        let start = if range.start.is_empty() {
            FIRST_KEY
        } else {
            &range.start
        };
        // etcd takes a range that ends where it starts for a question about that key.
        let (end, nothing) = if start < &*range.end {
            (&*range.end, false)
        } else {
            (FIRST_KEY, true)
        };
        let mut options = GetOptions::new()
            .with_range(end)
            .with_limit(range.limit as i64);
        if let Some(revision) = range.revision {
            let requested = self.epoch.inward(revision);
            options = options.with_revision(requested.ok_or_else(|| self.epoch.over(revision))?);
        }
        if range.keys_only {
            options = options.with_keys_only();
        }
        if range.count_only || nothing {
            options = options.with_count_only();
        }
        let response = self.get(start, options).await.map_err(|e| match e {
            Error::Compacted { oldest, .. } => Error::Compacted {
                requested: range.revision.unwrap_or(0),
                oldest,
            },
            Error::FutureRevision { .. } => Error::FutureRevision {
                requested: range.revision.unwrap_or(0),
                current: self.hub.position(),
            },
            other => other,
        })?;
        let revision = range
            .revision
            .unwrap_or_else(|| self.epoch.outward(revision_of(response.header())));
        if nothing {
            return Ok(RangeResult {
                revision,
                ..RangeResult::default()
            });
        }
        let lifetimes = match range.lifetimes {
            true => self.lifetimes(response.kvs()).await?,
            false => Vec::new(),
        };
        let kvs = response.kvs().iter().map(|kv| self.epoch.key_value(kv));
        Ok(RangeResult {
            kvs: kvs.collect(),
            revision,
            more: response.more(),
            count: response.count() as u64,
            lifetimes,
        })
    }
}

fn expected(key: &str, expect: Expect, epoch: &Epoch) -> Vec<Compare> {
    match expect {
        Expect::Any => Vec::new(),
        Expect::Absent => vec![Compare::mod_revision(key, CompareOp::Equal, 0)],
        Expect::ModRevision(revision) => {
            // A revision that nothing can have must not match a key that does not exist.
            let revision = epoch.inward(revision).unwrap_or(-1);
            vec![Compare::mod_revision(key, CompareOp::Equal, revision)]
        }
    }
}

fn too_large(error: Error, value: &Bytes) -> Error {
    match error {
        // etcd's default limit; it does not say which one it has.
        Error::TooLarge { .. } => Error::TooLarge {
            size: value.len(),
            limit: 3 << 19,
        },
        other => other,
    }
}

impl Store for Etcd {
    fn current_revision(&self) -> BoxFuture<'_, Result<u64>> {
        let shared = self.shared.clone();
        self.revision
            .get(move || {
                let shared = shared.clone();
                async move {
                    let kv = shared.open()?;
                    let revision = retry(shared.options.timeout, || probe(kv.clone())).await?;
                    Ok(shared.epoch.outward(revision))
                }
            })
            .boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>>> {
        async move {
            let response = self.shared.get(key, GetOptions::new()).await?;
            let found = response.kvs().first();
            Ok(found.map(|kv| self.shared.epoch.key_value(kv)))
        }
        .boxed()
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult>> {
        self.shared.range(range).boxed()
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, Result<u64>> {
        async move {
            self.shared.open()?;
            let options = match ttl {
                Some(ttl) => {
                    let timeout = self.shared.options.timeout;
                    Some(PutOptions::new().with_lease(self.leases.get(ttl, timeout).await?))
                }
                None => None,
            };
            let txn = Txn::new()
                .when(expected(key, expect, &self.shared.epoch))
                .and_then([TxnOp::put(key, value.as_ref(), options)])
                .or_else([TxnOp::get(key, None)]);
            match self.txn(txn).await.map_err(|e| too_large(e, &value))? {
                (true, revision, _) => Ok(revision),
                (false, _, outcome) => Err(self.shared.conflict(outcome)),
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>> {
        async move {
            let options = DeleteOptions::new().with_prev_key();
            let txn = Txn::new()
                .when(expected(key, expect, &self.shared.epoch))
                .and_then([TxnOp::delete(key, Some(options))])
                .or_else([TxnOp::get(key, None)]);
            match self.txn(txn).await? {
                (true, revision, Some(TxnOpResponse::Delete(response))) => {
                    let prev = response.prev_kvs().first();
                    let prev = prev.map(|kv| self.shared.epoch.key_value(kv));
                    let prev = prev.ok_or(Error::Conflict { current: None })?;
                    Ok(Deleted { revision, prev })
                }
                (_, _, outcome) => Err(self.shared.conflict(outcome)),
            }
        }
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: u64) -> BoxFuture<'a, Result<Watch>> {
        let watch = self
            .shared
            .open()
            .map(|_| self.shared.hub.watch(self.shared.clone(), prefix, from));
        std::future::ready(watch).boxed()
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        async move {
            let kv = self.shared.open()?;
            // What was before a restore is gone already.
            let Some(own) = self.shared.epoch.inward(revision) else {
                return Ok(());
            };
            let compacted = compact(&kv, own, self.shared.options.timeout).await;
            compacted.map_err(|error| match error {
                Error::FutureRevision { .. } => Error::FutureRevision {
                    requested: revision,
                    current: self.shared.hub.position(),
                },
                other => other,
            })
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.shared.closed.store(true, Ordering::Release);
            let pump = self.pump.lock().take();
            if let Some(pump) = pump {
                pump.abort();
                // Aborted or ended: either way it is over.
                let _ = pump.await;
            }
            self.shared.hub.end(Error::Closed);
        }
        .boxed()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        if let Some(pump) = self.pump.lock().take() {
            pump.abort();
        }
        self.shared.hub.end(Error::Closed);
    }
}

impl Log for Shared {
    fn read(
        self: Arc<Self>,
        prefix: Arc<str>,
        from: u64,
        to: u64,
    ) -> BoxFuture<'static, Result<Batch>> {
        async move {
            retry(self.options.timeout, || {
                pump::read(&self, &prefix, from, to)
            })
            .await
        }
        .boxed()
    }
}
