use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use storage::embedded::{Embedded, Options};
use storage::{Expect, Store};
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

use super::plugin::{DecryptResponse, EncryptRequest, EncryptResponse};
use super::*;
use crate::encryption::{EncryptedStore, SharedRules, config};
use crate::query::Query;
use crate::server::health::Health;

/// A plugin whose seal is the name of its key before what is sealed.
#[derive(Default)]
struct Fake {
    key: Mutex<String>,
    health: Mutex<String>,
    asked: AtomicUsize,
    opened: AtomicUsize,
}

impl Fake {
    fn new() -> Arc<Self> {
        let fake = Self::default();
        fake.turn("key-1");
        *fake.health.lock() = "ok".into();
        Arc::new(fake)
    }

    fn turn(&self, key: &str) {
        *self.key.lock() = key.to_owned();
    }

    fn answer(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
        let key_id = self.key.lock().clone();
        match method {
            "/v2.KeyManagementService/Status" => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                let (version, healthz) = ("v2".into(), self.health.lock().clone());
                Ok(StatusResponse {
                    version,
                    healthz,
                    key_id,
                }
                .encode_to_vec())
            }
            "/v2.KeyManagementService/Encrypt" => {
                let request = EncryptRequest::decode(message).map_err(|e| e.to_string())?;
                let ciphertext = [key_id.as_bytes(), &request.plaintext].concat();
                let annotations = [("region.example.com".to_owned(), b"here".to_vec())].into();
                Ok(EncryptResponse {
                    ciphertext,
                    key_id,
                    annotations,
                }
                .encode_to_vec())
            }
            "/v2.KeyManagementService/Decrypt" => {
                let request = DecryptRequest::decode(message).map_err(|e| e.to_string())?;
                self.opened.fetch_add(1, Ordering::Relaxed);
                assert_eq!(request.annotations["region.example.com"], b"here");
                let plaintext = request.ciphertext.strip_prefix(request.key_id.as_bytes());
                let plaintext = plaintext.ok_or("not sealed with this key")?.to_vec();
                Ok(DecryptResponse { plaintext }.encode_to_vec())
            }
            other => panic!("{other}"),
        }
    }

    /// Serves gRPC on a socket until the handle is used.
    fn serve(self: &Arc<Self>, path: &Path) -> AbortHandle {
        let listener = UnixListener::bind(path).unwrap();
        let fake = self.clone();
        let serving = async move {
            // They go with this task.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fake = fake.clone();
                let service = service_fn(move |request| respond(fake.clone(), request));
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                connections.spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        };
        tokio::spawn(serving).abort_handle()
    }
}

type Frames = futures::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

async fn respond(
    fake: Arc<Fake>,
    request: Request<Incoming>,
) -> Result<Response<StreamBody<Frames>>, Infallible> {
    let method = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut trailers = HeaderMap::new();
    let mut frames = Vec::new();
    // A message has five bytes before it: whether it is compressed, and its length.
    match fake.answer(&method, &body[5..]) {
        Ok(message) => {
            let mut framed = vec![0];
            framed.extend((message.len() as u32).to_be_bytes());
            framed.extend(message);
            frames.push(Ok(Frame::data(Bytes::from(framed))));
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
        }
        Err(why) => {
            trailers.insert("grpc-status", HeaderValue::from_static("2"));
            trailers.insert("grpc-message", HeaderValue::from_str(&why).unwrap());
        }
    }
    frames.push(Ok(Frame::trailers(trailers)));
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames).boxed()));
    let media = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", media);
    Ok(response)
}

fn settings(path: &Path) -> Settings {
    Settings {
        name: "test".into(),
        path: path.display().to_string(),
        timeout: Duration::from_secs(10),
    }
}

struct Bench {
    fake: Arc<Fake>,
    serving: AbortHandle,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("kms.sock");
        let fake = Fake::new();
        Self {
            serving: fake.serve(&socket),
            fake,
            socket,
            _directory: directory,
        }
    }

    async fn kms(&self) -> Arc<Kms> {
        let kms = Arc::new(Kms::new(settings(&self.socket)));
        kms.start().await.unwrap();
        kms
    }

    fn rules(&self) -> config::Rules {
        config::parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - kms: {{apiVersion: v2, name: test, endpoint: \"unix://{}\"}}\n  - identity: {{}}\n",
            self.socket.display()
        ))
        .unwrap()
    }
}

async fn open(kms: &Kms, key: &str, sealed: &[u8]) -> Result<Opened, String> {
    kms.open(key, sealed).await.expect("its own envelope")
}

/// As if the last answer had been given long ago.
async fn forget(kms: &Kms) {
    kms.checked.lock().await.at = None;
}

