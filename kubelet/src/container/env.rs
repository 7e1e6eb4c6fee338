//! A container's environment: services, `envFrom`, `env`, in this order of precedence,
//! with `$(VAR)` references expanded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

use super::fields::{self, FieldFacts};
use crate::model;
use crate::objects::{Kind, Payload};

/// ConfigMaps and Secrets that the container refers to; `None` for one that does not exist.
pub type Sources = HashMap<(Kind, String), Option<Arc<Payload>>>;

/// Every ConfigMap and Secret that the environment needs.
pub fn references(container: &Container) -> Vec<(Kind, String)> {
    let mut all = Vec::new();
    for from in container.env_from.iter().flatten() {
        all.extend(
            from.config_map_ref
                .as_ref()
                .map(|r| (Kind::ConfigMap, r.name.clone())),
        );
        all.extend(
            from.secret_ref
                .as_ref()
                .map(|r| (Kind::Secret, r.name.clone())),
        );
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|e| e.value_from.as_ref())
    {
        all.extend(
            source
                .config_map_key_ref
                .as_ref()
                .map(|r| (Kind::ConfigMap, r.name.clone())),
        );
        all.extend(
            source
                .secret_key_ref
                .as_ref()
                .map(|r| (Kind::Secret, r.name.clone())),
        );
    }
    all
}

/// The variables in the order in which they were first named.
pub fn build(
    pod: &Pod,
    container: &Container,
    services: &[Arc<Service>],
    sources: &Sources,
    facts: &FieldFacts,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Ordered::default();
    for (name, value) in services.iter().flat_map(|s| service_vars(s)) {
        env.set(name, value);
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (key, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(r), _) => ((Kind::ConfigMap, r.name.clone()), r.optional),
            (_, Some(r)) => ((Kind::Secret, r.name.clone()), r.optional),
            _ => continue,
        };
        match sources.get(&key).and_then(Option::as_ref) {
            Some(payload) => {
                for (name, value) in payload.iter() {
                    env.set(
                        format!("{prefix}{name}"),
                        String::from_utf8_lossy(value).into_owned(),
                    );
                }
            }
            None if optional == Some(true) => {}
            None => return Err(missing(&key)),
        }
    }
    for var in container.env.iter().flatten() {
        let value = match &var.value_from {
            None => expand(var.value.as_deref().unwrap_or_default(), |n| env.get(n)),
            Some(source) => match value_from(pod, container, source, sources, facts)? {
                Some(value) => value,
                None => continue,
            },
        };
        env.set(var.name.clone(), value);
    }
    Ok(env.vars)
}

fn value_from(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
    facts: &FieldFacts,
) -> Result<Option<String>, String> {
    if let Some(f) = &source.field_ref {
        return fields::field(pod, &f.field_path, facts).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return fields::resource(pod, Some(container), r, facts).map(Some);
    }
    let (key, name, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(r), _) => ((Kind::ConfigMap, r.name.clone()), &r.key, r.optional),
        (_, Some(r)) => ((Kind::Secret, r.name.clone()), &r.key, r.optional),
        _ => {
            return Err(
                "no source for the value of an environment variable that this node knows".into(),
            );
        }
    };
    match sources.get(&key).and_then(Option::as_ref) {
        Some(payload) => match payload.get(name) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional == Some(true) => Ok(None),
            None => Err(format!(
                "couldn't find key {name} in {} {}/{}",
                key.0,
                model::namespace(pod),
                key.1
            )),
        },
        None if optional == Some(true) => Ok(None),
        None => Err(missing(&key)),
    }
}

fn missing((kind, name): &(Kind, String)) -> String {
    format!("{} \"{name}\" not found", kind.to_string().to_lowercase())
}

#[derive(Default)]
struct Ordered {
    vars: Vec<(String, String)>,
    at: BTreeMap<String, usize>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        match self.at.get(&name) {
            Some(&i) => self.vars[i].1 = value,
            None => {
                self.at.insert(name.clone(), self.vars.len());
                self.vars.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        Some(self.vars[*self.at.get(name)?].1.clone())
    }
}

/// Replaces `$(NAME)`; `$$` stands for a dollar, and a name that is not known stays as it is.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = tail.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
            rest = tail;
        }
    }
    out.push_str(rest);
    out
}

/// The variables that tell of a service: `X_SERVICE_HOST`, `X_SERVICE_PORT`, and the older link style.
fn service_vars(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !matches!(*ip, "" | "None"))
    else {
        return Vec::new();
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let upper = |s: &str| s.to_uppercase().replace('-', "_");
    let prefix = upper(service.metadata.name.as_deref().unwrap_or_default());
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_string()
    };
    let mut vars = vec![(format!("{prefix}_SERVICE_HOST"), ip.to_string())];
    if let Some(first) = ports.first() {
        vars.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    }
    for p in ports {
        if let Some(name) = p.name.as_deref().filter(|n| !n.is_empty()) {
            vars.push((
                format!("{prefix}_SERVICE_PORT_{}", upper(name)),
                p.port.to_string(),
            ));
        }
    }
    for (i, p) in ports.iter().enumerate() {
        let protocol = p.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), p.port);
        if i == 0 {
            vars.push((format!("{prefix}_PORT"), url.clone()));
        }
        let port = format!("{prefix}_PORT_{}_{protocol}", p.port);
        vars.push((port.clone(), url));
        vars.push((format!("{port}_PROTO"), protocol.to_lowercase()));
        vars.push((format!("{port}_PORT"), p.port.to_string()));
        vars.push((format!("{port}_ADDR"), ip.to_string()));
    }
    vars
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let known = |n: &str| (n == "A").then(|| "1".to_string());
        let table = [
            ("$(A)-$(B)", "1-$(B)"),
            ("$$(A)", "$(A)"),
            ("a$", "a$"),
            ("$A $(A", "$A $(A"),
            ("$$$(A)", "$1"),
        ];
        for (text, want) in table {
            assert_eq!(expand(text, known), want, "{text}");
        }
    }

    #[test]
    fn sources_override_in_order() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "P_k", "value": "own"},
                {"name": "REF", "value": "$(P_k) $(WEB_SERVICE_HOST)"},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "SKIPPED", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "none", "optional": true}}}
            ]}]}}))
        .unwrap();
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80, "name": "http"}]}})).unwrap();
        let payload = Payload::from([
            ("k".to_string(), b"map".to_vec()),
            ("j".to_string(), b"2".to_vec()),
        ]);
        let sources = Sources::from([((Kind::ConfigMap, "m".into()), Some(Arc::new(payload)))]);
        let c = &model::spec(&pod).containers[0];
        let env: HashMap<_, _> = build(
            &pod,
            c,
            &[Arc::new(service)],
            &sources,
            &FieldFacts::default(),
        )
        .unwrap()
        .into_iter()
        .collect();
        assert_eq!(env["P_k"], "own");
        assert_eq!(env["P_j"], "2");
        assert_eq!(env["REF"], "own 10.96.0.7");
        assert_eq!(env["NAME"], "p");
        assert_eq!(env["WEB_PORT_80_TCP_ADDR"], "10.96.0.7");
        assert_eq!(env["WEB_SERVICE_PORT_HTTP"], "80");
        assert!(!env.contains_key("SKIPPED"));
        let error = build(&pod, c, &[], &Sources::new(), &FieldFacts::default()).unwrap_err();
        assert_eq!(error, "configmap \"m\" not found");
    }
}
