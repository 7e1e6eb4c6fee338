//! The `scale` subresource of whatever an autoscaler names, or a pod's owner is.

use std::collections::HashMap;

use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use parking_lot::Mutex;

use crate::discovery::{self, discover};
use crate::frame::{Error, Result};

/// How often a write that collides with another is tried.
const ATTEMPTS: usize = 5;

/// Finds and writes scales; remembers where resources are.
pub struct Targets {
    client: kube::Client,
    /// URL prefixes (up to the group's version) and plurals, by group, version and kind.
    known: Mutex<HashMap<(String, String), (String, String)>>,
}

impl Targets {
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            known: Mutex::default(),
        }
    }

    /// The kind in the version that is named, else in whichever its group is served in.
    async fn locate(&self, api_version: &str, kind: &str) -> Result<(String, String)> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.known.lock().get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let mut served = match discovery::resources(&self.client, group, version).await {
            Err(error) if !error.is_not_found() => return Err(error),
            Err(_) => Vec::new(),
            Ok(served) => served,
        };
        if !served.iter().any(|d| d.resource.kind == kind) {
            served = discover(&self.client).await?.0;
        }
        let found = served
            .into_iter()
            .find(|d| d.resource.kind == kind && d.resource.group == group && d.namespaced);
        let Some(found) = found else {
            return Err(Error::Other(format!(
                "no matches for kind {kind:?} in group {group:?}"
            )));
        };
        let prefix = match group {
            "" => format!("/api/{}", found.resource.version),
            _ => format!("/apis/{}", found.resource.api_version),
        };
        let located = (prefix, found.resource.plural);
        self.known.lock().insert(key, located.clone());
        Ok(located)
    }

    async fn path(&self, namespace: &str, target: &CrossVersionObjectReference) -> Result<String> {
        let version = target.api_version.as_deref().unwrap_or("v1");
        let (prefix, plural) = self.locate(version, &target.kind).await?;
        let name = &target.name;
        Ok(format!(
            "{prefix}/namespaces/{namespace}/{plural}/{name}/scale"
        ))
    }

    fn forget(&self, target: &CrossVersionObjectReference) {
        let version = target.api_version.clone().unwrap_or_else(|| "v1".into());
        self.known.lock().remove(&(version, target.kind.clone()));
    }

    pub async fn get(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> Result<Scale> {
        let path = self.path(namespace, target).await?;
        let got = self.client.request::<Scale>(request(&path, None)?).await;
        got.map_err(|error| {
            // The resource may have moved to another version.
            self.forget(target);
            error.into()
        })
    }

    /// `None` if the object does not exist. Fails if its kind has no scale.
    pub async fn find(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> Result<Option<Scale>> {
        match self.get(namespace, target).await {
            Err(error) if error.is_not_found() => {}
            got => return got.map(Some),
        }
        let version = target.api_version.as_deref().unwrap_or("v1");
        let (prefix, plural) = self.locate(version, &target.kind).await?;
        let list = self
            .client
            .request::<APIResourceList>(request(&prefix, None)?);
        let subresource = format!("{plural}/scale");
        if list.await?.resources.iter().any(|r| r.name == subresource) {
            return Ok(None);
        }
        let resource = match version.split_once('/') {
            Some((group, _)) => format!("{plural}.{group}"),
            None => plural,
        };
        Err(Error::Other(format!(
            "{resource} does not implement the scale subresource"
        )))
    }

    pub async fn set(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
        mut scale: Scale,
        replicas: i32,
    ) -> Result<()> {
        let path = self.path(namespace, target).await?;
        for attempt in 1.. {
            scale.spec = Some(ScaleSpec {
                replicas: Some(replicas),
            });
            let put = request(&path, Some(&scale))?;
            match self.client.request::<Scale>(put).await.map_err(Error::from) {
                Err(error) if error.is_conflict() && attempt < ATTEMPTS => {
                    scale = self.get(namespace, target).await?;
                }
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        Ok(())
    }
}

fn request(path: &str, put: Option<&Scale>) -> Result<http::Request<Vec<u8>>> {
    let other = |e: &dyn std::error::Error| Error::Other(e.to_string());
    let built = match put {
        None => http::Request::get(path).body(Vec::new()),
        Some(scale) => http::Request::put(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(scale).map_err(|e| other(&e))?),
    };
    built.map_err(|e| other(&e))
}
