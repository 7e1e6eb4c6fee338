//! What is below an object: status, scale, binding and the like, and the connections to its node.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::object;
use apimachinery::resource::{GroupKind, GroupResource, GroupVersionKind, Resource};
use apimachinery::status::{Result, Status};
use http::{Request, StatusCode};
use serde_json::{Value, json};

use super::objects::WriteOptions;
use super::patch::Patch;
use super::respond::{document, warn};
use super::{Exchange, apply, connect, eviction, objects};
use crate::body::{self, Received, Reply};
use crate::crd::nested;
use crate::negotiate::{Accept, content_type, media};
use crate::registry::decode;
use crate::registry::table::Served;
use crate::registry::{Call, Target};

pub async fn handle(
    exchange: Exchange,
    served: Arc<Served>,
    request: Request<Received>,
) -> Result<Reply> {
    let info = &exchange.info;
    let Some(subresource) = served.resource.subresource(&info.subresource) else {
        return Err(Status::unknown_path());
    };
    if matches!(
        info.subresource.as_str(),
        "exec" | "attach" | "portforward" | "log" | "proxy"
    ) {
        return connect::handle(exchange, served, request).await;
    }
    if info.parts.len() != 3 {
        return Err(Status::unknown_path());
    }
    if !subresource.verbs.iter().any(|verb| *verb == info.verb) {
        return Err(Status::method_not_allowed());
    }
    // Whoever takes no form of the answer is told so before anything happens.
    let accept = Accept::read(&exchange.headers, &exchange.query)?;
    let created = |answer: Value| Ok(document(StatusCode::CREATED, &answer, accept));
    match info.subresource.as_str() {
        // The object itself, of which a write changes only a part.
        "status" | "finalize" | "approval" | "resize" | "ephemeralcontainers" => {
            objects::handle(exchange, served, request).await
        }
        "scale" => scale(&exchange, &served, request.into_body()).await,
        "binding" => {
            let mut binding = sent(&exchange, request.into_body()).await?;
            meta_name(&exchange, &mut binding)?;
            bind(&exchange, binding).await?;
            created(success())
        }
        "eviction" => {
            let mut eviction = sent(&exchange, request.into_body()).await?;
            meta_name(&exchange, &mut eviction)?;
            eviction::evict(&exchange, &served, eviction).await?;
            created(success())
        }
        "token" => {
            let Some(issuer) = &exchange.server.issuer else {
                return Err(Status::unknown_path());
            };
            let mut token_request = sent(&exchange, request.into_body()).await?;
            let registry = &exchange.server.registry;
            // A kubelet gets tokens for its own pods only.
            let target = Target::new(&served, &info.namespace, &info.name).subresource("token");
            let mut call = Call::by(&exchange.user);
            registry
                .admit_below(target, &mut call, &mut token_request)
                .await?;
            created(
                issuer
                    .request(registry, &info.namespace, &info.name, token_request)
                    .await?,
            )
        }
        _ => Err(Status::unknown_path()),
    }
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// A body that is not an object of the resource itself.
async fn sent(exchange: &Exchange, body: Received) -> Result<Value> {
    let media = media(&exchange.headers)?;
    let bytes = body::read(body).await?;
    let parsed = decode::parse(&bytes, media).map_err(Status::bad_request)?;
    match parsed.value.is_object() {
        true => Ok(parsed.value),
        false => Err(Status::bad_request(
            "the object provided is unrecognized: not an object",
        )),
    }
}

/// The name and namespace of the URL, which the body may repeat but not contradict.
fn meta_name(exchange: &Exchange, value: &mut Value) -> Result<()> {
    let (name, namespace) = (&exchange.info.name, &exchange.info.namespace);
    let found = object::name(value);
    if !found.is_empty() && found != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({found}) does not match the name on the URL ({name})"
        )));
    }
    let found = object::namespace(value);
    if !found.is_empty() && found != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object::set_name(value, name);
    object::set_namespace(value, namespace);
    Ok(())
}

/// Binds a pod to the node that a Binding names.
pub(super) async fn bind(exchange: &Exchange, mut binding: Value) -> Result<()> {
    let options = WriteOptions::read(exchange, "CreateOptions")?;
    let mut call = options.call(exchange);
    let served = exchange.server.registry.resource("", "pods")?;
    let name = object::name(&binding).to_owned();
    let target = Target::new(&served, &exchange.info.namespace, &name).subresource("binding");
    let registry = &exchange.server.registry;
    registry
        .admit_below(target, &mut call, &mut binding)
        .await?;
    let to = &binding["target"];
    let node = to["name"].as_str().unwrap_or_default().to_owned();
    let mut errors = ErrorList::new();
    if !matches!(to["kind"].as_str(), None | Some("" | "Node")) {
        let path = Path::new("target").child("kind");
        errors.0.push(Error::not_supported(
            &path,
            to["kind"].clone(),
            &["Node", "<empty>"],
        ));
    }
    if node.is_empty() {
        errors
            .0
            .push(Error::required(&Path::new("target").child("name"), ""));
    }
    if !errors.is_empty() {
        return Err(Status::invalid(
            &GroupKind::new("", "Binding"),
            &name,
            errors,
        ));
    }
    let change = |pod: &Value| assign(pod, &binding, &node);
    registry.update(target, &mut call, change).await.map(drop)
}

