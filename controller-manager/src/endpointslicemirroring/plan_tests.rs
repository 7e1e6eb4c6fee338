use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::plan::{is_custom, is_mirrored, plan};
use crate::endpointslice::Action;

fn endpoints(subsets: Value) -> Endpoints {
    serde_json::from_value(json!({
        "metadata": {
            "name": "web", "namespace": "ns", "uid": "e", "labels": {"a": "b"},
            "annotations": {
                "note": "n", "endpoints.kubernetes.io/last-change-trigger-time": "t",
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
            },
        },
        "subsets": subsets,
    }))
    .unwrap()
}

/// Ready at these addresses on port 80.
fn http(ips: &[&str]) -> Value {
    let list: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!([{"addresses": list, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}])
}

/// What the server has once a plan is done, with the names of its slices as uids of nothing else.
fn applied(slices: &[Arc<EndpointSlice>], actions: Vec<Action>) -> Vec<Arc<EndpointSlice>> {
    let mut slices = slices.to_vec();
    for action in actions {
        match action {
            Action::Create(mut slice) => {
                slice.metadata.name = Some(format!("web-{}", slices.len()));
                slices.push(Arc::new(*slice));
            }
            Action::Update(old, mut next) => {
                next.metadata.name.clone_from(&old.metadata.name);
                slices.retain(|s| s.metadata.name != old.metadata.name);
                slices.push(Arc::new(*next));
            }
            Action::Delete(old) => slices.retain(|s| s.metadata.name != old.metadata.name),
        }
    }
    slices
}

/// `IPv4 80: 10.0.0.1, !10.0.0.2` for each slice.
fn shown(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let mut lines: Vec<String> = slices
        .iter()
        .map(|slice| {
            let ports = slice.ports.iter().flatten().filter_map(|p| p.port);
            let ports: Vec<String> = ports.map(|p| p.to_string()).collect();
            let mut list: Vec<String> = Vec::new();
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready);
                let mark = if ready == Some(true) { "" } else { "!" };
                list.push(format!("{mark}{}", endpoint.addresses[0]));
            }
            format!(
                "{} {}: {}",
                slice.address_type,
                ports.join(","),
                list.join(", ")
            )
        })
        .collect();
    lines.sort();
    lines
}

fn kinds(actions: &[Action]) -> Vec<&'static str> {
    let kind = |action: &Action| match action {
        Action::Create(_) => "create",
        Action::Update(..) => "update",
        Action::Delete(_) => "delete",
    };
    actions.iter().map(kind).collect()
}

