//! Which resources the API server has, for controllers that deal with all of them.

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResource, APIResourceList};
use kube::discovery::ApiResource;

use crate::frame::Result;

/// One resource in the version that its group prefers.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovered {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Discovered {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// Everything served, and what could not be found out (an aggregated API that is down, say).
pub async fn discover(client: &kube::Client) -> Result<(Vec<Discovered>, Vec<String>)> {
    let groups: APIGroupList = client.request(get("/apis")?).await?;
    let mut versions = vec![(String::new(), "v1".to_owned())];
    for group in groups.groups {
        let preferred = group
            .preferred_version
            .or(group.versions.into_iter().next());
        versions.extend(preferred.map(|v| (group.name, v.version)));
    }
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    let lists = versions.into_iter().map(|(group, version)| async move {
        let list = resources(client, &group, &version).await;
        (group, version, list)
    });
    let mut lists = futures::stream::iter(lists).buffered(8);
    while let Some((group, version, list)) = lists.next().await {
        match list {
            Ok(list) => found.extend(list),
            Err(error) => failures.push(format!("{group}/{version}: {error}")),
        }
    }
    Ok((found, failures))
}

/// What one version of a group (`""` is the core one) has.
pub async fn resources(
    client: &kube::Client,
    group: &str,
    version: &str,
) -> Result<Vec<Discovered>> {
    let path = match group {
        "" => format!("/api/{version}"),
        _ => format!("/apis/{group}/{version}"),
    };
    let list: APIResourceList = client.request(get(&path)?).await?;
    let resources = list.resources.into_iter();
    Ok(resources
        .filter_map(|r| convert(group, version, r))
        .collect())
}

fn get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path)
        .body(Vec::new())
        .map_err(|e| crate::frame::Error::Other(e.to_string()))
}

fn convert(group: &str, version: &str, resource: APIResource) -> Option<Discovered> {
    // Subresources are parts of an object, not objects.
    if resource.name.contains('/') {
        return None;
    }
    let group = resource
        .group
        .filter(|g| !g.is_empty())
        .unwrap_or_else(|| group.to_owned());
    let version = resource
        .version
        .filter(|v| !v.is_empty())
        .unwrap_or_else(|| version.to_owned());
    let api_version = if group.is_empty() {
        version.clone()
    } else {
        format!("{group}/{version}")
    };
    Some(Discovered {
        resource: ApiResource {
            group,
            version,
            api_version,
            kind: resource.kind,
            plural: resource.name,
        },
        namespaced: resource.namespaced,
        verbs: resource.verbs,
    })
}
