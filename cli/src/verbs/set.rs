//! `set`: parts of the pods that workloads make, changed by name.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::ops::Choice;
use super::session::Session;
use super::write::{STRATEGIC, Writing};

/// Change parts of objects
#[derive(Debug, clap::Subcommand)]
pub enum SetArgs {
    /// Set the images of containers
    Image {
        /// TYPE/NAME... CONTAINER=IMAGE...
        args: Vec<String>,
        #[command(flatten)]
        choice: Choice,
        #[command(flatten)]
        writing: Writing,
    },
    /// Set environment variables of containers
    Env {
        /// TYPE/NAME... KEY=VALUE... KEY-...
        args: Vec<String>,
        /// Only containers of this name
        #[arg(long, short = 'c', default_value = "*")]
        containers: String,
        #[command(flatten)]
        choice: Choice,
        #[command(flatten)]
        writing: Writing,
    },
}

pub async fn set(session: &Session, args: SetArgs) -> Result<()> {
    match args {
        SetArgs::Image {
            args,
            choice,
            writing,
        } => {
            let (images, resources): (Vec<String>, Vec<String>) =
                args.into_iter().partition(|arg| arg.contains('='));
            if images.is_empty() {
                bail!("at least one image update is required");
            }
            let change = |spec: &Value| image_patch(spec, &images);
            change_pods(
                session,
                &resources,
                &choice,
                &writing,
                change,
                "image updated",
            )
            .await
        }
        SetArgs::Env {
            args,
            containers,
            choice,
            writing,
        } => {
            let (variables, resources): (Vec<String>, Vec<String>) = args
                .into_iter()
                .partition(|arg| arg.contains('=') || arg.ends_with('-'));
            if variables.is_empty() {
                bail!("at least one environment variable must be provided");
            }
            let change = |spec: &Value| env_patch(spec, &containers, &variables);
            change_pods(
                session,
                &resources,
                &choice,
                &writing,
                change,
                "env updated",
            )
            .await
        }
    }
}

/// Patches the pod spec, or that of the template, by what `change` makes of it.
async fn change_pods(
    session: &Session,
    resources: &[String],
    choice: &Choice,
    writing: &Writing,
    change: impl Fn(&Value) -> Result<Value>,
    done: &str,
) -> Result<()> {
    for object in choice.objects(session, resources).await? {
        let live = session.get(&object.path()).await?;
        let templated = live["spec"]["template"].is_object();
        let spec = match templated {
            true => &live["spec"]["template"]["spec"],
            false => &live["spec"],
        };
        let patch = match templated {
            true => json!({"spec": {"template": {"spec": change(spec)?}}}),
            false => json!({"spec": change(spec)?}),
        };
        let result = if writing.client_only() {
            live
        } else {
            writing
                .patch(session, &object.path(), STRATEGIC, &patch)
                .await?
        };
        writing.report(&object.kind, &result, done)?;
    }
    Ok(())
}

/// A patch that gives `fields` to every container that `name` (or `*`) means.
fn container_patch(spec: &Value, name: &str, fields: &Value, patch: &mut Value) -> Result<()> {
    let mut found = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            if name == "*" || container["name"] == name {
                found = true;
                let mut change = fields.clone();
                change["name"] = container["name"].clone();
                match patch[list].as_array_mut() {
                    Some(changes) => changes.push(change),
                    None => patch[list] = json!([change]),
                }
            }
        }
    }
    if !found {
        bail!("unable to find container named {name:?}");
    }
    Ok(())
}

fn image_patch(spec: &Value, images: &[String]) -> Result<Value> {
    let mut patch = json!({});
    for setting in images {
        let (name, image) = setting.split_once('=').unwrap_or_default();
        container_patch(spec, name, &json!({"image": image}), &mut patch)?;
    }
    Ok(patch)
}

fn env_patch(spec: &Value, containers: &str, variables: &[String]) -> Result<Value> {
    let env: Vec<Value> = variables
        .iter()
        .map(|variable| match variable.split_once('=') {
            // A variable that came from elsewhere has its value here now.
            Some((name, value)) => json!({"name": name, "value": value, "valueFrom": null}),
            None => json!({"name": variable.trim_end_matches('-'), "$patch": "delete"}),
        })
        .collect();
    let mut patch = json!({});
    container_patch(spec, containers, &json!({"env": env}), &mut patch)?;
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_name_their_containers() {
        let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]});
        let images = ["b=x:1".to_owned()];
        let wanted = json!({"containers": [{"name": "b", "image": "x:1"}]});
        assert_eq!(image_patch(&spec, &images).unwrap(), wanted);
        assert!(image_patch(&spec, &["c=x:1".to_owned()]).is_err());

        let variables = ["K=v=w".to_owned(), "GONE-".to_owned()];
        let patch = env_patch(&spec, "a", &variables).unwrap();
        let env = json!([
            {"name": "K", "value": "v=w", "valueFrom": null},
            {"name": "GONE", "$patch": "delete"},
        ]);
        assert_eq!(patch, json!({"containers": [{"name": "a", "env": env}]}));
        let all = env_patch(&spec, "*", &variables).unwrap();
        assert_eq!(all["initContainers"].as_array().map(Vec::len), Some(1));
        assert_eq!(all["containers"].as_array().map(Vec::len), Some(2));
    }
}
