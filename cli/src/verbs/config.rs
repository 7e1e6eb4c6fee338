//! `config`: the contexts of the kubeconfig file.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::output::align;
use super::session::Globals;

/// Show and change the kubeconfig file
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Show contexts
    GetContexts {
        name: Option<String>,
        #[arg(long, short = 'o', value_parser = ["name"])]
        output: Option<String>,
        #[arg(long)]
        no_headers: bool,
    },
    /// Show the name of the context in use
    CurrentContext,
    /// Use another context
    #[command(visible_alias = "use")]
    UseContext { name: String },
    /// Change a context
    SetContext {
        name: Option<String>,
        /// The one in use
        #[arg(long)]
        current: bool,
        #[arg(long)]
        cluster: Option<String>,
        #[arg(long)]
        user: Option<String>,
    },
    /// Remove a context
    DeleteContext { name: String },
    /// Show the whole file, without its secrets
    View {
        /// With its secrets
        #[arg(long)]
        raw: bool,
        /// Only what the context in use needs
        #[arg(long)]
        minify: bool,
    },
}

/// The file that is written: the one given, the first of KUBECONFIG, or the usual one.
fn path(globals: &Globals) -> Result<PathBuf> {
    if let Some(path) = &globals.kubeconfig {
        return Ok(path.clone());
    }
    if let Some(first) = std::env::var_os("KUBECONFIG")
        .and_then(|paths| std::env::split_paths(&paths).find(|p| !p.as_os_str().is_empty()))
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

fn named<'a>(config: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    config[list]
        .as_array()?
        .iter()
        .find(|entry| entry["name"] == name)
}

pub fn run(globals: &Globals, args: Args) -> Result<()> {
    let path = path(globals)?;
    let text = std::fs::read_to_string(&path).or_else(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            Ok(String::new())
        } else {
            Err(e)
        }
    })?;
    let mut config: Value = match text.trim().is_empty() {
        true => {
            json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "contexts": [], "users": []})
        }
        false => serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?,
    };
    let current = config["current-context"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    match args {
        Args::GetContexts {
            name,
            output,
            no_headers,
        } => {
            let contexts = config["contexts"].as_array().cloned().unwrap_or_default();
            let mut rows = vec![];
            if output.is_none() && !no_headers {
                rows.push(
                    ["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"]
                        .map(str::to_owned)
                        .to_vec(),
                );
            }
            let shown: Vec<&Value> = contexts
                .iter()
                .filter(|c| name.as_ref().is_none_or(|name| c["name"] == *name))
                .collect();
            if let (true, Some(name)) = (shown.is_empty(), &name) {
                bail!("context {name} not found");
            }
            for context in shown {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let (name, inner) = (text(&context["name"]), &context["context"]);
                if output.is_some() {
                    println!("{name}");
                    continue;
                }
                let mark = if name == current { "*" } else { "" };
                rows.push(vec![
                    mark.to_owned(),
                    name,
                    text(&inner["cluster"]),
                    text(&inner["user"]),
                    text(&inner["namespace"]),
                ]);
            }
            print!("{}", align(&rows));
            return Ok(());
        }
        Args::CurrentContext if current.is_empty() => bail!("current-context is not set"),
        Args::CurrentContext => {
            println!("{current}");
            return Ok(());
        }
        Args::View { raw, minify } => {
            if minify {
                minimize(&mut config, &current);
            }
            if !raw {
                redact(&mut config);
            }
            print!("{}", super::output::yaml(&config)?);
            return Ok(());
        }
        Args::UseContext { name } => {
            if named(&config, "contexts", &name).is_none() {
                bail!("no context exists with the name: {name:?}");
            }
            config["current-context"] = name.clone().into();
            println!("Switched to context {name:?}.");
        }
        Args::DeleteContext { name } => {
            let contexts = config["contexts"].as_array_mut().context("no contexts")?;
            let before = contexts.len();
            contexts.retain(|context| context["name"] != *name);
            if contexts.len() == before {
                bail!("cannot delete context {name}, not in {}", path.display());
            }
            println!("deleted context {name} from {}", path.display());
        }
        Args::SetContext {
            name,
            current: of_current,
            cluster,
            user,
        } => {
            let name = match name {
                Some(name) => name,
                None if of_current && !current.is_empty() => current.clone(),
                None => bail!("you must specify a context name or --current"),
            };
            let known = named(&config, "contexts", &name).is_some();
            if !known {
                match config["contexts"].as_array_mut() {
                    Some(contexts) => contexts.push(json!({"name": name, "context": {}})),
                    None => config["contexts"] = json!([{"name": name, "context": {}}]),
                }
            }
            let contexts = config["contexts"].as_array_mut().into_iter().flatten();
            for context in contexts.filter(|context| context["name"] == *name) {
                let fields = [
                    ("cluster", &cluster),
                    ("user", &user),
                    ("namespace", &globals.namespace),
                ];
                for (field, value) in fields {
                    if let Some(value) = value {
                        context["context"][field] = value.clone().into();
                    }
                }
            }
            println!(
                "Context {name:?} {}.",
                if known { "modified" } else { "created" }
            );
        }
    }
    crate::cluster::spec::write_atomic(&path, super::output::yaml(&config)?.as_bytes(), 0o600)?;
    Ok(())
}

