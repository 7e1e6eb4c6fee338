//! Volumes whose files come from the API: configMap, secret, downwardAPI, service
//! account tokens, and any mixture of these.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccount, ServiceAccountTokenProjection, Volume,
};
use kube::api::{Api, PostParams};

use super::atomic::{self, Content, File};
use super::{Owner, Setup};
use crate::container::fields::{self, FieldFacts};
use crate::context::Node;
use crate::model;
use crate::objects::{Kind, Payload};

/// The directory name that Kubernetes gives such volumes, if it is one.
pub fn plugin(volume: &Volume) -> Option<&'static str> {
    if volume.config_map.is_some() {
        Some("configmap")
    } else if volume.secret.is_some() {
        Some("secret")
    } else if volume.projected.is_some() {
        Some("projected")
    } else if volume.downward_api.is_some() {
        Some("downward-api")
    } else {
        None
    }
}

/// Whether files that show the pod's own fields have to be written again.
pub fn shows_change(new: &Pod, old: &Pod) -> bool {
    let downward = |v: &Volume| {
        let sources = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
        v.downward_api.is_some() || sources.into_iter().any(|s| s.downward_api.is_some())
    };
    let resources = |pod: &Pod| {
        let all = model::spec(pod).containers.iter();
        all.map(|c| c.resources.clone()).collect::<Vec<_>>()
    };
    let (a, b) = (&new.metadata, &old.metadata);
    model::spec(new).volumes.iter().flatten().any(downward)
        && (a.labels != b.labels
            || a.annotations != b.annotations
            || resources(new) != resources(old))
}

/// One named object and how its keys become files.
struct Part<'a> {
    kind: Kind,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: bool,
}

pub async fn collect(
    node: &Node,
    pod: &Pod,
    volume: &Volume,
    facts: &FieldFacts,
    owner: Owner,
    setup: &mut Setup,
) -> Result<Content, String> {
    let mut content = Content::new();
    let mode = |m: Option<i32>| m.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o644);
    if let Some(s) = &volume.config_map {
        let part = Part {
            kind: Kind::ConfigMap,
            name: &s.name,
            items: s.items.as_deref(),
            optional: s.optional == Some(true),
        };
        object(node, pod, part, mode(s.default_mode), setup, &mut content).await?;
    } else if let Some(s) = &volume.secret {
        let name = s.secret_name.as_deref().unwrap_or_default();
        let part = Part {
            kind: Kind::Secret,
            name,
            items: s.items.as_deref(),
            optional: s.optional == Some(true),
        };
        object(node, pod, part, mode(s.default_mode), setup, &mut content).await?;
    } else if let Some(s) = &volume.downward_api {
        downward(
            pod,
            s.items.as_deref(),
            mode(s.default_mode),
            facts,
            &mut content,
        )?;
    } else if let Some(projected) = &volume.projected {
        let mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                let part = Part {
                    kind: Kind::ConfigMap,
                    name: &s.name,
                    items: s.items.as_deref(),
                    optional: s.optional == Some(true),
                };
                object(node, pod, part, mode, setup, &mut content).await?;
            } else if let Some(s) = &source.secret {
                let part = Part {
                    kind: Kind::Secret,
                    name: &s.name,
                    items: s.items.as_deref(),
                    optional: s.optional == Some(true),
                };
                object(node, pod, part, mode, setup, &mut content).await?;
            } else if let Some(s) = &source.downward_api {
                downward(pod, s.items.as_deref(), mode, facts, &mut content)?;
            } else if let Some(s) = &source.service_account_token {
                let private = owner.user.is_some() || owner.group.is_some();
                let data = token(node, pod, s, setup).await?.into_bytes();
                atomic::check(&s.path)?;
                content.insert(
                    s.path.clone(),
                    File {
                        data,
                        mode: if private { 0o600 } else { mode },
                        owned: true,
                    },
                );
            } else {
                return Err(
                    "a source of this projected volume is of a kind that this node does not know"
                        .into(),
                );
            }
        }
    }
    Ok(content)
}

async fn object(
    node: &Node,
    pod: &Pod,
    part: Part<'_>,
    mode: u32,
    setup: &mut Setup,
    content: &mut Content,
) -> Result<(), String> {
    let namespace = model::namespace(pod);
    setup
        .shows
        .insert((part.kind, namespace.to_string(), part.name.to_string()));
    let found = node
        .objects
        .get(part.kind, namespace, part.name)
        .await
        .map_err(|e| e.to_string())?;
    match found {
        Some(payload) => select(&payload, &part, mode, content),
        None if part.optional => Ok(()),
        None => Err(format!(
            "{} \"{}\" not found",
            part.kind.to_string().to_lowercase(),
            part.name
        )),
    }
}

fn select(payload: &Payload, part: &Part, mode: u32, content: &mut Content) -> Result<(), String> {
    let file = |data: &Vec<u8>, mode| File {
        data: data.clone(),
        mode,
        owned: false,
    };
    let Some(items) = part.items.filter(|i| !i.is_empty()) else {
        content.extend(payload.iter().map(|(k, v)| (k.clone(), file(v, mode))));
        return Ok(());
    };
    for item in items {
        atomic::check(&item.path)?;
        match payload.get(&item.key) {
            Some(data) => {
                let mode = item
                    .mode
                    .and_then(|m| u32::try_from(m).ok())
                    .unwrap_or(mode);
                content.insert(item.path.clone(), file(data, mode));
            }
            None if part.optional => {}
            None => {
                let what = if part.kind == Kind::Secret {
                    "secret"
                } else {
                    "config"
                };
                return Err(format!("references non-existent {what} key: {}", item.key));
            }
        }
    }
    Ok(())
}

