//! Verbs that change one thing about objects: `scale`, `label`, `annotate`, `patch`, `cordon`; and `wait`.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures::StreamExt;
use http::Method;
use serde_json::{Map, Value, json};

use super::jsonpath::{Template, plain};
use super::manifest::{self, Files};
use super::session::{Session, escape, is_not_found, json_payload};
use super::target::{self, Object, Selectors};
use super::write::{MERGE, STRATEGIC, Writing, until_gone};

/// Which objects, for verbs that act on each.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Choice {
    #[command(flatten)]
    pub files: Files,
    #[command(flatten)]
    pub selectors: Selectors,
    /// All objects of the type in the namespace
    #[arg(long)]
    pub all: bool,
}

impl Choice {
    pub async fn objects(&self, session: &Session, args: &[String]) -> Result<Vec<Object>> {
        let objects =
            target::objects(session, args, &self.selectors, self.all, &self.files).await?;
        if objects.is_empty() {
            bail!("no objects were found");
        }
        Ok(objects)
    }
}

/// Set the number of replicas
#[derive(Debug, clap::Args)]
pub struct ScaleArgs {
    /// TYPE NAME... or TYPE/NAME...
    resources: Vec<String>,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    writing: Writing,
    /// The wanted number
    #[arg(long)]
    replicas: u32,
    /// Only if it is this number now
    #[arg(long)]
    current_replicas: Option<u32>,
}

pub async fn scale(session: &Session, args: ScaleArgs) -> Result<()> {
    for object in args.choice.objects(session, &args.resources).await? {
        let path = format!("{}/scale", object.path());
        let mut scale = session.get(&path).await?;
        if let Some(expected) = args.current_replicas {
            let now = scale["spec"]["replicas"].as_u64().unwrap_or(0);
            if now != u64::from(expected) {
                bail!("Expected replicas to be {expected}, was {now}");
            }
        }
        scale["spec"]["replicas"] = args.replicas.into();
        if !args.writing.client_only() {
            let patch = json!({"spec": {"replicas": args.replicas}});
            // With the version only where the number before matters: otherwise the last one to ask wins.
            match args.current_replicas {
                Some(_) => drop(
                    session
                        .json(Method::PUT, &path, json_payload(&scale))
                        .await?,
                ),
                None => drop(args.writing.patch(session, &path, MERGE, &patch).await?),
            }
        }
        args.writing.report(&object.kind, &scale, "scaled")?;
    }
    Ok(())
}

/// Change labels
#[derive(Debug, clap::Args)]
pub struct LabelArgs {
    /// TYPE NAME... KEY=VALUE... KEY-...
    args: Vec<String>,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    writing: Writing,
    /// Change values that are there
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    overwrite: bool,
    /// Show what is there
    #[arg(long)]
    list: bool,
}

/// `field` is `labels` or `annotations`.
pub async fn label(session: &Session, args: LabelArgs, field: &str) -> Result<()> {
    let is_change = |arg: &&String| arg.contains('=') || (arg.ends_with('-') && arg.len() > 1);
    let (changes, resources): (Vec<String>, Vec<String>) =
        args.args.iter().cloned().partition(|arg| is_change(&arg));
    if changes.is_empty() && !args.list {
        bail!(
            "at least one {} update is required",
            field.trim_end_matches('s')
        );
    }
    for object in args.choice.objects(session, &resources).await? {
        let live = session.get(&object.path()).await?;
        let now = &live["metadata"][field];
        if args.list {
            println!("{}", super::get::labels(now).replace(',', "\n"));
            continue;
        }
        let patch = label_patch(now, &changes, args.overwrite).map_err(|e| anyhow!("{e:#}"))?;
        let removing = patch.values().all(Value::is_null);
        if patch.is_empty() {
            args.writing
                .report(&object.kind, &live, &format!("not {}", done(field, false)))?;
            continue;
        }
        let result = match args.writing.client_only() {
            true => live.clone(),
            false => {
                args.writing
                    .patch(
                        session,
                        &object.path(),
                        MERGE,
                        &json!({"metadata": {field: patch}}),
                    )
                    .await?
            }
        };
        args.writing
            .report(&object.kind, &result, done(field, removing))?;
    }
    Ok(())
}

fn done(field: &str, removing: bool) -> &'static str {
    match (field, removing) {
        ("labels", true) => "unlabeled",
        ("labels", false) => "labeled",
        _ => "annotated",
    }
}

fn label_patch(now: &Value, changes: &[String], overwrite: bool) -> Result<Map<String, Value>> {
    let mut patch = Map::new();
    for change in changes {
        match change.split_once('=') {
            Some((key, value)) => {
                let old = now[key].as_str();
                match old {
                    Some(old) if old == value => {}
                    Some(old) if !overwrite => {
                        bail!("'{key}' already has a value ({old}), and --overwrite is false")
                    }
                    _ => drop(patch.insert(key.to_owned(), value.into())),
                }
            }
            None => {
                let key = change.trim_end_matches('-');
                match now.get(key) {
                    Some(_) => drop(patch.insert(key.to_owned(), Value::Null)),
                    None => eprintln!("label {key:?} not found."),
                }
            }
        }
    }
    Ok(patch)
}

