//! Several API servers on one etcd: all that live are endpoints of the `kubernetes` Service. And each has a Lease.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use storage::Expect;

use crate::common::{Api, Etcd, until};

const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

fn addresses(list: &Value, of: impl Fn(&Value) -> Value) -> Vec<String> {
    let each = list.as_array().into_iter().flatten();
    each.filter_map(|one| of(one).as_str().map(str::to_owned))
        .collect()
}

/// Waits until both objects show these addresses.
async fn shows(api: &Api, expected: &[&str]) {
    until(&format!("{expected:?} are the endpoints"), || async {
        let endpoints = api.get(ENDPOINTS).await.ok();
        let slice = api.get(SLICE).await.ok();
        let one = addresses(&endpoints["subsets"][0]["addresses"], |a| a["ip"].clone());
        let other = addresses(&slice["endpoints"], |e| e["addresses"][0].clone());
        (one == expected && other == expected).then_some(())
    })
    .await;
}

async fn server(etcd: &Etcd, address: &str) -> Api {
    Api::start_with(&["--etcd-servers", &etcd.url, "--advertise-address", address]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_live_are_endpoints() {
    let etcd = Etcd::start();
    let first = server(&etcd, "192.0.2.1").await;
    shows(&first, &["192.0.2.1"]).await;
    let second = server(&etcd, "192.0.2.2").await;
    shows(&first, &["192.0.2.1", "192.0.2.2"]).await;
    let service = first
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .ok();
    assert_eq!(service["spec"]["ports"][0]["port"], 443);

    // A server that nobody hears of again: the key is as Kubernetes' own API server has it.
    let lease = json!({"kind": "Endpoints", "apiVersion": "v1", "metadata": {"generation": 3},
        "subsets": [{"addresses": [{"ip": "192.0.2.9"}]}]});
    let lease = apimachinery::protobuf::from_json(lease.to_string().as_bytes()).unwrap();
    let store = first.store();
    let ttl = Some(Duration::from_secs(2));
    let key = "/registry/masterleases/192.0.2.9";
    store
        .put(key, Expect::Absent, Bytes::from(lease), ttl)
        .await
        .unwrap();
    shows(&second, &["192.0.2.1", "192.0.2.2", "192.0.2.9"]).await;
    shows(&second, &["192.0.2.1", "192.0.2.2"]).await;

    // One that stops takes itself away.
    second.stop().await;
    shows(&first, &["192.0.2.1"]).await;
    assert_eq!(
        store.get("/registry/masterleases/192.0.2.2").await.unwrap(),
        None
    );
    // So does the last.
    let left = first.store();
    assert!(
        left.get("/registry/masterleases/192.0.2.1")
            .await
            .unwrap()
            .is_some()
    );
    first.stop().await;
    let next = server(&etcd, "192.0.2.3").await;
    shows(&next, &["192.0.2.3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_left_alone_when_told() {
    let api = Api::start_with(&["--endpoint-reconciler-type", "none"]).await;
    api.get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .ok();
    api.get(ENDPOINTS).await.refused(404, "NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_an_embedded_store_is_the_only_endpoint() {
    let mut api = Api::start().await;
    shows(&api, &["192.0.2.1"]).await;
    api.restart().await;
    shows(&api, &["192.0.2.1"]).await;
}

/// Waits until there are as many leases of API servers, in the order of their names.
async fn leases(api: &Api, count: usize) -> Vec<Value> {
    let path = format!("{LEASES}?labelSelector=apiserver.kubernetes.io/identity%3Dkube-apiserver");
    until("there are as many leases", || async {
        let list = api.get(&path).await.ok();
        let items = list["items"].as_array().unwrap();
        let own = |lease: &Value| {
            lease["metadata"]["name"]
                .as_str()
                .unwrap()
                .starts_with("apiserver-")
        };
        (items.len() == count && items.iter().any(own)).then(|| items.clone())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_by_its_holder() {
    let api = Api::start().await;
    let first = leases(&api, 1).await.remove(0);
    // Every ten seconds.
    let renewed = until("the lease is renewed", || async {
        let now = leases(&api, 1).await.remove(0);
        (now["spec"]["renewTime"] != first["spec"]["renewTime"]).then_some(now)
    })
    .await;
    let time = |lease: &Value| -> jiff::Timestamp {
        lease["spec"]["renewTime"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    assert!(time(&renewed) > time(&first));
    for (field, same) in [("name", true), ("uid", true), ("resourceVersion", false)] {
        let (one, other) = (&first["metadata"][field], &renewed["metadata"][field]);
        assert_eq!(one == other, same, "{field}");
    }
    assert_eq!(
        renewed["spec"]["holderIdentity"],
        first["spec"]["holderIdentity"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_have_leases_until_they_expire() {
    let mut api = Api::start().await;
    let first = leases(&api, 1).await.remove(0);
    let name = first["metadata"]["name"].as_str().unwrap();
    let holder = first["spec"]["holderIdentity"].as_str().unwrap();
    assert!(holder.starts_with(&format!("{name}_")), "{holder}");
    assert_eq!(first["spec"]["leaseDurationSeconds"], 3600);
    for (name, renewed) in [
        ("z-dead", "2020-01-01T00:00:00.000000Z"),
        ("z-lives", "2100-01-01T00:00:00.000000Z"),
    ] {
        let lease = json!({
            "metadata": {"name": name, "labels": {"apiserver.kubernetes.io/identity": "kube-apiserver"}},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 3600, "renewTime": renewed},
        });
        api.post(LEASES, &lease).await.ok();
    }
    // The next server takes the first one's place, and finds that one of the others has not been heard of for long.
    api.restart().await;
    let now = leases(&api, 2).await;
    assert_eq!(now[0]["metadata"]["name"], name);
    assert_ne!(now[0]["spec"]["holderIdentity"], holder);
    assert_eq!(now[1]["metadata"]["name"], "z-lives");
}
