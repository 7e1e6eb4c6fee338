//! Verbs that tell about the cluster: `top`, `version`, `cluster-info`, `api-resources`, `api-versions`, `auth can-i`.

use anyhow::{Context, Result, bail};
use apimachinery::quantity::Quantity;
use http::Method;
use serde_json::{Value, json};

use super::kinds::Kind;
use super::output::align;
use super::session::{Exit, Session, escape, is_not_found, json_payload};

/// Show how much is used
#[derive(Debug, clap::Subcommand)]
pub enum TopArgs {
    /// Of nodes
    #[command(visible_aliases = ["nodes", "no"])]
    Node {
        name: Option<String>,
        #[arg(long, short = 'l')]
        selector: Option<String>,
        #[arg(long)]
        no_headers: bool,
    },
    /// Of pods
    #[command(visible_aliases = ["pods", "po"])]
    Pod {
        name: Option<String>,
        #[arg(long, short = 'l')]
        selector: Option<String>,
        #[arg(long, short = 'A')]
        all_namespaces: bool,
        /// A line for every container
        #[arg(long)]
        containers: bool,
        /// By cpu or memory, the highest first
        #[arg(long, value_parser = ["cpu", "memory"])]
        sort_by: Option<String>,
        #[arg(long)]
        no_headers: bool,
    },
}

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

async fn metrics(
    session: &Session,
    path: &str,
    name: Option<&str>,
    selector: Option<&str>,
) -> Result<Vec<Value>> {
    let query = selector
        .map(|s| format!("&labelSelector={}", escape(s)))
        .unwrap_or_default();
    let answer = match name {
        Some(name) => session
            .get(&format!("{path}/{name}"))
            .await
            .map(|one| vec![one]),
        None => session
            .list(path, &query, "application/json")
            .await
            .map(|list| list["items"].as_array().cloned().unwrap_or_default()),
    };
    match answer {
        Err(error) if is_not_found(&error) && name.is_none() => bail!("Metrics API not available"),
        other => other,
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?).ok()
}

/// CPU in thousandths of a core, memory in bytes.
fn used(usage: &Value) -> (i64, i64) {
    (
        quantity(&usage["cpu"]).map_or(0, |q| q.milli_value()),
        quantity(&usage["memory"]).map_or(0, |q| q.value()),
    )
}

fn cells(cpu: i64, memory: i64) -> [String; 2] {
    [format!("{cpu}m"), format!("{}Mi", memory / (1 << 20))]
}

pub async fn top(session: &Session, args: TopArgs) -> Result<()> {
    let mut rows = Vec::new();
    let headers = match args {
        TopArgs::Node {
            name,
            selector,
            no_headers,
        } => {
            let items = metrics(
                session,
                &format!("{METRICS}/nodes"),
                name.as_deref(),
                selector.as_deref(),
            )
            .await?;
            let nodes = session
                .list("/api/v1/nodes", "", "application/json")
                .await?;
            for item in &items {
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                let node = nodes["items"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|n| n["metadata"]["name"] == name);
                let (cpu, memory) = used(&item["usage"]);
                let (all_cpu, all_memory) =
                    used(&node.unwrap_or(&Value::Null)["status"]["allocatable"]);
                let share = |used: i64, all: i64| {
                    if all > 0 {
                        format!("{}%", used * 100 / all)
                    } else {
                        "<unknown>".into()
                    }
                };
                let [c, m] = cells(cpu, memory);
                rows.push(vec![
                    name.to_owned(),
                    c,
                    share(cpu, all_cpu),
                    m,
                    share(memory, all_memory),
                ]);
            }
            rows.sort();
            if no_headers {
                None
            } else {
                Some(vec![
                    "NAME",
                    "CPU(cores)",
                    "CPU(%)",
                    "MEMORY(bytes)",
                    "MEMORY(%)",
                ])
            }
        }
        TopArgs::Pod {
            name,
            selector,
            all_namespaces,
            containers,
            sort_by,
            no_headers,
        } => {
            let path = match all_namespaces {
                true => format!("{METRICS}/pods"),
                false => format!("{METRICS}/namespaces/{}/pods", session.namespace),
            };
            let items = metrics(session, &path, name.as_deref(), selector.as_deref()).await?;
            let mut found = Vec::new();
            for item in &items {
                let text = |field: &str| {
                    item["metadata"][field]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned()
                };
                let mut start = if all_namespaces {
                    vec![text("namespace")]
                } else {
                    vec![]
                };
                start.push(text("name"));
                let each = item["containers"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|c| (c["name"].as_str().unwrap_or_default(), used(&c["usage"])));
                if containers {
                    found.extend(each.map(|(name, usage)| {
                        (usage, [start.clone(), vec![name.to_owned()]].concat())
                    }));
                } else {
                    let sum =
                        each.fold((0, 0), |sum, (_, usage)| (sum.0 + usage.0, sum.1 + usage.1));
                    found.push((sum, start));
                }
            }
            match sort_by.as_deref() {
                Some("cpu") => found.sort_by_key(|((cpu, _), _)| -cpu),
                Some(_) => found.sort_by_key(|((_, memory), _)| -memory),
                None => found.sort_by(|a, b| a.1.cmp(&b.1)),
            }
            rows.extend(
                found
                    .into_iter()
                    .map(|((cpu, memory), start)| [start, cells(cpu, memory).into()].concat()),
            );
            let mut headers = if containers {
                vec!["POD", "NAME"]
            } else {
                vec!["NAME"]
            };
            if all_namespaces {
                headers.insert(0, "NAMESPACE");
            }
            headers.extend(["CPU(cores)", "MEMORY(bytes)"]);
            if no_headers { None } else { Some(headers) }
        }
    };
    if rows.is_empty() {
        eprintln!("No resources found");
        return Ok(());
    }
    if let Some(headers) = headers {
        rows.insert(0, headers.into_iter().map(str::to_owned).collect());
    }
    print!("{}", align(&rows));
    Ok(())
}