/// Change fields by a patch
#[derive(Debug, clap::Args)]
pub struct PatchArgs {
    /// TYPE NAME or TYPE/NAME
    resources: Vec<String>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    writing: Writing,
    /// The patch, in JSON or YAML
    #[arg(long, short = 'p', required_unless_present = "patch_file")]
    patch: Option<String>,
    /// A file with the patch
    #[arg(long)]
    patch_file: Option<std::path::PathBuf>,
    /// strategic, merge or json
    #[arg(long = "type", default_value = "strategic", value_parser = ["strategic", "merge", "json"])]
    kind: String,
    /// A part of the object with a path of its own, such as status or scale
    #[arg(long)]
    subresource: Option<String>,
}

pub async fn patch(session: &Session, args: PatchArgs) -> Result<()> {
    let text = match (&args.patch, &args.patch_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => {
            std::fs::read_to_string(file).with_context(|| file.display().to_string())?
        }
        (None, None) => bail!("must specify --patch or --patch-file"),
    };
    let patch: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("unable to parse {text:?}"))?;
    let kind = match args.kind.as_str() {
        "merge" => MERGE,
        "json" => "application/json-patch+json",
        _ => STRATEGIC,
    };
    let objects = target::objects(
        session,
        &args.resources,
        &Selectors::default(),
        false,
        &args.files,
    )
    .await?;
    for object in objects {
        let path = match &args.subresource {
            Some(name) => format!("{}/{name}", object.path()),
            None => object.path(),
        };
        let before = session.get(&path).await?;
        let after = args.writing.patch(session, &path, kind, &patch).await?;
        let same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"];
        args.writing.report(
            &object.kind,
            &after,
            if same {
                "patched (no change)"
            } else {
                "patched"
            },
        )?;
    }
    Ok(())
}

/// Whether pods may be scheduled on nodes
#[derive(Debug, clap::Args)]
pub struct CordonArgs {
    /// Names of nodes
    #[arg(required = true)]
    nodes: Vec<String>,
}

pub async fn cordon(session: &Session, args: CordonArgs, unschedulable: bool) -> Result<()> {
    let (kind, done) = (
        session.kind("nodes").await?,
        if unschedulable {
            "cordoned"
        } else {
            "uncordoned"
        },
    );
    for name in args.nodes {
        let node = Object {
            kind: kind.clone(),
            namespace: None,
            name,
        };
        let live = session.get(&node.path()).await?;
        if live["spec"]["unschedulable"].as_bool().unwrap_or(false) == unschedulable {
            println!("{} already {done}", node.title());
            continue;
        }
        let value = if unschedulable {
            json!(true)
        } else {
            Value::Null
        };
        let writing = Writing {
            dry_run: "none".into(),
            field_manager: "skiff".into(),
            ..Writing::default()
        };
        writing
            .patch(
                session,
                &node.path(),
                MERGE,
                &json!({"spec": {"unschedulable": value}}),
            )
            .await?;
        println!("{} {done}", node.title());
    }
    Ok(())
}

/// Wait until objects are in a state
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// TYPE NAME... or TYPE/NAME...
    resources: Vec<String>,
    #[command(flatten)]
    choice: Choice,
    /// condition=NAME[=STATUS], jsonpath='{...}'[=VALUE], delete or create
    #[arg(long = "for", required = true)]
    condition: String,
    /// How long to wait for each; a negative time means a week
    #[arg(long, default_value = "30s", value_parser = super::duration)]
    timeout: Duration,
}

/// What is waited for.
#[derive(Debug)]
enum Until {
    Gone,
    There,
    Condition(String, String),
    Path(Template, Option<String>),
}

impl Until {
    fn parse(text: &str) -> Result<Self> {
        if let Some(condition) = text.strip_prefix("condition=") {
            let (name, status) = condition.split_once('=').unwrap_or((condition, "true"));
            return Ok(Self::Condition(name.to_owned(), status.to_owned()));
        }
        if let Some(path) = text.strip_prefix("jsonpath=") {
            let path = path.trim_matches(['\'', '"']);
            let close = path.rfind('}').map_or(path.len(), |at| at + 1);
            let value = path[close..]
                .strip_prefix('=')
                .map(|v| v.trim_matches(['\'', '"']).to_owned());
            return Ok(Self::Path(Template::path(&path[..close])?, value));
        }
        match text.to_lowercase().as_str() {
            "delete" => Ok(Self::Gone),
            "create" => Ok(Self::There),
            _ => bail!("unrecognized condition: {text:?}"),
        }
    }

