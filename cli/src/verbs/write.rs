//! Verbs that write manifests: `apply`, `create -f`, `replace`, `delete`, `edit`.

use anyhow::{Result, anyhow, bail};
use apimachinery::schema::Schema;
use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};

use super::kinds::Kind;
use super::manifest::{self, Files, Object};
use super::output::Format;
use super::session::{Exit, Payload, Session, escape, is_conflict, is_not_found, json_payload};
use super::target::{self, Selectors};
use super::three_way;

pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const MERGE: &str = "application/merge-patch+json";

/// Flags of every verb that writes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Writing {
    /// Only say what would be done: client or server
    #[arg(long, num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true, value_parser = ["none", "client", "server"])]
    pub dry_run: String,
    /// Format of the result: yaml, json, name, jsonpath=...
    #[arg(long, short = 'o')]
    pub output: Option<String>,
    /// The name of who manages the fields
    #[arg(long, default_value = "kubectl-client-side-apply", hide = true)]
    pub field_manager: String,
}

impl Writing {
    pub fn client_only(&self) -> bool {
        self.dry_run == "client"
    }

    fn query(&self) -> String {
        let dry = if self.dry_run == "server" {
            "&dryRun=All"
        } else {
            ""
        };
        format!(
            "?fieldManager={}&fieldValidation=Strict{dry}",
            escape(&self.field_manager)
        )
    }

    /// Prints what was done, or the object in the wanted format.
    pub fn report(&self, kind: &Kind, object: &Value, done: &str) -> Result<()> {
        let format = Format::parse(self.output.as_deref())?;
        if !format.is_table() {
            return format.print(object, Some(kind), &mut std::io::stdout().lock());
        }
        let suffix = match self.dry_run.as_str() {
            "client" => " (dry run)",
            "server" => " (server dry run)",
            _ => "",
        };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        println!("{} {done}{suffix}", kind.object(name));
        Ok(())
    }

    pub async fn create(&self, session: &Session, object: &Object) -> Result<Value> {
        if self.client_only() {
            return Ok(object.value.clone());
        }
        session
            .json(
                Method::POST,
                &format!("{}{}", object.collection(), self.query()),
                json_payload(&object.value),
            )
            .await
    }

    pub async fn patch(
        &self,
        session: &Session,
        path: &str,
        kind: &'static str,
        patch: &Value,
    ) -> Result<Value> {
        let payload: Payload = Some((kind, patch.to_string().into_bytes()));
        session
            .json(Method::PATCH, &format!("{path}{}", self.query()), payload)
            .await
    }
}

/// Runs over objects; one that fails does not stop the others.
async fn for_each(objects: &[Object], act: impl AsyncFn(&Object) -> Result<()>) -> Result<()> {
    let mut failed = 0;
    for object in objects {
        match act(object).await {
            Ok(()) => {}
            Err(error) if objects.len() == 1 => return Err(error),
            Err(error) => {
                super::print_error(&error);
                failed += 1;
            }
        }
    }
    if failed > 0 {
        Err(Exit(1).into())
    } else {
        Ok(())
    }
}

/// Bring objects to what manifests say
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    writing: Writing,
    /// Let the server merge, and know who owns which field
    #[arg(long)]
    server_side: bool,
    /// Take fields over from others
    #[arg(long)]
    force_conflicts: bool,
}

pub async fn apply(session: &Session, args: ApplyArgs) -> Result<()> {
    if args.files.is_empty() {
        bail!("must specify --filename (-f)");
    }
    let documents = args.files.documents()?;
    // Located one by one: an earlier document may define the kind or the namespace of a later one.
    let mut failed = 0;
    let alone = documents.len() == 1;
    for (source, value) in documents {
        let result = async {
            let object = match manifest::locate(session, value.clone(), &source).await {
                Ok(object) => object,
                Err(error) => located_anew(session, value, &source)
                    .await
                    .map_err(|_| error)?,
            };
            if args.server_side {
                apply_on_server(session, &args, &object).await
            } else {
                apply_one(session, &args, object).await
            }
        };
        match result.await {
            Ok(()) => {}
            Err(error) if alone => return Err(error),
            Err(error) => {
                super::print_error(&error);
                failed += 1;
            }
        }
    }
    if failed > 0 {
        Err(Exit(1).into())
    } else {
        Ok(())
    }
}

