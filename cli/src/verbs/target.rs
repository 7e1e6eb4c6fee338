//! Which objects a command is about: `TYPE[,TYPE] [NAME...]`, `TYPE/NAME...`, selectors, or manifests.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::kinds::Kind;
use super::manifest::Files;
use super::session::{Session, escape};

#[derive(Clone, Debug, Default, clap::Args)]
pub struct Selectors {
    /// Label selector, such as app=web,tier!=db
    #[arg(long, short = 'l')]
    pub selector: Option<String>,
    /// Field selector, such as status.phase=Running
    #[arg(long)]
    pub field_selector: Option<String>,
    /// In all namespaces
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
}

impl Selectors {
    /// As the tail of a query.
    pub fn query(&self) -> String {
        let mut query = String::new();
        for (name, value) in [
            ("labelSelector", &self.selector),
            ("fieldSelector", &self.field_selector),
        ] {
            if let Some(value) = value {
                query += &format!("&{name}={}", escape(value));
            }
        }
        query
    }

    pub fn given(&self) -> bool {
        self.selector.is_some() || self.field_selector.is_some()
    }
}

/// Objects of one resource: some by name, or those that selectors choose.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: Kind,
    pub names: Vec<String>,
}

/// A single object.
#[derive(Clone, Debug)]
pub struct Object {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub name: String,
}

impl Object {
    pub fn path(&self) -> String {
        format!(
            "{}/{}",
            self.kind.path(self.namespace.as_deref()),
            self.name
        )
    }

    pub fn title(&self) -> String {
        self.kind.object(&self.name)
    }
}

pub async fn parse(session: &Session, args: &[String]) -> Result<Vec<Target>> {
    let Some(first) = args.first() else {
        bail!(
            "You must specify the type of resource, such as `pods`. See `skiff api-resources` for all of them."
        );
    };
    if args.iter().any(|arg| arg.contains('/')) {
        let mut targets: Vec<Target> = Vec::new();
        for arg in args {
            let Some((kind, name)) = arg
                .split_once('/')
                .filter(|(k, n)| !k.is_empty() && !n.is_empty())
            else {
                bail!(
                    "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'skiff get resource/<resource_name>' instead of 'skiff get resource resource/<resource_name>'"
                );
            };
            let kind = session.kind(kind).await?;
            match targets.last_mut().filter(|t| t.kind == kind) {
                Some(target) => target.names.push(name.to_owned()),
                None => targets.push(Target {
                    kind,
                    names: vec![name.to_owned()],
                }),
            }
        }
        return Ok(targets);
    }
    let names = &args[1..];
    let mut targets = Vec::new();
    for name in first.split(',').filter(|name| !name.is_empty()) {
        let members = session.kinds().await?.category(name);
        let kinds = match members.is_empty() {
            true => vec![session.kind(name).await?],
            false => members
                .into_iter()
                .filter(|kind| kind.can("list"))
                .collect(),
        };
        targets.extend(kinds.into_iter().map(|kind| Target {
            kind,
            names: names.to_vec(),
        }));
    }
    if targets.len() > 1 && !names.is_empty() {
        let two: Vec<&str> = targets.iter().map(|t| t.kind.plural.as_str()).collect();
        if session.kinds().await?.category(first).len() > 1 {
            bail!(
                "name cannot be provided when a category ({first}: {}) is given",
                two.join(", ")
            );
        }
    }
    Ok(targets)
}

