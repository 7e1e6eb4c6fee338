//! Verbs that write a manifest from flags: `create namespace` and its like, `run`, `expose`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use serde_json::{Value, json};

use super::manifest::Files;
use super::ops::make;
use super::session::Session;
use super::target;
use super::write::{self, Writing};

/// Create objects from manifests, or from flags
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct CreateArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    writing: Writing,
    /// Keep the manifest for a later `apply`
    #[arg(long)]
    save_config: bool,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// A namespace
    #[command(visible_alias = "ns")]
    Namespace {
        name: String,
        #[command(flatten)]
        writing: Writing,
    },
    /// A deployment of an image
    #[command(visible_alias = "deploy")]
    Deployment {
        name: String,
        #[arg(long, required = true)]
        image: Vec<String>,
        #[arg(long, short = 'r', default_value_t = 1)]
        replicas: u32,
        #[arg(long)]
        port: Option<u16>,
        #[command(flatten)]
        writing: Writing,
        /// The command, after --
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// A config map from values and files
    #[command(visible_alias = "cm")]
    Configmap {
        name: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        writing: Writing,
    },
    /// A secret
    #[command(subcommand)]
    Secret(SecretKind),
    /// A service account
    #[command(visible_alias = "sa")]
    Serviceaccount {
        name: String,
        #[command(flatten)]
        writing: Writing,
    },
    /// A token for a service account, printed
    Token {
        name: String,
        #[arg(long, value_parser = super::duration)]
        duration: Option<std::time::Duration>,
        #[arg(long)]
        audience: Vec<String>,
    },
}

#[derive(Debug, clap::Subcommand)]
enum SecretKind {
    /// From values and files
    Generic {
        name: String,
        #[command(flatten)]
        data: Data,
        #[arg(long = "type", default_value = "Opaque")]
        kind: String,
        #[command(flatten)]
        writing: Writing,
    },
    /// A certificate and its key
    Tls {
        name: String,
        #[arg(long)]
        cert: PathBuf,
        #[arg(long)]
        key: PathBuf,
        #[command(flatten)]
        writing: Writing,
    },
}

#[derive(Debug, Clone, Default, clap::Args)]
struct Data {
    /// KEY=VALUE
    #[arg(long)]
    from_literal: Vec<String>,
    /// [KEY=]FILE, or a directory
    #[arg(long)]
    from_file: Vec<String>,
    /// A file of KEY=VALUE lines
    #[arg(long)]
    from_env_file: Vec<PathBuf>,
}