#[test]
fn what_is_mirrored() {
    let one = http(&["10.0.0.1"]);
    let unready = json!([{"addresses": [{"ip": "10.0.0.1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80}]}]);
    let two = json!([
        {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http", "port": 80}]},
        {"addresses": [{"ip": "10.0.0.2"}], "ports": [{"name": "https", "port": 443}]},
    ]);
    let moved =
        json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http", "port": 8080}]}]);
    for (what, before, after, want, actions) in [
        (
            "new",
            &json!([]),
            &one,
            &["IPv4 80: 10.0.0.1"][..],
            &["create"][..],
        ),
        ("nothing", &json!([]), &json!([]), &[], &[]),
        ("no change", &one, &one, &["IPv4 80: 10.0.0.1"], &[]),
        (
            "one more",
            &one,
            &http(&["10.0.0.1", "10.0.0.9"]),
            &["IPv4 80: 10.0.0.1, 10.0.0.9"],
            &["update"],
        ),
        ("no more", &one, &json!([]), &[], &["delete"]),
        (
            "not ready",
            &json!([]),
            &unready,
            &["IPv4 80: 10.0.0.1, !10.0.0.2"],
            &["create"],
        ),
        (
            "two sets of ports",
            &json!([]),
            &two,
            &["IPv4 443: 10.0.0.2", "IPv4 80: 10.0.0.1"],
            &["create", "create"],
        ),
        (
            "a set of ports less",
            &two,
            &one,
            &["IPv4 80: 10.0.0.1"],
            &["delete"],
        ),
        (
            "another port",
            &one,
            &moved,
            &["IPv4 8080: 10.0.0.1"],
            &["update"],
        ),
        (
            "two families",
            &json!([]),
            &http(&["10.0.0.1", "fd00::1"]),
            &["IPv4 80: 10.0.0.1", "IPv6 80: fd00::1"],
            &["create", "create"],
        ),
        (
            "the other family",
            &one,
            &http(&["fd00::1"]),
            &["IPv6 80: fd00::1"],
            &["create", "delete"],
        ),
        (
            "written in a long form",
            &json!([]),
            &http(&["fd00:0:0::0001"]),
            &["IPv6 80: fd00::1"],
            &["create"],
        ),
    ] {
        let there = applied(&[], plan(Some(&endpoints(before.clone())), &[]).actions);
        let endpoints = endpoints(after.clone());
        let plan_of = |slices: &[Arc<EndpointSlice>]| plan(Some(&endpoints), slices);
        let planned = plan_of(&there);
        assert_eq!(kinds(&planned.actions), actions, "{what}");
        let there = applied(&there, planned.actions);
        assert_eq!(shown(&there), want, "{what}");
        assert_eq!(plan_of(&there).actions, [], "{what}: done");
    }
}

#[test]
fn what_a_slice_takes_over() {
    let subsets = json!([{
        "addresses": [{"ip": "10.0.0.1", "hostname": "h", "nodeName": "n", "targetRef": {"kind": "Pod", "name": "p", "uid": "u"}}],
        "ports": [{"port": 80, "protocol": "UDP", "appProtocol": "kubernetes.io/h2c"}],
    }]);
    let plan = plan(Some(&endpoints(subsets)), &[]);
    let [Action::Create(slice)] = &plan.actions[..] else {
        panic!("{plan:?}");
    };
    let want = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": "web-", "namespace": "ns",
            "labels": {
                "a": "b", "kubernetes.io/service-name": "web",
                "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
            },
            "annotations": {"note": "n"},
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Endpoints", "name": "web", "uid": "e",
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": ["10.0.0.1"], "conditions": {"ready": true}, "hostname": "h", "nodeName": "n",
            "targetRef": {"kind": "Pod", "name": "p", "uid": "u"},
        }],
        "ports": [{"name": "", "port": 80, "protocol": "UDP", "appProtocol": "kubernetes.io/h2c"}],
    });
    assert_eq!(serde_json::to_value(slice).unwrap(), want);
}

#[test]
fn labels_annotations_and_owners_follow() {
    let first = endpoints(http(&["10.0.0.1"]));
    let there = applied(&[], plan(Some(&first), &[]).actions);
    type Change = fn(&mut Endpoints);
    let cases: [(&str, Change, usize); 6] = [
        ("nothing", |_| {}, 0),
        (
            "a label",
            |e| {
                drop(
                    e.metadata
                        .labels
                        .as_mut()
                        .unwrap()
                        .insert("c".into(), "d".into()),
                )
            },
            1,
        ),
        ("no label", |e| e.metadata.labels = None, 1),
        ("no annotation", |e| e.metadata.annotations = None, 1),
        (
            "when it last changed",
            |e| {
                let annotations = e.metadata.annotations.as_mut().unwrap();
                annotations.insert(
                    "endpoints.kubernetes.io/last-change-trigger-time".into(),
                    "u".into(),
                );
            },
            0,
        ),
        (
            "another object of that name",
            |e| e.metadata.uid = Some("f".into()),
            1,
        ),
    ];
    for (what, change, want) in cases {
        let mut next = first.clone();
        change(&mut next);
        let actions = plan(Some(&next), &there).actions;
        assert_eq!(actions.len(), want, "{what}");
        let there = applied(&there, actions);
        assert_eq!(plan(Some(&next), &there).actions, [], "{what}: done");
    }
}

#[test]
fn what_is_not_mirrored_is_removed() {
    let there = applied(
        &[],
        plan(Some(&endpoints(http(&["10.0.0.1", "fd00::1"]))), &[]).actions,
    );
    assert_eq!(kinds(&plan(None, &there).actions), ["delete", "delete"]);
    // Two that say the same: one is enough.
    let mut twin = (*there[0]).clone();
    twin.metadata.name = Some("twin".into());
    let twins = [there[0].clone(), Arc::new(twin), there[1].clone()];
    let plan_of = plan(Some(&endpoints(http(&["10.0.0.1", "fd00::1"]))), &twins);
    assert_eq!(kinds(&plan_of.actions), ["delete"]);
    // One that is on its way out gets no new slices.
    let mut dying = endpoints(http(&["10.0.0.1"]));
    dying.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        jiff::Timestamp::UNIX_EPOCH,
    ));
    assert_eq!(plan(Some(&dying), &[]).actions, []);
}

#[test]
fn what_is_left_out_is_told() {
    let many: Vec<String> = (0..1010)
        .map(|n| format!("10.0.{}.{}", n / 250, n % 250))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let invalid =
        ["InvalidIPAddress: Skipped 1 invalid IP addresses when mirroring to EndpointSlices"];
    let too_many = [
        "TooManyAddressesToMirror: A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. 10 addresses were skipped",
    ];
    for (ips, mirrored, want) in [
        (&["10.0.0.1"][..], 1, &[][..]),
        (&["10.0.0.1", "nonsense"], 1, &invalid[..]),
        (&many[..1000], 1000, &[]),
        (&many[..], 1000, &too_many[..]),
    ] {
        let plan = plan(Some(&endpoints(http(ips))), &[]);
        let slices = applied(&[], plan.actions);
        assert_eq!(slices[0].endpoints.as_ref().map(Vec::len), Some(mirrored));
        let warnings: Vec<String> = plan
            .warnings
            .iter()
            .map(|(r, m)| format!("{r}: {m}"))
            .collect();
        assert_eq!(warnings, want);
    }
}

#[test]
fn who_wants_it() {
    for (metadata, want) in [
        (json!({}), true),
        (
            json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}),
            false,
        ),
        (
            json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "false"}}),
            true,
        ),
        (
            json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}),
            false,
        ),
    ] {
        let endpoints = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        assert_eq!(is_mirrored(&endpoints), want, "{metadata}");
    }
    for (spec, want) in [
        (json!({}), true),
        (json!({"selector": {}}), true),
        (json!({"selector": {"app": "web"}}), false),
    ] {
        let service: Service = serde_json::from_value(json!({"spec": spec})).unwrap();
        assert_eq!(is_custom(&service), want, "{spec}");
    }
}