fn minimize(config: &mut Value, current: &str) {
    let context = named(config, "contexts", current)
        .cloned()
        .unwrap_or_default();
    let keep = [
        ("contexts", &context["name"]),
        ("clusters", &context["context"]["cluster"]),
        ("users", &context["context"]["user"]),
    ];
    for (list, name) in keep {
        if let Some(entries) = config[list].as_array_mut() {
            entries.retain(|entry| entry["name"] == *name);
        }
    }
}

fn redact(config: &mut Value) {
    let secret = [
        "client-key-data",
        "client-certificate-data",
        "token",
        "password",
    ];
    for user in config["users"].as_array_mut().into_iter().flatten() {
        for field in secret {
            if !user["user"][field].is_null() {
                user["user"][field] = if field.ends_with("-data") {
                    "DATA+OMITTED"
                } else {
                    "REDACTED"
                }
                .into();
            } else if let Some(user) = user["user"].as_object_mut() {
                user.remove(field);
            }
        }
    }
    for cluster in config["clusters"].as_array_mut().into_iter().flatten() {
        let cluster = &mut cluster["cluster"];
        if !cluster["certificate-authority-data"].is_null() {
            cluster["certificate-authority-data"] = "DATA+OMITTED".into();
        } else if let Some(cluster) = cluster.as_object_mut() {
            cluster.remove("certificate-authority-data");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts() {
        let dir = std::env::temp_dir().join(format!("skiff-config-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("config");
        std::fs::write(&file, "current-context: a\ncontexts:\n- name: a\n  context: {cluster: c, user: u}\n- name: b\n  context: {}\nusers:\n- name: u\n  user: {client-key-data: s3cret}\n").unwrap();
        let globals = Globals {
            kubeconfig: Some(file.clone()),
            namespace: Some("shop".into()),
            ..Globals::default()
        };
        run(&globals, Args::UseContext { name: "b".into() }).unwrap();
        assert!(
            run(
                &globals,
                Args::UseContext {
                    name: "nope".into()
                }
            )
            .is_err()
        );
        run(
            &globals,
            Args::SetContext {
                name: None,
                current: true,
                cluster: None,
                user: None,
            },
        )
        .unwrap();
        let config: Value =
            serde_saphyr::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(config["current-context"], "b");
        assert_eq!(config["contexts"][1]["context"]["namespace"], "shop");
        let mut shown = config.clone();
        redact(&mut shown);
        assert_eq!(
            shown["users"][0]["user"],
            json!({"client-key-data": "DATA+OMITTED"})
        );
        std::fs::remove_dir_all(dir).unwrap();
    }
}