/// Discovery from before a CustomResourceDefinition was applied does not know its kind.
async fn located_anew(session: &Session, value: Value, source: &str) -> Result<Object> {
    let anew = session.again();
    manifest::locate(&anew, value, source).await
}

async fn apply_on_server(session: &Session, args: &ApplyArgs, object: &Object) -> Result<()> {
    let force = if args.force_conflicts {
        "&force=true"
    } else {
        ""
    };
    let mut writing = args.writing.clone();
    if writing.field_manager == "kubectl-client-side-apply" {
        writing.field_manager = "kubectl".into();
    }
    let path = format!("{}{}{force}", object.path(), writing.query());
    let payload = Some((
        "application/apply-patch+yaml",
        object.value.to_string().into_bytes(),
    ));
    let result = session.json(Method::PATCH, &path, payload).await?;
    writing.report(&object.kind, &result, "serverside-applied")
}

async fn apply_one(session: &Session, args: &ApplyArgs, mut object: Object) -> Result<()> {
    if object.name.is_empty() {
        bail!(
            "error from {:?}: cannot use generate name with apply",
            object.source
        );
    }
    let mut record = object.value.clone();
    if let Some(annotations) = record["metadata"]["annotations"].as_object_mut() {
        annotations.remove(LAST_APPLIED);
    } else {
        record["metadata"]["annotations"] = json!({});
    }
    object.value["metadata"]["annotations"][LAST_APPLIED] = format!("{record}\n").into();
    for attempt in 0.. {
        let live = match session.get(&object.path()).await {
            Ok(live) => live,
            Err(error) if is_not_found(&error) => {
                let created = args.writing.create(session, &object).await?;
                return args.writing.report(&object.kind, &created, "created");
            }
            Err(error) => return Err(error),
        };
        match change(session, args, &object, &live).await {
            // Somebody was faster: look again.
            Err(error) if is_conflict(&error) && attempt < 5 => continue,
            result => return result,
        }
    }
    Ok(())
}