/// The objects themselves, for commands that act on each.
pub async fn objects(
    session: &Session,
    args: &[String],
    selectors: &Selectors,
    all: bool,
    files: &Files,
) -> Result<Vec<Object>> {
    let mut found = Vec::new();
    if !files.is_empty() {
        for object in files.objects(session).await? {
            found.push(Object {
                kind: object.kind,
                namespace: object.namespace,
                name: object.name,
            });
        }
        return Ok(found);
    }
    for target in parse(session, args).await? {
        let namespace = target.kind.namespaced.then(|| session.namespace.clone());
        let object = |name: String, namespace| Object {
            kind: target.kind.clone(),
            namespace,
            name,
        };
        if !target.names.is_empty() {
            found.extend(
                target
                    .names
                    .iter()
                    .map(|name| object(name.clone(), namespace.clone())),
            );
            continue;
        }
        if !all && !selectors.given() {
            bail!("resource(s) were provided, but no name was specified");
        }
        let within = namespace.as_deref().filter(|_| !selectors.all_namespaces);
        let list = session
            .list(
                &target.kind.path(within),
                &selectors.query(),
                "application/json",
            )
            .await?;
        for item in list["items"].as_array().into_iter().flatten() {
            let text = |field: &str| item["metadata"][field].as_str().map(str::to_owned);
            found.push(object(text("name").unwrap_or_default(), text("namespace")));
        }
    }
    Ok(found)
}

/// Exactly one object, as `logs` and `exec` take it: `NAME` (a pod) or `TYPE/NAME`.
pub async fn one(session: &Session, arg: &str, default_kind: &str) -> Result<Object> {
    let (kind, name) = arg.split_once('/').unwrap_or((default_kind, arg));
    let kind = session.kind(kind).await?;
    let namespace = kind.namespaced.then(|| session.namespace.clone());
    Ok(Object {
        kind,
        namespace,
        name: name.to_owned(),
    })
}

/// The label selector of a workload or Service, as a query value.
pub fn selector_of(object: &Value) -> Result<String> {
    let selector = &object["spec"]["selector"];
    let labels = match selector["matchLabels"].as_object() {
        Some(labels) => Some(labels),
        None if selector["matchExpressions"].is_array() => None,
        None => selector.as_object(),
    };
    let mut parts: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            "In" => format!("{key} in ({})", values.join(",")),
            _ => format!("{key} notin ({})", values.join(",")),
        });
    }
    if parts.is_empty() {
        bail!("{} has no selector", super::output::title(object));
    }
    Ok(parts.join(","))
}

/// The pods behind an object: itself, or those that its selector chooses, the most usable first.
pub async fn pods(session: &Session, object: &Object) -> Result<Vec<Value>> {
    if object.kind.plural == "pods" && object.kind.group.is_empty() {
        return Ok(vec![session.get(&object.path()).await?]);
    }
    let owner = session.get(&object.path()).await?;
    let selector = selector_of(&owner)?;
    let pod = session.kind("pods").await?;
    let query = format!("&labelSelector={}", escape(&selector));
    let mut list = session
        .list(
            &pod.path(object.namespace.as_deref()),
            &query,
            "application/json",
        )
        .await?;
    let mut pods = match list["items"].take() {
        Value::Array(pods) => pods,
        _ => vec![],
    };
    let rank = |pod: &Value| {
        let ready = condition(pod, "Ready") == Some("True");
        let running =
            pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        (
            !running,
            !ready,
            pod["metadata"]["creationTimestamp"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    pods.sort_by_key(rank);
    if pods.is_empty() {
        return Err(anyhow!("no pods found for {}", object.title()));
    }
    Ok(pods)
}

/// The status of a condition of an object.
pub fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    let wanted = |c: &&Value| {
        c["type"]
            .as_str()
            .is_some_and(|t| t.eq_ignore_ascii_case(name))
    };
    conditions.iter().find(wanted)?["status"].as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors() {
        let select = |selector: Value| selector_of(&json!({"spec": {"selector": selector}})).ok();
        assert_eq!(
            select(json!({"matchLabels": {"a": "1", "b": "2"}})).as_deref(),
            Some("a=1,b=2")
        );
        assert_eq!(select(json!({"app": "web"})).as_deref(), Some("app=web"));
        let expressions = json!({"matchExpressions": [
            {"key": "a", "operator": "In", "values": ["x", "y"]}, {"key": "b", "operator": "Exists"},
            {"key": "c", "operator": "DoesNotExist"}, {"key": "d", "operator": "NotIn", "values": ["z"]},
        ]});
        assert_eq!(
            select(expressions).as_deref(),
            Some("a in (x,y),b,!c,d notin (z)")
        );
        assert_eq!(select(json!(null)), None);
    }
}