/// Show the versions of this program and of the server
#[derive(Debug, clap::Args)]
pub struct VersionArgs {
    /// Of this program only
    #[arg(long)]
    client: bool,
    /// Format: yaml or json
    #[arg(long, short = 'o', value_parser = ["yaml", "json"])]
    output: Option<String>,
}

impl VersionArgs {
    pub fn needs_server(&self) -> bool {
        !self.client
    }
}

pub async fn version(session: Option<&Session>, args: VersionArgs) -> Result<()> {
    let own = concat!("v", env!("CARGO_PKG_VERSION"));
    let server = match session {
        Some(session) => session.get("/version").await?,
        None => Value::Null,
    };
    if let Some(format) = &args.output {
        let mut all = json!({"clientVersion": {"gitVersion": own}});
        if !server.is_null() {
            all["serverVersion"] = server;
        }
        let format = super::output::Format::parse(Some(format))?;
        return format.print(&all, None, &mut std::io::stdout().lock());
    }
    println!("Client Version: {own}");
    if let Some(version) = server["gitVersion"].as_str() {
        println!("Server Version: {version}");
    }
    Ok(())
}

pub async fn cluster_info(session: &Session) -> Result<()> {
    session.get("/version").await?;
    println!("Kubernetes control plane is running at {}", session.server);
    let query = format!(
        "?labelSelector={}",
        escape("kubernetes.io/cluster-service=true")
    );
    let services = session
        .get(&format!("/api/v1/namespaces/kube-system/services{query}"))
        .await?;
    for service in services["items"].as_array().into_iter().flatten() {
        let meta = &service["metadata"];
        let name = meta["name"].as_str().unwrap_or_default();
        let title = meta["labels"]["kubernetes.io/name"]
            .as_str()
            .unwrap_or(name);
        let port = service["spec"]["ports"][0]["name"]
            .as_str()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        println!(
            "{title} is running at {}/api/v1/namespaces/kube-system/services/{name}{port}/proxy",
            session.server
        );
    }
    Ok(())
}

/// Show what the server serves
#[derive(Debug, clap::Args)]
pub struct ResourcesArgs {
    /// Only of this group
    #[arg(long)]
    api_group: Option<String>,
    /// Only with (or without) a namespace
    #[arg(long)]
    namespaced: Option<bool>,
    /// Only those that know these verbs
    #[arg(long, value_delimiter = ',')]
    verbs: Vec<String>,
    /// Only of these categories
    #[arg(long, value_delimiter = ',')]
    categories: Vec<String>,
    /// Format: wide or name
    #[arg(long, short = 'o', value_parser = ["wide", "name"])]
    output: Option<String>,
    #[arg(long)]
    no_headers: bool,
}

