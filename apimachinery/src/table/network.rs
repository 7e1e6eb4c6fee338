//! Rows of Services and what traffic passes through.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Cells, Printer, abridged, age, int, joined, labels, list, name, selector, text, text_or,
};
use crate::object;
use crate::resource::GroupResource;

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    let (columns, cells): (&[&str], Cells) = match (group, kind) {
        ("", "Service") => (
            &[
                "Name",
                "Type",
                "Cluster-IP",
                "External-IP",
                "Port(s)",
                "Age",
                "Selector+",
            ],
            service,
        ),
        ("", "Endpoints") => (&["Name", "Endpoints", "Age"], endpoints),
        ("discovery.k8s.io", "EndpointSlice") => (
            &["Name", "AddressType", "Ports", "Endpoints", "Age"],
            endpoint_slice,
        ),
        ("networking.k8s.io", "Ingress") => (
            &["Name", "Class", "Hosts", "Address", "Ports", "Age"],
            ingress,
        ),
        ("networking.k8s.io", "IngressClass") => {
            (&["Name", "Controller", "Parameters", "Age"], ingress_class)
        }
        ("networking.k8s.io", "NetworkPolicy") => (&["Name", "Pod-Selector", "Age"], |o, now| {
            vec![name(o), selector_of_pods(o).into(), age(o, now)]
        }),
        ("networking.k8s.io", "ServiceCIDR") => (&["Name", "CIDRs", "Age"], |o, now| {
            vec![name(o), joined(o, "/spec/cidrs", ",").into(), age(o, now)]
        }),
        // Kubernetes gives this one an age without a column for it; here both are there.
        ("networking.k8s.io", "IPAddress") => (&["Name", "ParentRef", "Age"], ip_address),
        _ => return None,
    };
    Some(Printer { columns, cells })
}

/// An absent pod selector is an empty one: it selects every pod.
fn selector_of_pods(o: &Value) -> String {
    if o["spec"]["podSelector"].is_null() {
        "<none>".into()
    } else {
        selector(o, "/spec/podSelector")
    }
}