#[tokio::test]
async fn values_are_sealed_with_keys_from_one_seed() {
    let bench = Bench::new();
    let kms = bench.kms().await;
    let sealed = kms.seal("/a", b"plain").unwrap();
    assert!(sealed.starts_with(b"k8s:enc:kms:v2:test:"));
    assert_ne!(sealed, kms.seal("/a", b"plain").unwrap());
    let opened = open(&kms, "/a", &sealed).await.unwrap();
    assert_eq!((&opened.value[..], opened.stale), (&b"plain"[..], false));
    // Its own seed needs no asking, and another server asks once.
    assert_eq!(bench.fake.opened.load(Ordering::Relaxed), 0);
    let other = bench.kms().await;
    for _ in 0..3 {
        assert!(!open(&other, "/a", &sealed).await.unwrap().stale);
    }
    assert_eq!(bench.fake.opened.load(Ordering::Relaxed), 1);
    // Under another key, or changed, it is nothing.
    assert!(open(&kms, "/b", &sealed).await.is_err());
    let mut changed =
        Envelope::read(sealed.strip_prefix(b"k8s:enc:kms:v2:test:").unwrap()).unwrap();
    *changed.data.last_mut().unwrap() ^= 1;
    assert!(
        kms.open_envelope("/a", &changed.encode_to_vec())
            .await
            .is_err()
    );
    assert!(kms.open("/a", b"k8s:enc:kms:v2:other:x").await.is_none());
}

#[tokio::test]
async fn another_key_of_the_plugin_makes_what_was_sealed_stale() {
    let bench = Bench::new();
    let kms = bench.kms().await;
    let sealed = kms.seal("/a", b"plain").unwrap();
    bench.fake.turn("key-2");
    // Not asked again yet.
    kms.check().await.unwrap();
    assert!(!open(&kms, "/a", &sealed).await.unwrap().stale);
    forget(&kms).await;
    kms.check().await.unwrap();
    let opened = open(&kms, "/a", &sealed).await.unwrap();
    assert_eq!((&opened.value[..], opened.stale), (&b"plain"[..], true));
    let anew = kms.seal("/a", &opened.value).unwrap();
    assert!(!open(&kms, "/a", &anew).await.unwrap().stale);
}

#[tokio::test]
async fn without_a_plugin_what_is_known_goes_on() {
    let bench = Bench::new();
    let kms = bench.kms().await;
    let sealed = kms.seal("/a", b"plain").unwrap();
    bench.serving.abort();
    std::fs::remove_file(&bench.socket).unwrap();
    forget(&kms).await;
    let why = kms.check().await.unwrap_err();
    assert!(
        why.starts_with(
            "failed to perform status section of the healthz check for KMS Provider test"
        ),
        "{why}"
    );
    assert_eq!(open(&kms, "/a", &sealed).await.unwrap().value, "plain");
    kms.seal("/a", b"still").unwrap();
    // Three minutes later.
    let current = kms.current.load_full().unwrap();
    kms.current.store(Some(Arc::new(Current {
        source: current.source.clone(),
        envelope: current.envelope.clone(),
        until: Instant::now() - Duration::from_secs(1),
    })));
    assert!(kms.seal("/a", b"no more").unwrap_err().contains("expired"));
    // A server that starts now knows no seeds, until the plugin is back.
    let other = Arc::new(Kms::new(settings(&bench.socket)));
    other.start().await.unwrap_err();
    other.seal("/a", b"x").unwrap_err();
    open(&other, "/a", &sealed).await.unwrap_err();
    let _serving = bench.fake.serve(&bench.socket);
    forget(&other).await;
    other.check().await.unwrap();
    assert_eq!(open(&other, "/a", &sealed).await.unwrap().value, "plain");
    forget(&kms).await;
    kms.check().await.unwrap();
    kms.seal("/a", b"again").unwrap();
}

#[tokio::test]
async fn a_store_with_a_plugin_and_its_health() {
    let bench = Bench::new();
    let rules = bench.rules();
    rules.start().await.unwrap();
    let shared = SharedRules::new(rules);
    let inner: Arc<dyn Store> =
        Arc::new(Embedded::open(bench.socket.with_extension("redb"), Options::default()).unwrap());
    let store: Arc<dyn Store> = Arc::new(EncryptedStore::new(inner.clone(), shared.clone()));
    let secret = "/registry/secrets/n/s";
    let mut watch = store.watch("/registry/secrets/", 1).await.unwrap();
    let value = Bytes::from_static(b"plain");
    let revision = store
        .put(secret, Expect::Absent, value.clone(), None)
        .await
        .unwrap();
    let kept = inner.get(secret).await.unwrap().unwrap();
    assert!(kept.value.starts_with(b"k8s:enc:kms:v2:test:"));
    let batch = loop {
        let batch = watch.next().await.unwrap().unwrap();
        if !batch.events.is_empty() {
            break batch;
        }
    };
    assert_eq!(batch.events[0].kv.value, value);
    assert_eq!(store.get(secret).await.unwrap().unwrap().value, value);
    assert!(!store.is_stale(secret).await.unwrap());

    let stopping = tokio_util::sync::CancellationToken::new();
    let health = Health::new(store.clone(), [], Some(shared.clone()), stopping);
    let well = || async {
        let answer = health
            .answer("/healthz/kms-providers", &Query::default())
            .await;
        answer.unwrap().status().as_u16()
    };
    assert_eq!(well().await, 200);
    let services = shared.load_full();
    let kms = services.services()[0];
    *bench.fake.health.lock() = "out of order".into();
    forget(kms).await;
    assert_eq!(well().await, 500);
    *bench.fake.health.lock() = "ok".into();
    bench.fake.turn("key-2");
    forget(kms).await;
    assert_eq!(well().await, 200);
    assert!(store.is_stale(secret).await.unwrap());
    store
        .put(secret, Expect::ModRevision(revision), value, None)
        .await
        .unwrap();
    assert!(!store.is_stale(secret).await.unwrap());
}