/// A pod, assigned to a node.
fn assign(pod: &Value, binding: &Value, node: &str) -> Result<Value> {
    let name = object::name(pod);
    let refuse = |why: String| {
        Err(Status::conflict(
            &GroupResource::new("", "pods/binding"),
            name,
            why,
        ))
    };
    let (wanted, found) = (object::uid(binding), object::uid(pod));
    if !wanted.is_empty() && wanted != found {
        return refuse(format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
        ));
    }
    if object::deletion_timestamp(pod).is_some() {
        return refuse(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    match pod["spec"]["nodeName"].as_str() {
        None | Some("") => {}
        Some(other) => return refuse(format!("pod {name} is already assigned to node {other:?}")),
    }
    if pod["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty())
    {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    for (key, value) in object::annotations(binding).into_iter().flatten() {
        if let Some(value) = value.as_str() {
            object::set_annotation(&mut pod, key, value);
        }
    }
    for (key, value) in object::labels(binding).into_iter().flatten() {
        pod["metadata"]["labels"][key] = value.clone();
    }
    let now = apimachinery::time::format(jiff::Timestamp::now());
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    match pod["status"]["conditions"].as_array_mut() {
        Some(conditions) => {
            conditions.retain(|condition| condition["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        None => pod["status"]["conditions"] = json!([scheduled]),
    }
    Ok(pod)
}

/// GET, PUT and PATCH of the replica count alone.
async fn scale(exchange: &Exchange, served: &Arc<Served>, body: Received) -> Result<Reply> {
    let registry = &exchange.server.registry;
    let accept = Accept::read(&exchange.headers, &exchange.query)?;
    let target = exchange.target(served);
    if exchange.info.verb == "get" {
        let object = registry.read(target, None).await?;
        let scale = scale_of(&served.resource, &registry.document(target, &object)?);
        return Ok(document(StatusCode::OK, &scale, accept));
    }
    let options = WriteOptions::read(exchange, "UpdateOptions")?;
    let mut call = options.call(exchange);
    let written = if content_type(&exchange.headers) == apply::MEDIA_TYPE {
        let request = apply::Request::read(exchange, body).await?;
        request.check(options.validation, &mut call.warnings)?;
        let wanted = scaled(target, &request.document)?;
        registry
            .update_applied(target, &mut call, &wanted, request.force)
            .await?
    } else if exchange.info.verb == "patch" {
        let bytes = body::read(body).await?;
        let patch = Patch::read(content_type(&exchange.headers), &bytes)?;
        let resource = &served.resource;
        let change = |old: &Value| rescale(resource, old, &patch.merge(&scale_of(resource, old))?);
        registry.update(target, &mut call, change).await?
    } else {
        let bytes = body::read(body).await?;
        let parsed =
            decode::parse(&bytes, media(&exchange.headers)?).map_err(Status::bad_request)?;
        if !parsed.value.is_object()
            || !matches!(parsed.value["kind"].as_str(), None | Some("Scale"))
        {
            return Err(Status::bad_request(
                "the object provided is unrecognized (must be of type Scale)",
            ));
        }
        let mut scale = parsed.value;
        meta_name(exchange, &mut scale)?;
        registry
            .update(target, &mut call, |old| {
                rescale(&served.resource, old, &scale)
            })
            .await?
    };
    let scale = scale_of(
        &served.resource,
        &registry.document(target, &written.object)?,
    );
    let mut response = document(StatusCode::OK, &scale, accept);
    warn(&mut response, &call.warnings);
    Ok(response)
}

/// What an applied Scale wants of the object that it scales.
fn scaled(target: Target<'_>, scale: &Value) -> Result<Value> {
    let found = object::group_version_kind(scale);
    if found != GroupVersionKind::new("autoscaling", "v1", "Scale") {
        return Err(Status::bad_request(format!("invalid object type: {found}")));
    }
    let resource = &target.served.resource;
    let mut wanted = json!({
        "apiVersion": resource.api_version(), "kind": resource.kind,
        "metadata": scale.get("metadata").cloned().unwrap_or_default(),
    });
    object::set_name(&mut wanted, target.name);
    if let Some(replicas) = scale["spec"].get("replicas") {
        match &resource.scale {
            Some(paths) => set_nested(&mut wanted, &paths.spec_replicas, replicas.clone()),
            None => wanted["spec"] = json!({ "replicas": replicas }),
        }
    }
    Ok(wanted)
}

fn scale_of(resource: &Resource, object: &Value) -> Value {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let (replicas, status) = match &resource.scale {
        Some(paths) => {
            let count = |path: &[String]| nested(object, path).and_then(Value::as_i64);
            let mut status = json!({"replicas": count(&paths.status_replicas).unwrap_or(0)});
            let selector = paths
                .selector
                .as_deref()
                .and_then(|path| nested(object, path));
            if let Some(selector) = selector.and_then(Value::as_str).filter(|s| !s.is_empty()) {
                status["selector"] = selector.into();
            }
            (count(&paths.spec_replicas).unwrap_or(0), status)
        }
        None => (spec["replicas"].as_i64().unwrap_or(0), status_of(object)),
    };
    let mut kept = json!({});
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if !metadata[field].is_null() {
            kept[field] = metadata[field].clone();
        }
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept,
        "spec": {"replicas": replicas}, "status": status,
    })
}

/// The status of a built-in kind's scale.
fn status_of(object: &Value) -> Value {
    let spec = &object["spec"];
    let selector = match spec["selector"]
        .get("matchLabels")
        .or(spec["selector"].get("matchExpressions"))
    {
        Some(_) => apimachinery::selector::LabelSelector::from_value(&spec["selector"]),
        None => apimachinery::selector::LabelSelector::from_map(&spec["selector"]),
    };
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    if let Ok(selector) = selector {
        status["selector"] = selector.to_string().into();
    }
    status
}

/// The object with the replica count of a Scale, under the Scale's preconditions.
fn rescale(resource: &Resource, old: &Value, scale: &Value) -> Result<Value> {
    let replicas = &scale["spec"]["replicas"];
    let path = Path::new("spec").child("replicas");
    let fail = |error| {
        let kind = GroupKind::new("autoscaling", "Scale");
        Err(Status::invalid(
            &kind,
            object::name(old),
            ErrorList(vec![error]),
        ))
    };
    let replicas = match replicas {
        Value::Null => 0,
        value => match value.as_i64().filter(|count| i32::try_from(*count).is_ok()) {
            Some(count) if count < 0 => {
                return fail(Error::invalid(
                    &path,
                    count,
                    "must be greater than or equal to 0",
                ));
            }
            Some(count) => count,
            None => {
                return fail(Error::type_invalid(
                    &path,
                    value.clone(),
                    "must be an integer",
                ));
            }
        },
    };
    let mut object = old.clone();
    match &resource.scale {
        Some(paths) => set_nested(&mut object, &paths.spec_replicas, replicas.into()),
        None => object["spec"]["replicas"] = replicas.into(),
    }
    let metadata = &scale["metadata"];
    // Without a version in it, a Scale is for whatever is there.
    if metadata["resourceVersion"]
        .as_str()
        .is_some_and(|v| !v.is_empty())
    {
        let version = metadata["resourceVersion"].clone();
        object::set_metadata(&mut object, "resourceVersion", version);
    }
    if metadata["uid"].as_str().is_some_and(|uid| !uid.is_empty()) {
        object::set_metadata(&mut object, "uid", metadata["uid"].clone());
    }
    Ok(object)
}

/// Sets what is at a path, making objects on the way.
fn set_nested(object: &mut Value, path: &[String], value: Value) {
    let [parents @ .., last] = path else { return };
    let mut at = object;
    for name in parents {
        if !at[name].is_object() {
            at[name] = json!({});
        }
        at = &mut at[name];
    }
    at[last] = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_assigned_once() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
        let bound = assign(&pod, &json!({"metadata": {"annotations": {"a": "b"}}}), "n").unwrap();
        assert_eq!(bound["spec"]["nodeName"], "n");
        assert_eq!(bound["status"]["conditions"][0]["status"], "True");
        assert_eq!(bound["metadata"]["annotations"]["a"], "b");
        let again = assign(&bound, &json!({}), "m").unwrap_err();
        assert!(
            again.is_conflict() && again.message.contains("already assigned to node \"n\""),
            "{again}"
        );
        assert!(assign(&pod, &json!({"metadata": {"uid": "other"}}), "n").is_err());
    }

    #[test]
    fn scales() {
        let object = json!({"metadata": {"name": "d", "resourceVersion": "3"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        let resource = &*apimachinery::resource::builtin()[0];
        let mut scale = scale_of(resource, &object);
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "a=b"}));
        scale["spec"]["replicas"] = json!(5);
        assert_eq!(
            rescale(resource, &object, &scale).unwrap()["spec"]["replicas"],
            5
        );
        for bad in [json!(-1), json!("x"), json!(1_u64 << 40)] {
            scale["spec"]["replicas"] = bad;
            assert_eq!(rescale(resource, &object, &scale).unwrap_err().code, 422);
        }
    }
}
