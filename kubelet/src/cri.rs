//! The container runtime over CRI v1 (gRPC on a unix socket): one lazily connected
//! channel that reconnects by itself, and the calls that the kubelet makes.

use std::collections::HashMap;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::model::{self, ContainerView, PodView, RunState, keys};

const MAX_MESSAGE: usize = 16 << 20;
const CALL: Duration = Duration::from_secs(120);

pub type Result<T> = std::result::Result<T, Status>;

#[derive(Clone, Debug)]
pub struct Runtime {
    channel: Channel,
}

/// What never changes about containers and sandboxes once seen, so that a pass asks only for what can.
#[derive(Debug, Default)]
pub struct ViewCache {
    exited: HashMap<String, ContainerView>,
    ips: HashMap<String, Vec<String>>,
}

impl Runtime {
    /// `endpoint` is a socket path, with or without `unix://`.
    pub fn connect(endpoint: &str) -> std::result::Result<Self, tonic::transport::Error> {
        let path = endpoint
            .strip_prefix("unix://")
            .unwrap_or(endpoint)
            .to_string();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let channel =
            Endpoint::try_from("http://localhost")?.connect_with_connector_lazy(connector);
        Ok(Runtime { channel })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn service(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub async fn version(&self) -> Result<cri::VersionResponse> {
        let request = limited(cri::VersionRequest {
            version: "v1".into(),
        });
        Ok(self.service().version(request).await?.into_inner())
    }

    /// The conditions `RuntimeReady` and `NetworkReady`.
    pub async fn status(&self) -> Result<Vec<cri::RuntimeCondition>> {
        let response = self
            .service()
            .status(limited(cri::StatusRequest { verbose: false }))
            .await?;
        Ok(response.into_inner().status.unwrap_or_default().conditions)
    }

    pub async fn list_sandboxes(&self, uid: Option<&str>) -> Result<Vec<cri::PodSandbox>> {
        let filter = uid.map(|uid| cri::PodSandboxFilter {
            label_selector: by_uid(uid),
            ..Default::default()
        });
        Ok(self
            .service()
            .list_pod_sandbox(limited(cri::ListPodSandboxRequest { filter }))
            .await?
            .into_inner()
            .items)
    }

    pub async fn list_containers(&self, uid: Option<&str>) -> Result<Vec<cri::Container>> {
        let filter = uid.map(|uid| cri::ContainerFilter {
            label_selector: by_uid(uid),
            ..Default::default()
        });
        Ok(self
            .service()
            .list_containers(limited(cri::ListContainersRequest { filter }))
            .await?
            .into_inner()
            .containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus> {
        let request = limited(cri::ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        });
        let status = self
            .service()
            .container_status(request)
            .await?
            .into_inner()
            .status;
        status.ok_or_else(|| Status::internal("the runtime answered without a container status"))
    }

    /// Everything that the runtime holds for the pod.
    pub async fn pod_view(&self, uid: &str, cache: &mut ViewCache) -> Result<PodView> {
        let (sandboxes, containers) = tokio::try_join!(
            self.list_sandboxes(Some(uid)),
            self.list_containers(Some(uid))
        )?;
        let mut view = PodView::default();
        for s in &sandboxes {
            let mut sandbox = model::sandbox_view(s);
            if sandbox.ready {
                sandbox.ips = self.ips(&sandbox.id, cache).await?;
            }
            view.sandboxes.push(sandbox);
        }
        for c in &containers {
            if let Some(known) = cache.exited.get(&c.id) {
                view.containers.push(known.clone());
                continue;
            }
            let status = match self.container_status(&c.id).await {
                Err(gone) if gone.code() == Code::NotFound => continue,
                other => other?,
            };
            let mut seen = model::container_view(&c.pod_sandbox_id, &status);
            if seen.state == RunState::Exited {
                if let Some(message) = crate::logs::termination_message(&status).await {
                    seen.message = message;
                }
                cache.exited.insert(c.id.clone(), seen.clone());
            }
            view.containers.push(seen);
        }
        cache
            .exited
            .retain(|id, _| containers.iter().any(|c| &c.id == id));
        cache
            .ips
            .retain(|id, _| sandboxes.iter().any(|s| &s.id == id));
        view.sort();
        Ok(view)
    }

    async fn ips(&self, id: &str, cache: &mut ViewCache) -> Result<Vec<String>> {
        if let Some(ips) = cache.ips.get(id) {
            return Ok(ips.clone());
        }
        let request = limited(cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        });
        let status = self
            .service()
            .pod_sandbox_status(request)
            .await?
            .into_inner()
            .status
            .unwrap_or_default();
        let ips = model::sandbox_ips(&status);
        cache.ips.insert(id.to_string(), ips.clone());
        Ok(ips)
    }

    pub async fn run_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        handler: String,
    ) -> Result<String> {
        let request = limited(cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler,
        });
        Ok(self
            .service()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = limited(cri::StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        });
        absent_is_fine(self.service().stop_pod_sandbox(request).await)
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.stop_sandbox(id).await?;
        let request = limited(cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        });
        absent_is_fine(self.service().remove_pod_sandbox(request).await)
    }

    pub async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        pod: cri::PodSandboxConfig,
    ) -> Result<String> {
        let request = limited(cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(pod),
        });
        Ok(self
            .service()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = limited(cri::StartContainerRequest {
            container_id: id.into(),
        });
        self.service().start_container(request).await.map(|_| ())
    }

    /// TERM, and KILL once `grace` seconds are over; returns when the container has ended.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let mut request = Request::new(cri::StopContainerRequest {
            container_id: id.into(),
            timeout: grace,
        });
        request.set_timeout(CALL + Duration::from_secs(u64::try_from(grace).unwrap_or(0)));
        absent_is_fine(self.service().stop_container(request).await)
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = limited(cri::RemoveContainerRequest {
            container_id: id.into(),
        });
        absent_is_fine(self.service().remove_container(request).await)
    }

    pub async fn update_resources(
        &self,
        id: &str,
        resources: cri::LinuxContainerResources,
    ) -> Result<()> {
        let request = limited(cri::UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(resources),
            ..Default::default()
        });
        self.service()
            .update_container_resources(request)
            .await
            .map(|_| ())
    }

    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = limited(cri::ReopenContainerLogRequest {
            container_id: id.into(),
        });
        self.service()
            .reopen_container_log(request)
            .await
            .map(|_| ())
    }

    /// Runs a command to its end. The runtime enforces the timeout too; ours only guards against its silence.
    pub async fn exec_sync(
        &self,
        id: &str,
        cmd: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let mut request = Request::new(cri::ExecSyncRequest {
            container_id: id.into(),
            cmd: cmd.to_vec(),
            timeout: seconds,
        });
        if !timeout.is_zero() {
            request.set_timeout(timeout + Duration::from_secs(2));
        }
        Ok(self.service().exec_sync(request).await?.into_inner())
    }

    pub async fn image_status(&self, image: &str) -> Result<Option<cri::Image>> {
        let request = limited(cri::ImageStatusRequest {
            image: Some(image_spec(image)),
            verbose: false,
        });
        Ok(self
            .images()
            .image_status(request)
            .await?
            .into_inner()
            .image)
    }

    /// The snapshot that the layers of an image end in; containerd tells it.
    pub async fn chain_id(&self, image: &str) -> Result<String> {
        let request = limited(cri::ImageStatusRequest {
            image: Some(image_spec(image)),
            verbose: true,
        });
        let info = self.images().image_status(request).await?.into_inner().info;
        let info = info
            .get("info")
            .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        info.as_ref()
            .and_then(|info| info["chainID"].as_str())
            .map(str::to_owned)
            .ok_or_else(|| Status::unimplemented("the runtime does not tell the layers of images"))
    }

    /// The name of containerd's snapshotter, from the directory in which it keeps images.
    pub async fn snapshotter(&self) -> Result<String> {
        let filesystem = self.image_filesystem().await?;
        let place = filesystem.and_then(|f| f.fs_id).map(|id| id.mountpoint);
        place
            .as_deref()
            .and_then(|place| place.rsplit_once("io.containerd.snapshotter.v1."))
            .map(|(_, name)| name.trim_end_matches('/').to_owned())
            .ok_or_else(|| Status::unimplemented("the runtime does not tell its snapshotter"))
    }

    /// Pulls without a deadline: a large image over a thin line takes what it takes.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        pod: cri::PodSandboxConfig,
    ) -> Result<String> {
        let request = cri::PullImageRequest {
            image: Some(image_spec(image)),
            auth,
            sandbox_config: Some(pod),
        };
        Ok(self
            .images()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    pub async fn list_images(&self) -> Result<Vec<cri::Image>> {
        Ok(self
            .images()
            .list_images(limited(cri::ListImagesRequest { filter: None }))
            .await?
            .into_inner()
            .images)
    }

    pub async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>> {
        let request = limited(cri::ListContainerStatsRequest { filter: None });
        Ok(self
            .service()
            .list_container_stats(request)
            .await?
            .into_inner()
            .stats)
    }

    pub async fn image_filesystem(&self) -> Result<Option<cri::FilesystemUsage>> {
        let response = self
            .images()
            .image_fs_info(limited(cri::ImageFsInfoRequest {}))
            .await?;
        Ok(response.into_inner().image_filesystems.into_iter().next())
    }
}

pub fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: image.to_string(),
        user_specified_image: image.to_string(),
        ..Default::default()
    }
}

fn by_uid(uid: &str) -> HashMap<String, String> {
    HashMap::from([(keys::POD_UID.to_string(), uid.to_string())])
}

pub fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL);
    request
}

fn absent_is_fine<T>(result: std::result::Result<T, Status>) -> Result<()> {
    match result {
        Err(s) if s.code() != Code::NotFound => Err(s),
        _ => Ok(()),
    }
}