async fn change(session: &Session, args: &ApplyArgs, object: &Object, live: &Value) -> Result<()> {
    let applied = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    if applied.is_none() {
        eprintln!(
            "Warning: resource {} is missing the {LAST_APPLIED} annotation which is required by skiff apply. skiff apply should only be used on resources created declaratively by either skiff create --save-config or skiff apply. The missing annotation will be patched automatically.",
            object.kind.plural.clone() + "/" + &object.name
        );
    }
    let original: Value = applied
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let schema = Schema::builtin(&object.kind.group, &object.kind.version, &object.kind.kind);
    let patch = three_way::patch(
        &original,
        &object.value,
        live,
        schema.as_ref().map(Schema::shape),
    );
    let Some(patch) = patch else {
        return args.writing.report(&object.kind, live, "unchanged");
    };
    if args.writing.client_only() {
        return args
            .writing
            .report(&object.kind, &object.value, "configured");
    }
    let kind = if schema.is_some() { STRATEGIC } else { MERGE };
    let result = args
        .writing
        .patch(session, &object.path(), kind, &patch)
        .await?;
    let same = result["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
        && args.writing.dry_run == "none";
    args.writing.report(
        &object.kind,
        &result,
        if same { "unchanged" } else { "configured" },
    )
}

/// Creates every object of the manifests.
pub async fn create(
    session: &Session,
    files: &Files,
    writing: &Writing,
    save_config: bool,
) -> Result<()> {
    let mut objects = files.objects(session).await?;
    if save_config {
        for object in &mut objects {
            let record = format!("{}\n", object.value);
            object.value["metadata"]["annotations"][LAST_APPLIED] = record.into();
        }
    }
    for_each(&objects, async |object| {
        let created = writing.create(session, object).await?;
        writing.report(&object.kind, &created, "created")
    })
    .await
}

/// Replace objects by what manifests say
#[derive(Debug, clap::Args)]
pub struct ReplaceArgs {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    writing: Writing,
}

pub async fn replace(session: &Session, args: ReplaceArgs) -> Result<()> {
    let objects = args.files.objects(session).await?;
    for_each(&objects, async |object| {
        let path = format!("{}{}", object.path(), args.writing.query());
        let result = match args.writing.client_only() {
            true => object.value.clone(),
            false => {
                session
                    .json(Method::PUT, &path, json_payload(&object.value))
                    .await?
            }
        };
        args.writing.report(&object.kind, &result, "replaced")
    })
    .await
}

/// Delete objects
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// TYPE[,TYPE] [NAME...] or TYPE/NAME...
    resources: Vec<String>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    selectors: Selectors,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Seconds that objects get to end; 1 with --force ends at once
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    /// Do not wait for a graceful end
    #[arg(long)]
    force: bool,
    /// As --grace-period=1
    #[arg(long)]
    now: bool,
    /// Wait until the objects are gone
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait; 0 means as long as it takes
    #[arg(long, default_value = "0s", value_parser = super::duration)]
    timeout: std::time::Duration,
    /// What happens to what depends on them: background, foreground or orphan
    #[arg(long, default_value = "background", value_parser = ["background", "foreground", "orphan"])]
    cascade: String,
    /// Be silent about objects that are not there
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    ignore_not_found: bool,
    #[arg(long, num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true, value_parser = ["none", "client", "server"])]
    dry_run: String,
    /// Format of the result: name
    #[arg(long, short = 'o')]
    output: Option<String>,
}

pub async fn delete(session: &Session, args: DeleteArgs) -> Result<()> {
    let objects = target::objects(
        session,
        &args.resources,
        &args.selectors,
        args.all,
        &args.files,
    )
    .await?;
    if objects.is_empty() {
        if !args.ignore_not_found && args.output.is_none() {
            println!("No resources found");
        }
        return Ok(());
    }
    let mut grace = if args.now { 1 } else { args.grace_period };
    if args.force && grace < 0 {
        grace = 0;
    }
    if args.force {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely."
        );
    }
    let cascade = match args.cascade.as_str() {
        "orphan" => "Orphan",
        "foreground" => "Foreground",
        _ => "Background",
    };
    let mut options =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": cascade});
    if grace >= 0 {
        options["gracePeriodSeconds"] = grace.into();
    }
    if args.dry_run == "server" {
        options["dryRun"] = json!(["All"]);
    }
    let (mut failed, mut gone) = (0, Vec::new());
    for object in &objects {
        if args.dry_run != "client" {
            match session
                .json(Method::DELETE, &object.path(), json_payload(&options))
                .await
            {
                Ok(answer) => {
                    let uid = answer["details"]["uid"]
                        .as_str()
                        .or(answer["metadata"]["uid"].as_str());
                    gone.push((object, uid.unwrap_or_default().to_owned()));
                }
                Err(error) if is_not_found(&error) && args.ignore_not_found => continue,
                Err(error) if objects.len() == 1 => return Err(error),
                Err(error) => {
                    super::print_error(&error);
                    failed += 1;
                    continue;
                }
            }
        }
        if args.output.as_deref() == Some("name") {
            println!("{}", object.title());
            continue;
        }
        let suffix = match args.dry_run.as_str() {
            "client" => " (dry run)",
            "server" => " (server dry run)",
            _ => "",
        };
        let how = if args.force {
            "force deleted"
        } else {
            "deleted"
        };
        println!(
            "{} {:?} {how}{suffix}",
            object.kind.type_name(),
            object.name
        );
    }
    if args.wait && args.dry_run == "none" && !(args.force && grace == 0) {
        let waiting = async {
            for (object, uid) in &gone {
                until_gone(session, object, uid).await?;
            }
            anyhow::Ok(())
        };
        match args.timeout.is_zero() {
            true => waiting.await?,
            false => tokio::time::timeout(args.timeout, waiting)
                .await
                .map_err(|_| anyhow!("timed out waiting for the condition"))??,
        }
    }
    if failed > 0 {
        Err(Exit(1).into())
    } else {
        Ok(())
    }
}