    fn is_met(&self, object: &Value) -> bool {
        match self {
            Self::Gone => false,
            Self::There => true,
            Self::Condition(name, wanted) => {
                let observed = &object["status"]["observedGeneration"];
                let fresh = observed.is_null()
                    || observed.as_i64() >= object["metadata"]["generation"].as_i64();
                let status = target::condition(object, name);
                fresh && status.is_some_and(|status| status.eq_ignore_ascii_case(wanted))
            }
            Self::Path(path, wanted) => {
                let values = path.values(object);
                match wanted {
                    None => !values.is_empty(),
                    Some(wanted) => values.iter().any(|value| plain(value) == *wanted),
                }
            }
        }
    }
}

pub async fn wait(session: &Session, args: WaitArgs) -> Result<()> {
    let until = Until::parse(&args.condition)?;
    let objects = match target::objects(
        session,
        &args.resources,
        &args.choice.selectors,
        args.choice.all,
        &args.choice.files,
    )
    .await
    {
        Ok(objects) => objects,
        Err(error) if matches!(until, Until::Gone) && is_not_found(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    if objects.is_empty() {
        bail!("no matching resources found");
    }
    for object in objects {
        let title = format!("{}/{}", object.kind.plural, object.name);
        let met = tokio::time::timeout(args.timeout, wait_for(session, &object, &until)).await;
        met.map_err(|_| anyhow!("timed out waiting for the condition on {title}"))??;
        let done = if matches!(until, Until::Gone) {
            "deleted"
        } else {
            "condition met"
        };
        println!("{} {done}", object.title());
    }
    Ok(())
}

async fn wait_for(session: &Session, object: &Object, until: &Until) -> Result<()> {
    if matches!(until, Until::Gone) {
        return match session.get(&object.path()).await {
            Ok(live) => {
                until_gone(
                    session,
                    object,
                    live["metadata"]["uid"].as_str().unwrap_or_default(),
                )
                .await
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        };
    }
    if !matches!(until, Until::There) {
        session.get(&object.path()).await?;
    }
    follow(session, object, |live| until.is_met(live)).await
}

/// Watches one object until `done` says so.
pub async fn follow(
    session: &Session,
    object: &Object,
    mut done: impl FnMut(&Value) -> bool,
) -> Result<()> {
    let collection = object.kind.path(object.namespace.as_deref());
    let query = format!(
        "&fieldSelector={}",
        escape(&format!("metadata.name={}", object.name))
    );
    loop {
        let list = session
            .list(&collection, &query, "application/json")
            .await?;
        for item in list["items"].as_array().into_iter().flatten() {
            if done(item) {
                return Ok(());
            }
        }
        let revision = list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default();
        let mut events = session
            .watch(
                &format!("{collection}?watch=true&resourceVersion={revision}{query}"),
                "application/json",
            )
            .await?;
        while let Some(event) = events.next().await {
            let Ok((kind, live)) = event else { break };
            if matches!(kind.as_str(), "ADDED" | "MODIFIED") && done(&live) {
                return Ok(());
            }
        }
    }
}

/// Makes an object from a document that a verb wrote.
pub async fn make(session: &Session, writing: &Writing, value: Value) -> Result<()> {
    let object = manifest::locate(session, value, "generated").await?;
    let created = writing.create(session, &object).await?;
    writing.report(&object.kind, &created, "created")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_changes() {
        let now = json!({"a": "1", "b": "2"});
        let of = |changes: &[&str], overwrite| {
            label_patch(
                &now,
                &changes.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>(),
                overwrite,
            )
        };
        assert_eq!(
            Value::Object(of(&["c=3", "b-", "a=1"], false).unwrap()),
            json!({"c": "3", "b": null})
        );
        let error = of(&["a=9"], false).unwrap_err().to_string();
        assert_eq!(
            error,
            "'a' already has a value (1), and --overwrite is false"
        );
        assert_eq!(
            Value::Object(of(&["a=9"], true).unwrap()),
            json!({"a": "9"})
        );
    }

    #[test]
    fn conditions() {
        let object = json!({
            "metadata": {"generation": 2},
            "status": {"observedGeneration": 2, "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}, {"type": "Bad", "status": "False"}]},
        });
        let met = |text: &str| Until::parse(text).unwrap().is_met(&object);
        assert!(met("condition=ready") && met("condition=Bad=false") && met("create"));
        assert!(!met("condition=Bad") && !met("condition=Nope"));
        assert!(
            met("jsonpath={.status.phase}=Running")
                && met("jsonpath='{.status.phase}'=Running")
                && met("jsonpath={.status.phase}")
        );
        assert!(!met("jsonpath={.status.phase}=Pending") && !met("jsonpath={.status.nope}"));
        let mut stale = object.clone();
        stale["metadata"]["generation"] = 3.into();
        assert!(!Until::parse("condition=Ready").unwrap().is_met(&stale));
        assert!(Until::parse("what").is_err());
    }
}