impl Data {
    fn read(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        for literal in &self.from_literal {
            let (key, value) = literal
                .split_once('=')
                .with_context(|| format!("invalid literal source {literal}, expected key=value"))?;
            all.push((key.to_owned(), value.as_bytes().to_vec()));
        }
        for source in &self.from_file {
            let (key, path) = match source.split_once('=') {
                Some((key, path)) => (Some(key.to_owned()), Path::new(path)),
                None => (None, Path::new(source.as_str())),
            };
            let mut files = vec![path.to_owned()];
            if path.is_dir() {
                files = std::fs::read_dir(path)?
                    .map(|e| e.map(|e| e.path()))
                    .collect::<std::io::Result<_>>()?;
                files.retain(|file| file.is_file());
                files.sort();
            }
            for file in files {
                let name = file
                    .file_name()
                    .map(|n| n.to_string_lossy().into_owned())
                    .unwrap_or_default();
                let content = std::fs::read(&file)
                    .with_context(|| format!("error reading {}", file.display()))?;
                all.push((key.clone().unwrap_or(name), content));
            }
        }
        for file in &self.from_env_file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("error reading {}", file.display()))?;
            let lines = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'));
            all.extend(
                lines
                    .filter_map(|line| line.split_once('='))
                    .map(|(k, v)| (k.to_owned(), v.as_bytes().to_vec())),
            );
        }
        Ok(all)
    }
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub async fn create(session: &Session, args: CreateArgs) -> Result<()> {
    let Some(what) = args.what else {
        if args.files.is_empty() {
            bail!("must specify one of -f or what to create; see --help");
        }
        return write::create(session, &args.files, &args.writing, args.save_config).await;
    };
    let named = |api: &str, kind: &str, name: &str| json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}});
    match what {
        What::Namespace { name, writing } => {
            make(session, &writing, named("v1", "Namespace", &name)).await
        }
        What::Serviceaccount { name, writing } => {
            make(session, &writing, named("v1", "ServiceAccount", &name)).await
        }
        What::Deployment {
            name,
            image,
            replicas,
            port,
            writing,
            command,
        } => {
            let mut object = named("apps/v1", "Deployment", &name);
            let labels = json!({"app": name});
            object["metadata"]["labels"] = labels.clone();
            let containers: Vec<Value> = image
                .iter()
                .map(|image| container(&container_name(image), image, port, &command))
                .collect();
            object["spec"] = json!({
                "replicas": replicas, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
            });
            make(session, &writing, object).await
        }
        What::Configmap {
            name,
            data,
            writing,
        } => {
            make(
                session,
                &writing,
                config_map(named("v1", "ConfigMap", &name), data.read()?),
            )
            .await
        }
        What::Secret(SecretKind::Generic {
            name,
            data,
            kind,
            writing,
        }) => {
            let mut object = named("v1", "Secret", &name);
            object["type"] = kind.into();
            for (key, value) in data.read()? {
                object["data"][key] = base64(&value).into();
            }
            make(session, &writing, object).await
        }
        What::Secret(SecretKind::Tls {
            name,
            cert,
            key,
            writing,
        }) => {
            let mut object = named("v1", "Secret", &name);
            object["type"] = "kubernetes.io/tls".into();
            object["data"] = json!({"tls.crt": base64(&std::fs::read(cert)?), "tls.key": base64(&std::fs::read(key)?)});
            make(session, &writing, object).await
        }
        What::Token {
            name,
            duration,
            audience,
        } => {
            let mut spec = json!({"audiences": audience});
            if let Some(duration) = duration {
                spec["expirationSeconds"] = duration.as_secs().into();
            }
            let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
            let path = format!(
                "/api/v1/namespaces/{}/serviceaccounts/{name}/token",
                session.namespace
            );
            let answer = session
                .json(
                    http::Method::POST,
                    &path,
                    super::session::json_payload(&request),
                )
                .await?;
            println!(
                "{}",
                answer["status"]["token"]
                    .as_str()
                    .context("the server gave no token")?
            );
            Ok(())
        }
    }
}

fn config_map(mut object: Value, data: Vec<(String, Vec<u8>)>) -> Value {
    for (key, value) in data {
        match String::from_utf8(value) {
            Ok(text) => object["data"][key] = text.into(),
            Err(error) => object["binaryData"][key] = base64(error.as_bytes()).into(),
        }
    }
    object
}

/// `web` from `registry/path/web:1.2@sha256:...`.
fn container_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(['@', ':'])
        .next()
        .unwrap_or(last)
        .replace('_', "-")
}

fn container(name: &str, image: &str, port: Option<u16>, command: &[String]) -> Value {
    let mut container = json!({"name": name, "image": image});
    if let Some(port) = port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    container
}

/// Run an image in a pod
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    name: String,
    #[arg(long)]
    image: String,
    #[arg(long)]
    port: Option<u16>,
    /// NAME=VALUE
    #[arg(long)]
    env: Vec<String>,
    /// KEY=VALUE,...
    #[arg(long, short = 'l', value_delimiter = ',')]
    labels: Vec<String>,
    #[arg(long, default_value = "Always", value_parser = ["Always", "OnFailure", "Never"])]
    restart: String,
    #[arg(long)]
    image_pull_policy: Option<String>,
    /// What follows -- is the command, not arguments to the image's own
    #[arg(long)]
    command: bool,
    #[command(flatten)]
    writing: Writing,
    /// Arguments, after --
    #[arg(last = true)]
    args: Vec<String>,
}

