//! How the kubelet learns that a container ended without asking again and again.
//! containerd's own event stream comes first, because every version has it; then CRI's
//! `GetContainerEvents`; a runtime with neither is listed once a second.

use std::time::Duration;

use k8s_cri::v1::GetEventsRequest;
use prost::Message;
use tokio::sync::mpsc::UnboundedSender;
use tonic::{Code, Status};

use crate::cri::Runtime;

#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeEvent {
    /// The stream is up; whatever happened before may have been missed.
    Connected,
    /// The runtime does not answer.
    Lost,
    /// A container (or a sandbox) ended.
    Exited(String),
    /// Time to look at everything.
    Relist,
}

#[derive(Clone, PartialEq, Message)]
struct SubscribeRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    topic: String,
    #[prost(message, optional, tag = "4")]
    event: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct TaskExit {
    #[prost(string, tag = "1")]
    container_id: String,
    /// The process; equal to the container's id unless it was an exec.
    #[prost(string, tag = "2")]
    id: String,
}

/// Runs until the receiver is gone.
pub async fn follow(runtime: Runtime, out: UnboundedSender<RuntimeEvent>) {
    let mut delay = Duration::from_millis(20);
    while !out.is_closed() {
        let ended = match subscribe(&runtime, &out, &mut delay).await {
            Err(s) if s.code() == Code::Unimplemented => {
                match cri_events(&runtime, &out, &mut delay).await {
                    Err(s) if s.code() == Code::Unimplemented => relist(&runtime, &out).await,
                    other => other,
                }
            }
            other => other,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "the runtime's event stream ended");
        }
        if out.send(RuntimeEvent::Lost).is_err() {
            return;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(1));
    }
}

async fn subscribe(
    runtime: &Runtime,
    out: &UnboundedSender<RuntimeEvent>,
    delay: &mut Duration,
) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(runtime.channel());
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let filter = r#"namespace=="k8s.io",topic=="/tasks/exit""#.to_string();
    let mut request = tonic::Request::new(SubscribeRequest {
        filters: vec![filter],
    });
    request.metadata_mut().insert(
        "containerd-namespace",
        tonic::metadata::MetadataValue::from_static("k8s.io"),
    );
    let path =
        http::uri::PathAndQuery::from_static("/containerd.services.events.v1.Events/Subscribe");
    let codec = tonic_prost::ProstCodec::<SubscribeRequest, Envelope>::default();
    // The response headers come with the first event, so the stream counts as up once the runtime
    // answers a call made after the subscription was sent.
    let stream = grpc.server_streaming(request, path, codec);
    tokio::pin!(stream);
    let mut events = tokio::select! {
        biased;
        stream = &mut stream => stream?.into_inner(),
        version = runtime.version() => {
            version?;
            announce(out, delay);
            stream.await?.into_inner()
        }
    };
    announce(out, delay);
    while let Some(envelope) = events.message().await? {
        let Some(any) = envelope.event else { continue };
        let exit =
            TaskExit::decode(any.value.as_slice()).map_err(|e| Status::data_loss(e.to_string()))?;
        if exit.id == exit.container_id
            && out.send(RuntimeEvent::Exited(exit.container_id)).is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

async fn cri_events(
    runtime: &Runtime,
    out: &UnboundedSender<RuntimeEvent>,
    delay: &mut Duration,
) -> Result<(), Status> {
    let mut events = runtime
        .service()
        .get_container_events(GetEventsRequest {})
        .await?
        .into_inner();
    announce(out, delay);
    while let Some(event) = events.message().await? {
        if out.send(RuntimeEvent::Exited(event.container_id)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn relist(runtime: &Runtime, out: &UnboundedSender<RuntimeEvent>) -> Result<(), Status> {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        runtime.version().await?;
        if out.send(RuntimeEvent::Relist).is_err() {
            return Ok(());
        }
    }
}

fn announce(out: &UnboundedSender<RuntimeEvent>, delay: &mut Duration) {
    *delay = Duration::from_millis(20);
    // A closed receiver is noticed at the next event.
    let _ = out.send(RuntimeEvent::Connected);
}
