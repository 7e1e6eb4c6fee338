//! The Kubernetes DNS specification, case by case.

use super::*;
use crate::index::Change;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

fn feed<K: serde::de::DeserializeOwned>(
    index: &mut Index,
    wrap: fn(Event<K>) -> Change,
    objects: Vec<Value>,
) {
    index.apply(wrap(Event::Init));
    for object in objects {
        index.apply(wrap(Event::InitApply(
            serde_json::from_value(object).unwrap(),
        )));
    }
    index.apply(wrap(Event::InitDone));
}

fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn slice(service: &str, name: &str, endpoints: Value) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn index() -> Index {
    let mut index = Index::default();
    let namespaces = ["shop", "kube-system"].map(|name| json!({"metadata": {"name": name}}));
    feed(&mut index, Change::Namespace, namespaces.to_vec());
    feed(
        &mut index,
        Change::Service,
        vec![
            service(
                "kube-system",
                "kube-dns",
                json!({"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
            ),
            service(
                "shop",
                "web",
                json!({
                    "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00::20"],
                    "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "admin", "port": 81, "protocol": "TCP"}],
                }),
            ),
            service(
                "shop",
                "db",
                json!({"clusterIP": "None", "ports": [{"name": "http", "port": 8080}]}),
            ),
            service(
                "shop",
                "early",
                json!({"clusterIP": "None", "publishNotReadyAddresses": true}),
            ),
            service("shop", "idle", json!({"clusterIP": "None"})),
            service(
                "shop",
                "away",
                json!({"type": "ExternalName", "externalName": "www.example.com"}),
            ),
            service(
                "shop",
                "alias",
                json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"}),
            ),
        ],
    );
    feed(
        &mut index,
        Change::Slice,
        vec![
            slice(
                "db",
                "db-1",
                json!([
                    {"addresses": ["10.244.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
                    {"addresses": ["10.244.0.3"], "conditions": {"ready": true}},
                    {"addresses": ["10.244.0.4"], "hostname": "db-2", "conditions": {"ready": false}},
                ]),
            ),
            slice(
                "early",
                "early-1",
                json!([{"addresses": ["10.244.0.5"], "hostname": "e-0", "conditions": {"ready": false}}]),
            ),
            slice(
                "web",
                "web-1",
                json!([{"addresses": ["10.244.0.6"], "conditions": {"ready": true}}]),
            ),
        ],
    );
    index
}

fn ask(name: &str, kind: RecordType) -> Answer {
    Zone::new("cluster.local")
        .unwrap()
        .answer(&index(), &Name::from_ascii(name).unwrap(), kind)
        .unwrap()
}

fn data(records: &[Record]) -> Vec<String> {
    let mut data: Vec<_> = records
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    data.sort();
    data
}

/// Records, or the response code when there are none.
fn say(name: &str, kind: RecordType) -> String {
    let answer = ask(&format!("{name}.cluster.local."), kind);
    match answer.answers.is_empty() {
        true => {
            assert!(
                answer.authorities[0].record_type() == RecordType::SOA,
                "nothing without the SOA"
            );
            if answer.code == ResponseCode::NoError {
                "nodata".into()
            } else {
                format!("{:?}", answer.code)
            }
        }
        false => data(&answer.answers).join(" "),
    }
}

#[test]
fn the_specification() {
    use RecordType as T;
    for (name, kind, expected) in [
        ("dns-version", T::TXT, "1.1.0"),
        ("web.shop.svc", T::A, "10.96.0.20"),
        ("WEB.Shop.SVC", T::A, "10.96.0.20"),
        ("web.shop.svc", T::AAAA, "fd00::20"),
        ("web.shop.svc", T::MX, "nodata"),
        ("web.other.svc", T::A, "NXDomain"),
        ("nope.shop.svc", T::A, "NXDomain"),
        ("shop.svc", T::A, "nodata"),
        ("other.svc", T::A, "NXDomain"),
        ("svc", T::A, "nodata"),
        ("pod", T::A, "nodata"),
        ("whatever", T::A, "NXDomain"),
        (
            "_http._tcp.web.shop.svc",
            T::SRV,
            "0 50 80 web.shop.svc.cluster.local.",
        ),
        ("_http._tcp.web.shop.svc", T::A, "nodata"),
        ("_tcp.web.shop.svc", T::SRV, "nodata"),
        ("_udp.web.shop.svc", T::SRV, "NXDomain"),
        ("_http._udp.web.shop.svc", T::SRV, "NXDomain"),
        ("_nope._tcp.web.shop.svc", T::SRV, "NXDomain"),
        ("db.shop.svc", T::A, "10.244.0.2 10.244.0.3"),
        ("db.shop.svc", T::AAAA, "nodata"),
        ("db-0.db.shop.svc", T::A, "10.244.0.2"),
        ("10-244-0-3.db.shop.svc", T::A, "10.244.0.3"),
        ("db-2.db.shop.svc", T::A, "NXDomain"),
        ("10-244-0-6.web.shop.svc", T::A, "NXDomain"),
        (
            "_http._tcp.db.shop.svc",
            T::SRV,
            "0 50 8080 10-244-0-3.db.shop.svc.cluster.local. 0 50 8080 db-0.db.shop.svc.cluster.local.",
        ),
        ("early.shop.svc", T::A, "10.244.0.5"),
        ("idle.shop.svc", T::A, "NXDomain"),
        ("away.shop.svc", T::CNAME, "www.example.com."),
        ("1-2-3-4.shop.pod", T::A, "1.2.3.4"),
        ("fd00--5.shop.pod", T::AAAA, "fd00::5"),
        ("1-2-3.shop.pod", T::A, "NXDomain"),
        ("ns.dns", T::A, "10.96.0.10"),
    ] {
        assert_eq!(say(name, kind), expected, "{kind} {name}");
    }
}

#[test]
fn the_apex() {
    assert_eq!(
        data(&ask("cluster.local.", RecordType::NS).answers),
        ["ns.dns.cluster.local."]
    );
    assert_eq!(ask("cluster.local.", RecordType::SOA).answers.len(), 1);
    assert!(ask("cluster.local.", RecordType::A).answers.is_empty());
}

#[test]
fn reverse_names() {
    let name = |ip: &str| Name::from(ip.parse::<IpAddr>().unwrap());
    let zone = Zone::new("cluster.local").unwrap();
    let reverse = |ip: &str| {
        zone.answer(&index(), &name(ip), RecordType::PTR)
            .map(|a| data(&a.answers))
    };
    assert_eq!(
        reverse("10.96.0.20").unwrap(),
        ["web.shop.svc.cluster.local."]
    );
    assert_eq!(
        reverse("fd00::20").unwrap(),
        ["web.shop.svc.cluster.local."]
    );
    assert_eq!(
        reverse("10.244.0.2").unwrap(),
        ["db-0.db.shop.svc.cluster.local."]
    );
    assert_eq!(
        reverse("10.244.0.6"),
        None,
        "endpoints of other Services have no names"
    );
    assert_eq!(reverse("192.0.2.1"), None);
}

#[test]
fn aliases() {
    let answer = ask("away.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(
        answer.follow,
        Some(Name::from_ascii("www.example.com.").unwrap())
    );
    let answer = ask("alias.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(
        data(&answer.answers),
        ["10.96.0.20", "web.shop.svc.cluster.local."]
    );
    assert_eq!(answer.follow, None);
}

#[test]
fn srv_brings_addresses() {
    let answer = ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV);
    assert_eq!(data(&answer.additionals), ["10.96.0.20", "fd00::20"]);
}

#[test]
fn others_names_are_not_ours() {
    let zone = Zone::new("cluster.local").unwrap();
    let example = Name::from_ascii("example.com.").unwrap();
    assert_eq!(zone.answer(&index(), &example, RecordType::A), None);
}

#[test]
fn nothing_is_denied_before_all_is_known() {
    let zone = Zone::new("cluster.local").unwrap();
    let name = Name::from_ascii("web.shop.svc.cluster.local.").unwrap();
    let answer = zone
        .answer(&Index::default(), &name, RecordType::A)
        .unwrap();
    assert_eq!(answer.code, ResponseCode::ServFail);
}

#[test]
fn what_goes_is_gone() {
    let mut index = index();
    let gone =
        serde_json::from_value(service("shop", "web", json!({"clusterIP": "10.96.0.20"}))).unwrap();
    index.apply(Change::Service(Event::Delete(gone)));
    assert!(index.names_at(&"10.96.0.20".parse().unwrap()).is_empty());
    let gone = serde_json::from_value(slice("db", "db-1", json!([]))).unwrap();
    index.apply(Change::Slice(Event::Delete(gone)));
    assert!(index.names_at(&"10.244.0.2".parse().unwrap()).is_empty());
    assert!(index.endpoints("shop", "db").is_empty());
}