pub async fn api_resources(session: &Session, args: ResourcesArgs) -> Result<()> {
    let shown = |kind: &&Kind| {
        kind.preferred
            && args
                .api_group
                .as_ref()
                .is_none_or(|group| *group == kind.group)
            && args
                .namespaced
                .is_none_or(|namespaced| namespaced == kind.namespaced)
            && args.verbs.iter().all(|verb| kind.can(verb))
            && args
                .categories
                .iter()
                .all(|category| kind.categories.contains(category))
    };
    let mut kinds: Vec<&Kind> = session.kinds().await?.0.iter().filter(shown).collect();
    kinds.sort_by_key(|kind| (&kind.group, &kind.plural));
    if args.output.as_deref() == Some("name") {
        kinds
            .iter()
            .for_each(|kind| println!("{}", kind.group_resource()));
        return Ok(());
    }
    let wide = args.output.is_some();
    let mut rows: Vec<Vec<String>> = Vec::new();
    if !args.no_headers {
        let headers = [
            "NAME",
            "SHORTNAMES",
            "APIVERSION",
            "NAMESPACED",
            "KIND",
            "VERBS",
            "CATEGORIES",
        ];
        rows.push(
            headers
                .iter()
                .take(if wide { 7 } else { 5 })
                .map(|h| (*h).to_owned())
                .collect(),
        );
    }
    for kind in kinds {
        let mut row = vec![
            kind.plural.clone(),
            kind.short_names.join(","),
            kind.api_version(),
            kind.namespaced.to_string(),
            kind.kind.clone(),
        ];
        if wide {
            row.extend([kind.verbs.join(","), kind.categories.join(",")]);
        }
        rows.push(row);
    }
    print!("{}", align(&rows));
    Ok(())
}

pub async fn api_versions(session: &Session) -> Result<()> {
    let mut versions: Vec<String> = session
        .kinds()
        .await?
        .0
        .iter()
        .map(Kind::api_version)
        .collect();
    versions.sort();
    versions.dedup();
    versions.iter().for_each(|version| println!("{version}"));
    Ok(())
}

/// Ask about permissions
#[derive(Debug, clap::Subcommand)]
pub enum AuthArgs {
    /// Whether something is allowed
    CanI {
        verb: String,
        /// TYPE, TYPE/NAME or a path such as /healthz
        resource: String,
        #[arg(long, default_value = "")]
        subresource: String,
        #[arg(long, short = 'A')]
        all_namespaces: bool,
        /// Only the exit code
        #[arg(long, short = 'q')]
        quiet: bool,
    },
    /// Who the server takes us for
    Whoami,
}

pub async fn auth(session: &Session, args: AuthArgs) -> Result<()> {
    let review =
        |kind: &str, spec: Value| json!({"apiVersion": format!("{kind}.k8s.io/v1"), "spec": spec});
    match args {
        AuthArgs::CanI {
            verb,
            resource,
            subresource,
            all_namespaces,
            quiet,
        } => {
            let spec = if resource.starts_with('/') {
                json!({"nonResourceAttributes": {"verb": verb, "path": resource}})
            } else {
                let (name, object) = resource.split_once('/').unwrap_or((&resource, ""));
                let kind = session.kinds().await?.find(name).cloned();
                let (group, plural) = kind
                    .as_ref()
                    .map_or(("", name), |k| (k.group.as_str(), k.plural.as_str()));
                let namespaced = kind.as_ref().is_none_or(|k| k.namespaced) && !all_namespaces;
                let namespace = if namespaced {
                    session.namespace.as_str()
                } else {
                    ""
                };
                json!({"resourceAttributes": {"verb": verb, "group": group, "resource": plural, "subresource": subresource, "name": object, "namespace": namespace}})
            };
            let mut body = review("authorization", spec);
            body["kind"] = "SelfSubjectAccessReview".into();
            let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            let answer = session
                .json(Method::POST, path, json_payload(&body))
                .await?;
            let allowed = answer["status"]["allowed"] == true;
            if !quiet {
                println!("{}", if allowed { "yes" } else { "no" });
            }
            if allowed { Ok(()) } else { Err(Exit(1).into()) }
        }
        AuthArgs::Whoami => {
            let mut body = review("authentication", json!({}));
            body["kind"] = "SelfSubjectReview".into();
            let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
            let answer = session
                .json(Method::POST, path, json_payload(&body))
                .await?;
            let user = answer["status"]["userInfo"]
                .as_object()
                .context("the server does not say")?;
            let mut rows = vec![vec!["ATTRIBUTE".to_owned(), "VALUE".to_owned()]];
            for (key, value) in user {
                let value = match value {
                    Value::Array(all) => format!(
                        "[{}]",
                        all.iter()
                            .map(super::jsonpath::plain)
                            .collect::<Vec<_>>()
                            .join(" ")
                    ),
                    other => super::jsonpath::plain(other),
                };
                rows.push(vec![key.clone(), value]);
            }
            print!("{}", align(&rows));
            Ok(())
        }
    }
}