/// Waits until the object is gone, or another one has its name.
pub async fn until_gone(session: &Session, object: &target::Object, uid: &str) -> Result<()> {
    let collection = object.kind.path(object.namespace.as_deref());
    loop {
        let query = format!(
            "&fieldSelector={}",
            escape(&format!("metadata.name={}", object.name))
        );
        let list = session
            .list(&collection, &query, "application/json")
            .await?;
        let there = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|item| uid.is_empty() || item["metadata"]["uid"] == uid);
        if !there {
            return Ok(());
        }
        let revision = list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default();
        let url = format!("{collection}?watch=true&resourceVersion={revision}{query}");
        let mut events = session.watch(&url, "application/json").await?;
        while let Some(event) = events.next().await {
            // Whatever goes wrong with a watch, the next list says how things are.
            let Ok((kind, object)) = event else { break };
            if kind == "DELETED" && (uid.is_empty() || object["metadata"]["uid"] == uid) {
                return Ok(());
            }
        }
    }
}

/// Edit an object in $EDITOR
#[derive(Debug, clap::Args)]
pub struct EditArgs {
    /// TYPE NAME or TYPE/NAME
    resources: Vec<String>,
    #[command(flatten)]
    writing: Writing,
}

pub async fn edit(session: &Session, args: EditArgs) -> Result<()> {
    let objects = target::objects(
        session,
        &args.resources,
        &Selectors::default(),
        false,
        &Files::default(),
    )
    .await?;
    for object in objects {
        let mut live = session.get(&object.path()).await?;
        if let Some(meta) = live["metadata"].as_object_mut() {
            meta.remove("managedFields");
        }
        let file = std::env::temp_dir().join(format!("skiff-edit-{}.yaml", uuid::Uuid::new_v4()));
        let header = "# Please edit the object below. Lines beginning with a '#' will be ignored,\n# and an empty file will abort the edit.\n#\n";
        std::fs::write(&file, format!("{header}{}", super::output::yaml(&live)?))?;
        let editor = std::env::var("KUBE_EDITOR")
            .or_else(|_| std::env::var("EDITOR"))
            .unwrap_or_else(|_| "vi".into());
        let status = std::process::Command::new("sh")
            .args(["-c", &format!("{editor} \"$1\""), "sh"])
            .arg(&file)
            .status()?;
        let text = std::fs::read_to_string(&file)?;
        std::fs::remove_file(&file)?;
        if !status.success() {
            bail!("there was a problem with the editor {editor:?}");
        }
        let Some(edited) = manifest::parse(&text)?.pop() else {
            println!("Edit cancelled, saved file was empty.");
            continue;
        };
        let schema = Schema::builtin(&object.kind.group, &object.kind.version, &object.kind.kind);
        let Some(patch) =
            three_way::patch(&live, &edited, &live, schema.as_ref().map(Schema::shape))
        else {
            println!("Edit cancelled, no changes made.");
            continue;
        };
        let kind = if schema.is_some() { STRATEGIC } else { MERGE };
        let result = args
            .writing
            .patch(session, &object.path(), kind, &patch)
            .await?;
        args.writing.report(&object.kind, &result, "edited")?;
    }
    Ok(())
}