#[test]
fn envelopes_are_checked() {
    let good = Envelope {
        data: vec![1],
        key_id: "k".into(),
        source: vec![1],
        annotations: [("a.example.com".to_owned(), vec![])].into(),
        source_type: SEED,
    };
    assert_eq!(Envelope::read(&good.encode_to_vec()), Ok(good.clone()));
    type Damage = fn(&mut Envelope);
    let damages: [(&str, Damage); 7] = [
        ("encrypted data is empty", |e| e.data.clear()),
        ("keyID is empty", |e| e.key_id.clear()),
        ("keyID is 1025 bytes", |e| e.key_id = "k".repeat(1025)),
        ("encrypted DEK source is empty", |e| e.source.clear()),
        ("encrypted DEK source is 1025 bytes", |e| {
            e.source = vec![0; 1025]
        }),
        ("unknown encryptedDEKSourceType: 2", |e| e.source_type = 2),
        ("failed to validate annotations", |e| {
            e.annotations.insert("plain".into(), vec![]);
        }),
    ];
    for (expected, damage) in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        let error = Envelope::read(&bad.encode_to_vec()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

/// Sealed by Kubernetes 1.36 with a plugin that does as the one here: with a seed, and with a key as it was before.
const BY_KUBERNETES: [&str; 2] = [
    concat!(
        "0a514c45d7a3a23a96c2f47127b8739fdfe6653da837bb76f2ef36b724d528eaf1a4dbfa961da214c822243925d1b1adbb4f8ad9fa0b8fea",
        "e7109145980e346e7447cf0367ea0e8a3c479a870056006058e16112056b65792d311a256b65792d3117c75986f239d5afe4a45b85189af9",
        "ae079399d41df71c007eca7c39cfa0f045221a0a12726567696f6e2e6578616d706c652e636f6d1204686572652801"
    ),
    concat!(
        "0a31c338680d01ca9a3b000000003a2a3646e6620f033a76230cfc29ef6d0be5c6675f00c43b5c4bfcfb7e1905f5eab34886aa12056b6579",
        "2d311a256b65792d3108e145868f04926c78a0a5c527ee456aa14a7878fb234156bae2078f5d90ae4e221a0a12726567696f6e2e6578616d",
        "706c652e636f6d120468657265"
    ),
];

#[tokio::test]
async fn what_kubernetes_has_sealed_opens() {
    let bench = Bench::new();
    let kms = bench.kms().await;
    for (hex, stale) in BY_KUBERNETES.into_iter().zip([false, true]) {
        let sealed = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        let stored = [b"k8s:enc:kms:v2:test:", &sealed[..]].concat();
        let opened = open(&kms, "/registry/secrets/n/s", &stored).await.unwrap();
        assert_eq!(
            (&opened.value[..], opened.stale),
            (&b"written by Kubernetes"[..], stale)
        );
    }
}

#[tokio::test]
async fn a_new_configuration_counts_once_its_plugin_is_well() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, path) = (
        directory.path().join("kms.sock"),
        directory.path().join("config"),
    );
    let content = |provider: &str| {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - {provider}\n"
        )
    };
    let kms = |name: &str| {
        let endpoint = socket.display();
        content(&format!(
            "kms: {{apiVersion: v2, name: {name}, endpoint: \"unix://{endpoint}\"}}"
        ))
    };
    std::fs::write(&path, content("identity: {}")).unwrap();
    let rules = SharedRules::new(config::read(&path).unwrap());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let _stop = shutdown.clone().drop_guard();
    crate::encryption::reload::follow(&path, rules.clone(), shutdown).unwrap();
    let fake = Fake::new();
    *fake.health.lock() = "not yet".into();
    let _serving = fake.serve(&socket);
    std::fs::write(&path, kms("early")).unwrap();
    let until = async |what: &dyn Fn() -> bool| {
        let wait = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .expect("the change is seen");
    };
    until(&|| fake.asked.load(Ordering::Relaxed) > 0).await;
    assert!(!rules.load_full().has_services());
    *fake.health.lock() = "ok".into();
    let next = directory.path().join("next");
    std::fs::write(&next, kms("late")).unwrap();
    std::fs::rename(&next, &path).unwrap();
    until(&|| rules.load_full().has_services()).await;
    assert_eq!(rules.load_full().services()[0].name(), "late");
}
