//! Getting the image of a container or of a volume onto the node, by its pull policy.

use std::time::Instant;

use base64::Engine;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::context::{Node, Report};
use crate::model;
use crate::objects::Kind;

/// A Kubernetes waiting reason and its message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    /// The image, of a container or a volume, that could not be had; empty for any other failure.
    pub image: String,
}

/// An image by its reference, and when to pull it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub image: &'a str,
    pub policy: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    pub fn by(container: &'a Container) -> Self {
        Wanted {
            image: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref(),
        }
    }

    /// `Always` for the tag `latest` or none, else `IfNotPresent`, where the API server has not said it.
    fn policy(&self) -> &str {
        let last = self.image.rsplit('/').next().unwrap_or(self.image);
        let latest =
            !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
        self.policy
            .unwrap_or(if latest { "Always" } else { "IfNotPresent" })
    }
}

pub async fn ensure(
    node: &Node,
    pod: &Pod,
    wanted: Wanted<'_>,
    report: &Report<'_>,
    sandbox: cri::PodSandboxConfig,
) -> Result<cri::Image, Failure> {
    let image = wanted.image;
    let failure = |reason, message| Failure {
        reason,
        message,
        image: image.to_owned(),
    };
    let inspect = |e: tonic::Status| {
        let reason = if e.code() == tonic::Code::InvalidArgument {
            "InvalidImageName"
        } else {
            "ImageInspectError"
        };
        failure(
            reason,
            format!("Failed to inspect image \"{image}\": {}", e.message()),
        )
    };
    let present = node.runtime.image_status(image).await.map_err(inspect)?;
    match (wanted.policy(), present) {
        ("Never", None) => {
            let message =
                format!("Container image \"{image}\" is not present with pull policy of Never");
            report.warning("ErrImageNeverPull", &message);
            return Err(failure("ErrImageNeverPull", message));
        }
        ("Never" | "IfNotPresent", Some(found)) => {
            report.normal("Pulled", &format!("Container image \"{image}\" already present on machine and can be accessed by the pod"));
            return Ok(found);
        }
        _ => {}
    }
    report.normal("Pulling", &format!("Pulling image \"{image}\""));
    let started = Instant::now();
    let pulled = pull(node, pod, image, sandbox).await;
    if let Err(message) = pulled {
        report.warning(
            "Failed",
            &format!("Failed to pull image \"{image}\": {message}"),
        );
        report.warning("Failed", "Error: ErrImagePull");
        return Err(failure("ErrImagePull", message));
    }
    let found = node.runtime.image_status(image).await.map_err(inspect)?;
    let found = found.ok_or_else(|| {
        let message = format!("image \"{image}\" vanished after it was pulled");
        failure("ErrImagePull", message)
    })?;
    let took = go_duration(started.elapsed().as_millis());
    report.normal("Pulled", &format!("Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {} bytes.", found.size));
    Ok(found)
}

async fn pull(
    node: &Node,
    pod: &Pod,
    image: &str,
    sandbox: cri::PodSandboxConfig,
) -> Result<(), String> {
    let mut credentials = Vec::new();
    for reference in model::spec(pod).image_pull_secrets.iter().flatten() {
        // A secret that is missing is no reason not to try without it.
        if let Ok(Some(secret)) = node
            .objects
            .get(Kind::Secret, model::namespace(pod), &reference.name)
            .await
        {
            let raw = secret
                .get(".dockerconfigjson")
                .or_else(|| secret.get(".dockercfg"));
            credentials.extend(raw.and_then(|raw| login(raw, image)));
        }
    }
    let mut last = None;
    for auth in credentials
        .into_iter()
        .map(Some)
        .chain(std::iter::once(None))
    {
        match node.runtime.pull_image(image, auth, sandbox.clone()).await {
            Ok(_) => return Ok(()),
            Err(e) => last = last.or(Some(e.message().to_string())),
        }
    }
    Err(last.unwrap_or_default())
}

/// The login for the image's registry from a docker configuration.
fn login(raw: &[u8], image: &str) -> Option<cri::AuthConfig> {
    let config: serde_json::Value = serde_json::from_slice(raw).ok()?;
    let auths = config.get("auths").unwrap_or(&config).as_object()?;
    let registry = registry(image);
    let (_, entry) = auths
        .iter()
        .filter(|(key, _)| matches(key, registry, image))
        .max_by_key(|(key, _)| key.len())?;
    let text = |name: &str| {
        entry
            .get(name)
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_string()
    };
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(text("auth"))
            .ok()?;
        let (user, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        (username, password) = (user.to_string(), secret.trim_end_matches('\0').to_string());
    }
    Some(cri::AuthConfig {
        username,
        password,
        identity_token: text("identitytoken"),
        ..Default::default()
    })
}

fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn matches(key: &str, registry: &str, image: &str) -> bool {
    let key = key
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or(key.strip_suffix("/v2"))
        .unwrap_or(key);
    let key = if key == "index.docker.io" {
        "docker.io"
    } else {
        key
    };
    key == registry
        || image
            .strip_prefix(key)
            .is_some_and(|rest| rest.starts_with(['/', ':', '@']))
}

/// Milliseconds as Go writes a duration: `850ms`, `1.204s`, `1m2.5s`.
fn go_duration(millis: u128) -> String {
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let seconds = format!("{}.{:03}", millis / 1000 % 60, millis % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if millis < 60_000 {
        format!("{seconds}s")
    } else {
        format!("{}m{seconds}s", millis / 60_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_policies() {
        for (ms, want) in [
            (850, "850ms"),
            (1204, "1.204s"),
            (2000, "2s"),
            (62_500, "1m2.5s"),
        ] {
            assert_eq!(go_duration(ms), want);
        }
        for (image, want) in [
            ("a", "Always"),
            ("r.io:5000/a", "Always"),
            ("a:1", "IfNotPresent"),
            ("a:latest", "Always"),
            ("a@sha256:00", "IfNotPresent"),
        ] {
            let c = Container {
                image: Some(image.into()),
                ..Default::default()
            };
            assert_eq!(Wanted::by(&c).policy(), want, "{image}");
        }
    }

    #[test]
    fn logins() {
        let raw = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"r.io/team":{"username":"a","password":"b"}}}"#;
        assert_eq!(login(raw, "busybox").unwrap().username, "u");
        assert_eq!(login(raw, "r.io/team/x:1").unwrap().password, "b");
        assert!(login(raw, "r.io/other/x:1").is_none());
    }
}