pub async fn run(session: &Session, args: RunArgs) -> Result<()> {
    let mut container = container(&args.name, &args.image, args.port, &[]);
    if !args.args.is_empty() {
        container[if args.command { "command" } else { "args" }] = json!(args.args);
    }
    if let Some(policy) = args.image_pull_policy {
        container["imagePullPolicy"] = policy.into();
    }
    let pair = |text: &String| {
        text.split_once('=')
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .with_context(|| format!("{text:?} is not KEY=VALUE"))
    };
    let env = args
        .env
        .iter()
        .map(|e| pair(e).map(|(k, v)| json!({"name": k, "value": v})))
        .collect::<Result<Vec<_>>>()?;
    if !env.is_empty() {
        container["env"] = env.into();
    }
    let mut labels = json!({"run": args.name});
    if !args.labels.is_empty() {
        labels = Value::Object(
            args.labels
                .iter()
                .map(|l| pair(l).map(|(k, v)| (k, v.into())))
                .collect::<Result<_>>()?,
        );
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": args.name, "labels": labels},
        "spec": {"containers": [container], "restartPolicy": args.restart},
    });
    make(session, &args.writing, pod).await
}

/// Put a Service before the pods of a workload
#[derive(Debug, clap::Args)]
pub struct ExposeArgs {
    /// TYPE NAME or TYPE/NAME
    resources: Vec<String>,
    #[arg(long)]
    port: Option<u16>,
    /// Port or port name of the pods
    #[arg(long)]
    target_port: Option<String>,
    #[arg(long, default_value = "TCP")]
    protocol: String,
    /// Name of the Service [default: the workload's]
    #[arg(long)]
    name: Option<String>,
    #[arg(long = "type", default_value = "ClusterIP")]
    kind: String,
    #[command(flatten)]
    writing: Writing,
}

pub async fn expose(session: &Session, args: ExposeArgs) -> Result<()> {
    for object in target::objects(
        session,
        &args.resources,
        &target::Selectors::default(),
        false,
        &Files::default(),
    )
    .await?
    {
        let live = session.get(&object.path()).await?;
        let selector = match object.kind.kind.as_str() {
            "Pod" => &live["metadata"]["labels"],
            _ if live["spec"]["selector"]["matchLabels"].is_object() => {
                &live["spec"]["selector"]["matchLabels"]
            }
            _ => &live["spec"]["selector"],
        };
        if !selector.is_object() {
            bail!("couldn't find a selector to expose {}", object.title());
        }
        let spec = if object.kind.kind == "Pod" {
            &live["spec"]
        } else {
            &live["spec"]["template"]["spec"]
        };
        let declared = spec["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|c| c["ports"][0]["containerPort"].as_u64());
        let port = args
            .port
            .map(u64::from)
            .or(declared)
            .context("couldn't find port via --port flag or introspection")?;
        let target = match args.target_port.as_deref() {
            Some(text) => text
                .parse::<u16>()
                .map_or_else(|_| Value::from(text), Value::from),
            None => port.into(),
        };
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": args.name.clone().unwrap_or_else(|| object.name.clone()), "labels": live["metadata"]["labels"]},
            "spec": {"type": args.kind, "selector": selector, "ports": [{"port": port, "targetPort": target, "protocol": args.protocol}]},
        });
        let mut writing = args.writing.clone();
        writing.field_manager = "skiff-expose".into();
        let made = super::manifest::locate(session, service, "generated").await?;
        let created = writing.create(session, &made).await?;
        writing.report(&made.kind, &created, "exposed")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_images() {
        for (image, name) in [
            ("web", "web"),
            ("r.io:5000/a/web_x:1.2", "web-x"),
            ("a/b@sha256:00", "b"),
        ] {
            assert_eq!(container_name(image), name);
        }
    }

    #[test]
    fn data_that_is_no_text() {
        let map = config_map(
            json!({}),
            vec![("a".into(), b"x".to_vec()), ("b".into(), vec![0xff])],
        );
        assert_eq!(
            map,
            json!({"data": {"a": "x"}, "binaryData": {"b": "/w=="}})
        );
    }
}