fn downward(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: u32,
    facts: &FieldFacts,
    content: &mut Content,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        atomic::check(&item.path)?;
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(f), _) => fields::field(pod, &f.field_path, facts)?,
            (_, Some(r)) => fields::resource(pod, None, r, facts)?,
            _ => continue,
        };
        let mode = item
            .mode
            .and_then(|m| u32::try_from(m).ok())
            .unwrap_or(mode);
        content.insert(
            item.path.clone(),
            File {
                data: text.into_bytes(),
                mode,
                owned: false,
            },
        );
    }
    Ok(())
}

/// Tokens live in memory until they are due, so that refreshing a volume does not ask for new ones.
#[derive(Clone, Debug)]
pub struct CachedToken {
    token: String,
    due: Timestamp,
}

pub type TokenKey = (String, String, i64);
pub type Tokens = parking_lot::Mutex<BTreeMap<TokenKey, CachedToken>>;

async fn token(
    node: &Node,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    setup: &mut Setup,
) -> Result<String, String> {
    let audience = source.audience.clone().unwrap_or_default();
    let seconds = source.expiration_seconds.unwrap_or(3600);
    let key = (model::uid(pod).to_string(), audience.clone(), seconds);
    let now = Timestamp::now();
    let known = node
        .tokens
        .lock()
        .get(&key)
        .filter(|t| t.due > now)
        .cloned();
    let cached = match known {
        Some(known) => known,
        None => {
            let fresh = request_token(node, pod, audience, seconds).await?;
            node.tokens.lock().insert(key, fresh.clone());
            fresh
        }
    };
    setup.refresh_at = Some(setup.refresh_at.map_or(cached.due, |at| at.min(cached.due)));
    Ok(cached.token)
}

async fn request_token(
    node: &Node,
    pod: &Pod,
    audience: String,
    seconds: i64,
) -> Result<CachedToken, String> {
    let account = model::spec(pod)
        .service_account_name
        .as_deref()
        .filter(|n| !n.is_empty())
        .unwrap_or("default");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(if audience.is_empty() {
                Vec::new()
            } else {
                vec![audience]
            }),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        }),
        ..Default::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(node.client.clone(), model::namespace(pod));
    let made: TokenRequest = accounts
        .create_subresource("token", account, &PostParams::default(), &request)
        .await
        .map_err(|e| format!("failed to fetch token: {e}"))?;
    let status = made
        .status
        .ok_or("failed to fetch token: the answer carries none")?;
    let token = status
        .token
        .ok_or("failed to fetch token: the answer carries none")?;
    let now = Timestamp::now();
    let expires = status
        .expiration_timestamp
        .map_or(now + SignedDuration::from_secs(seconds), |t| t.0);
    Ok(CachedToken {
        token,
        due: renew_at(now, expires),
    })
}

/// A token is renewed after four fifths of its life, and at the latest after a day.
fn renew_at(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now);
    now + (life * 4 / 5).clamp(
        SignedDuration::from_secs(10),
        SignedDuration::from_hours(24),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_that_show_themselves_are_written_again() {
        let downward = serde_json::json!([{"name": "v", "downwardAPI": {}}]);
        let nested =
            serde_json::json!([{"name": "v", "projected": {"sources": [{"downwardAPI": {}}]}}]);
        let other = serde_json::json!([{"name": "v", "configMap": {"name": "c"}}]);
        let pod = |volumes: &serde_json::Value, label: &str| -> Pod {
            let pod = serde_json::json!({"metadata": {"name": "p", "labels": {"l": label}},
                "spec": {"containers": [], "volumes": volumes}});
            serde_json::from_value(pod).unwrap()
        };
        for (volumes, label, want) in [
            (&downward, "b", true),
            (&nested, "b", true),
            (&downward, "a", false),
            (&other, "b", false),
        ] {
            let found = shows_change(&pod(volumes, label), &pod(volumes, "a"));
            assert_eq!(found, want, "{volumes} {label}");
        }
    }

    #[test]
    fn keys_become_files() {
        let payload = Payload::from([
            ("a".to_string(), b"1".to_vec()),
            ("b".to_string(), b"2".to_vec()),
        ]);
        let items = vec![KeyToPath {
            key: "a".into(),
            path: "x/y".into(),
            mode: Some(0o400),
        }];
        let gone = vec![KeyToPath {
            key: "z".into(),
            path: "z".into(),
            mode: None,
        }];
        type Row<'a> = (Option<&'a [KeyToPath]>, bool, Result<Vec<&'a str>, &'a str>);
        let table: [Row; 4] = [
            (None, false, Ok(vec!["a", "b"])),
            (Some(&items), false, Ok(vec!["x/y"])),
            (Some(&gone), true, Ok(vec![])),
            (
                Some(&gone),
                false,
                Err("references non-existent config key: z"),
            ),
        ];
        for (items, optional, want) in table {
            let mut content = Content::new();
            let part = Part {
                kind: Kind::ConfigMap,
                name: "m",
                items,
                optional,
            };
            let got = select(&payload, &part, 0o644, &mut content)
                .map(|()| content.keys().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(got, want.map_err(str::to_string));
        }
    }

    #[test]
    fn tokens_are_renewed_in_time() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (life, due) in [(3600, 2880), (600, 480), (30 * 86400, 86400)] {
            let expires = now + SignedDuration::from_secs(life);
            assert_eq!(renew_at(now, expires).duration_since(now).as_secs(), due);
        }
    }
}
