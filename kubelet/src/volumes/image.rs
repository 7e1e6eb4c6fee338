//! Volumes that show what is in an image. CRI's own way, the `image` of a mount, is one that the containerd of Debian
//! does not know yet, and CRI has no word for a part of an image in the bindings that we use. So with containerd the
//! image, which CRI has pulled and unpacked, is mounted by us: a read-only view in containerd's snapshotter, as `ctr
//! images mount` makes one. Every containerd can do that; with another runtime the volume is left to CRI.
//!
//! A view is kept until the pod ends. It is named by pod, volume and content, so that a container that starts again
//! after its image has moved on gets the new one, while others go on with the old.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::local;
use crate::container::files;
use crate::cri::Runtime;

/// Below a pod's directory: a directory for each volume, in it one for each content.
const PLACE: &str = "volumes/kubernetes.io~image";

#[derive(Clone, PartialEq, Message)]
struct ViewRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
}

/// Of `Mounts` and of `Remove`.
#[derive(Clone, PartialEq, Message)]
struct KeyRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, Message)]
struct MountsResponse {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, repeated, tag = "4")]
    options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

pub fn place(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join(PLACE).join(volume)
}

/// Mounts the image with this id for a volume of a pod and says where.
pub async fn mount(
    runtime: &Runtime,
    pod_dir: &Path,
    volume: &str,
    image: &str,
) -> Result<PathBuf, String> {
    let said = |e: Status| e.message().to_string();
    let chain = runtime.chain_id(image).await.map_err(said)?;
    let content = chain.rsplit(':').next().unwrap_or(&chain);
    let at = place(pod_dir, volume).join(content);
    if local::is_mount(&at).map_err(|e| e.to_string())? {
        return Ok(at);
    }
    let snapshotter = runtime.snapshotter().await.map_err(said)?;
    let mounts = view(
        runtime,
        snapshotter,
        key(pod_dir, volume, content),
        chain.clone(),
    )
    .await
    .map_err(said)?;
    let there = at.clone();
    let work = move || -> io::Result<()> {
        std::fs::create_dir_all(&there)?;
        mounts.iter().try_for_each(|m| attach(m, &there))
    };
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|e| e.to_string())?;
    done.map(|()| at)
        .map_err(|e| format!("failed to mount image {image}: {e}"))
}