/// The addresses of a load balancer.
fn load_balancer(o: &Value) -> Vec<&str> {
    let ingress = list(o, "/status/loadBalancer/ingress").iter();
    let mut found: Vec<&str> = ingress
        .map(|i| text_or(i, "/ip", text(i, "/hostname")))
        .filter(|a| !a.is_empty())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn external_ips(o: &Value) -> String {
    let given = joined(o, "/spec/externalIPs", ",");
    match text(o, "/spec/type") {
        "ClusterIP" | "NodePort" if given.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => given,
        "LoadBalancer" => {
            let mut all = load_balancer(o);
            all.extend(
                list(o, "/spec/externalIPs")
                    .iter()
                    .filter_map(Value::as_str),
            );
            if all.is_empty() {
                "<pending>".into()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => text(o, "/spec/externalName").into(),
        _ => "<unknown>".into(),
    }
}

fn service(o: &Value, now: Timestamp) -> Vec<Value> {
    let port = |p: &Value| match (int(p, "/port"), int(p, "/nodePort"), text(p, "/protocol")) {
        (port, 0, protocol) => format!("{port}/{protocol}"),
        (port, node_port, protocol) => format!("{port}:{node_port}/{protocol}"),
    };
    let ports: Vec<String> = list(o, "/spec/ports").iter().map(port).collect();
    vec![
        name(o),
        text(o, "/spec/type").into(),
        text_or(o, "/spec/clusterIPs/0", "<none>").into(),
        external_ips(o).into(),
        if ports.is_empty() {
            "<none>".into()
        } else {
            ports.join(",").into()
        },
        age(o, now),
        labels(o, "/spec/selector").into(),
    ]
}

/// `host:port`, with brackets around an IPv6 address.
fn host_port(host: &str, port: i64) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn endpoints(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(o, "/subsets") {
        let addresses = || list(subset, "/addresses").iter().map(|a| text(a, "/ip"));
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            all.extend(addresses().map(|a| host_port(a, int(port, "/port"))));
        }
    }
    let shown = if list(o, "/subsets").is_empty() {
        "<none>".into()
    } else {
        abridged(&all, 3, ",")
    };
    vec![name(o), shown.into(), age(o, now)]
}

fn endpoint_slice(o: &Value, now: Timestamp) -> Vec<Value> {
    let unset = |text: String| {
        if text.is_empty() {
            "<unset>".to_owned()
        } else {
            text
        }
    };
    let port = |p: &Value| match (&p["port"], p["name"].as_str()) {
        (Value::Number(n), _) => n.to_string(),
        (_, Some(name)) => name.to_owned(),
        _ => "*".to_owned(),
    };
    let ports: Vec<String> = list(o, "/ports").iter().map(port).collect();
    let addresses: Vec<String> = list(o, "/endpoints")
        .iter()
        .flat_map(|e| list(e, "/addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    vec![
        name(o),
        text(o, "/addressType").into(),
        unset(abridged(&ports, 3, ",")).into(),
        unset(abridged(&addresses, 3, ",")).into(),
        age(o, now),
    ]
}

fn ingress(o: &Value, now: Timestamp) -> Vec<Value> {
    let rules = list(o, "/spec/rules");
    let hosts: Vec<String> = rules
        .iter()
        .map(|r| text(r, "/host").to_owned())
        .filter(|h| !h.is_empty())
        .collect();
    let hosts = if hosts.is_empty() {
        "*".to_owned()
    } else {
        abridged(&hosts, 3, ",")
    };
    vec![
        name(o),
        text_or(o, "/spec/ingressClassName", "<none>").into(),
        hosts.into(),
        load_balancer(o).join(",").into(),
        if list(o, "/spec/tls").is_empty() {
            "80".into()
        } else {
            "80, 443".into()
        },
        age(o, now),
    ]
}

fn ingress_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut class = object::name(o).to_owned();
    if object::annotation(o, "ingressclass.kubernetes.io/is-default-class") == Some("true") {
        class.push_str(" (default)");
    }
    let parameters = match &o["spec"]["parameters"] {
        Value::Null => "<none>".to_owned(),
        p => {
            let group = p["apiGroup"]
                .as_str()
                .map(|g| format!(".{g}"))
                .unwrap_or_default();
            format!("{}{group}/{}", text(p, "/kind"), text(p, "/name"))
        }
    };
    vec![
        class.into(),
        text(o, "/spec/controller").into(),
        parameters.into(),
        age(o, now),
    ]
}

fn ip_address(o: &Value, now: Timestamp) -> Vec<Value> {
    let parent = match &o["spec"]["parentRef"] {
        Value::Null => "<none>".to_owned(),
        p => {
            let (group, resource) = (
                text(p, "/group").to_owned(),
                text(p, "/resource").to_owned(),
            );
            let mut path = vec![
                GroupResource::new(group, resource)
                    .to_string()
                    .to_lowercase(),
            ];
            path.extend(Some(text(p, "/namespace").to_owned()).filter(|n| !n.is_empty()));
            path.push(text(p, "/name").to_owned());
            path.join("/")
        }
    };
    vec![name(o), parent.into(), age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn services() {
        let cells = |spec: Value| {
            service(
                &json!({"metadata": {"name": "s"}, "spec": spec}),
                Timestamp::UNIX_EPOCH,
            )
        };
        let port = json!({"port": 80, "nodePort": 30080, "protocol": "TCP"});
        let got = cells(
            json!({"type": "NodePort", "clusterIPs": ["10.96.0.1"], "ports": [port], "selector": {"a": "b"}}),
        );
        assert_eq!(
            got,
            [
                "s",
                "NodePort",
                "10.96.0.1",
                "<none>",
                "80:30080/TCP",
                "<unknown>",
                "a=b"
            ]
        );
        let got = cells(json!({"type": "LoadBalancer"}));
        assert_eq!(got[3], "<pending>");
        assert_eq!(
            cells(json!({"type": "ExternalName", "externalName": "x.y"}))[2..5],
            ["<none>", "x.y", "<none>"]
        );
    }

    #[test]
    fn endpoints_are_abridged() {
        let addresses: Vec<Value> = (1..=4)
            .map(|i| json!({"ip": format!("10.0.0.{i}")}))
            .collect();
        let o = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(
            endpoints(&o, Timestamp::UNIX_EPOCH)[1],
            "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more..."
        );
        let o = json!({"addressType": "IPv4", "ports": [{"name": "x", "port": 1}, {"name": "y"}, {}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
        assert_eq!(
            endpoint_slice(&o, Timestamp::UNIX_EPOCH)[1..4],
            ["IPv4", "1,y,*", "10.0.0.1,10.0.0.2"]
        );
        assert_eq!(
            endpoint_slice(&json!({}), Timestamp::UNIX_EPOCH)[2],
            "<unset>"
        );
        assert_eq!(host_port("fd00::1", 80), "[fd00::1]:80");
    }
}