/// Takes away all that was mounted for a pod.
pub async fn release(runtime: &Runtime, pod_dir: &Path) -> Result<(), String> {
    for volume in names(&pod_dir.join(PLACE)) {
        for content in names(&place(pod_dir, &volume)) {
            let at = place(pod_dir, &volume).join(&content);
            files::unmount(&at).map_err(|e| format!("{}: {e}", at.display()))?;
            let said = |e: Status| e.message().to_string();
            let request = KeyRequest {
                snapshotter: runtime.snapshotter().await.map_err(said)?,
                key: key(pod_dir, &volume, &content),
            };
            match call::<_, Empty>(runtime, "Remove", request).await {
                Err(e) if e.code() != Code::NotFound => return Err(said(e)),
                _ => {}
            }
            // The directory tells that there may be a view to remove, so it goes last.
            std::fs::remove_dir(&at).map_err(|e| format!("{}: {e}", at.display()))?;
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|e| e.file_name().into_string().ok());
    names.collect()
}

/// The name of a view; a pod's directory has the name of its uid.
fn key(pod_dir: &Path, volume: &str, content: &str) -> String {
    let uid = pod_dir.file_name().unwrap_or_default().to_string_lossy();
    format!("kubelet-{uid}-{volume}-{content}")
}

async fn view(
    runtime: &Runtime,
    snapshotter: String,
    key: String,
    parent: String,
) -> Result<Vec<Mount>, Status> {
    let existing = KeyRequest {
        snapshotter: snapshotter.clone(),
        key: key.clone(),
    };
    // Without the label it would be collected as garbage.
    let root = (
        "containerd.io/gc.root".to_owned(),
        jiff::Timestamp::now().to_string(),
    );
    let request = ViewRequest {
        snapshotter,
        key,
        parent,
        labels: HashMap::from([root]),
    };
    let made = call::<_, MountsResponse>(runtime, "View", request).await;
    let made = match made {
        Err(e) if e.code() == Code::AlreadyExists => call(runtime, "Mounts", existing).await,
        made => made,
    };
    Ok(made?.mounts)
}

async fn call<Q, A>(runtime: &Runtime, method: &str, message: Q) -> Result<A, Status>
where
    Q: Message + Clone + 'static,
    A: Message + Default + Clone + 'static,
{
    let mut grpc = tonic::client::Grpc::new(runtime.channel());
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let mut request = crate::cri::limited(message);
    let namespace = MetadataValue::from_static("k8s.io");
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    let path = format!("/containerd.services.snapshots.v1.Snapshots/{method}");
    let path =
        http::uri::PathAndQuery::try_from(path).map_err(|e| Status::internal(e.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    Ok(grpc.unary(request, path, codec).await?.into_inner())
}

fn attach(mount: &Mount, at: &Path) -> io::Result<()> {
    let (flags, data) = split(&mount.options);
    // The kernel takes no more than a page of options, and paths of snapshots are long: those of an image with many layers
    // are given as open directories.
    let (held, data) = short(data)?;
    let (source, kind) = (Some(mount.source.as_str()), Some(mount.kind.as_str()));
    let kind = kind.filter(|_| !flags.contains(MsFlags::MS_BIND));
    let flags = flags | MsFlags::MS_RDONLY;
    nix::mount::mount(source, at, kind, flags, Some(data.as_str()))?;
    drop(held);
    if flags.contains(MsFlags::MS_BIND) {
        // A bind mount takes over what it is bound to; only a second step makes it read-only.
        let flags = flags | MsFlags::MS_REMOUNT;
        nix::mount::mount(None::<&str>, at, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

/// Options that are flags, and those that are the file system's own.
fn split(options: &[String]) -> (MsFlags, Vec<&str>) {
    let (mut flags, mut own) = (MsFlags::empty(), Vec::new());
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            other => own.push(other),
        }
    }
    (flags, own)
}

/// The options as one text, with the directories that it names by their descriptors.
fn short(options: Vec<&str>) -> io::Result<(Vec<std::fs::File>, String)> {
    const PAGE: usize = 4096;
    let plain = options.join(",");
    if plain.len() < PAGE {
        return Ok((Vec::new(), plain));
    }
    let (mut held, mut all) = (Vec::new(), Vec::new());
    for option in options {
        let Some(layers) = option.strip_prefix("lowerdir=") else {
            all.push(option.to_owned());
            continue;
        };
        let mut names = Vec::new();
        for layer in layers.split(':') {
            let dir = std::fs::File::open(layer)?;
            names.push(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            held.push(dir);
        }
        all.push(format!("lowerdir={}", names.join(":")));
    }
    Ok((held, all.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_mounts() {
        let list = |options: &[&str]| options.iter().map(|o| o.to_string()).collect::<Vec<_>>();
        for (options, flags, own) in [
            (
                list(&["ro", "rbind"]),
                MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REC,
                vec![],
            ),
            (
                list(&["index=off", "lowerdir=/a:/b"]),
                MsFlags::empty(),
                vec!["index=off", "lowerdir=/a:/b"],
            ),
        ] {
            assert_eq!(split(&options), (flags, own));
        }
    }

    #[test]
    fn options_fit_into_a_page() {
        let (held, text) = short(vec!["index=off", "lowerdir=/a:/b"]).unwrap();
        assert_eq!((held.len(), text.as_str()), (0, "index=off,lowerdir=/a:/b"));

        let dir = std::env::temp_dir();
        let long = format!("{}{}", dir.display(), "/.".repeat(100));
        let layers = vec![long; 100].join(":");
        let option = format!("lowerdir={layers}");
        let (held, text) = short(vec!["index=off", &option]).unwrap();
        assert_eq!(held.len(), 100);
        assert!(text.len() < 4096 && text.starts_with("index=off,lowerdir=/proc/self/fd/"));
        let first = format!("/proc/self/fd/{}", held[0].as_raw_fd());
        let same = std::fs::canonicalize(dir).unwrap();
        assert_eq!(std::fs::read_link(first).unwrap(), same);
    }

    #[test]
    fn views_are_named_by_what_they_show() {
        let key = key(Path::new("/var/lib/kubelet/pods/u-1"), "v", "0a");
        assert_eq!(key, "kubelet-u-1-v-0a");
    }
}
