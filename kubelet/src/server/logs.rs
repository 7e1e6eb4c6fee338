//! `/containerLogs`: finds the right instance of the container and streams its log.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use tokio_stream::wrappers::ReceiverStream;

use super::{Refused, Shared, form, internal};
use crate::logs::read;
use crate::model::{self, RunState};

/// `PodLogOptions` as a query.
struct LogQuery(Vec<(String, String)>);

impl LogQuery {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }

    fn on(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True"))
    }
}

pub async fn serve(
    State(server): State<Shared>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let query = LogQuery(form::pairs(query.as_deref().unwrap_or_default()));
    let found = server.pod(&namespace, &pod, None)?;
    if model::any_container(&found, &container).is_none() {
        return Err((
            StatusCode::NOT_FOUND,
            format!("container \"{container}\" not found in pod \"{pod}\""),
        ));
    }
    let view = server
        .node
        .runtime
        .pod_view(model::uid(&found), &mut Default::default())
        .await
        .map_err(|e| internal(e.message()))?;
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let instance = match query.on("previous") {
        true => {
            let latest = view
                .latest(&container)
                .filter(|c| c.state == RunState::Exited && waits(&found, &container));
            let previous = latest.or_else(|| view.previous(&container));
            previous.ok_or_else(|| {
                bad(format!(
                    "previous terminated container \"{container}\" in pod \"{pod}\" not found"
                ))
            })?
        }
        false => view
            .latest(&container)
            .filter(|c| c.state != RunState::Created)
            .ok_or_else(|| {
                let reason = waiting_reason(&found, &container);
                bad(format!(
                    "container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"
                ))
            })?,
    };
    let options = read::Options {
        follow: query.on("follow") && instance.state == RunState::Running,
        tail: query.number("tailLines"),
        since: since(&query),
        timestamps: query.on("timestamps"),
        limit: query.number("limitBytes"),
        stream: match query.get("stream") {
            Some("Stdout") => Some(false),
            Some("Stderr") => Some(true),
            _ => None,
        },
    };
    let (out, parts) = tokio::sync::mpsc::channel(4);
    let (path, id, runtime) = (
        instance.log_path.clone(),
        instance.id.clone(),
        server.node.runtime.clone(),
    );
    tokio::spawn(async move {
        let running = || async {
            runtime
                .container_status(&id)
                .await
                .is_ok_and(|s| model::run_state(s.state) == RunState::Running)
        };
        if let Err(error) = read::send(path.into(), options, out.clone(), running).await {
            // The reader may be gone already.
            let _ = out.send(Err(error)).await;
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/plain")];
    Ok((headers, Body::from_stream(ReceiverStream::new(parts))).into_response())
}

fn since(query: &LogQuery) -> Option<Timestamp> {
    let at = query.number("sinceTime");
    at.or_else(|| {
        query
            .number("sinceSeconds")
            .map(|s| Timestamp::now() - SignedDuration::from_secs(s))
    })
}

fn state<'a>(
    pod: &'a k8s_openapi::api::core::v1::Pod,
    name: &str,
) -> Option<&'a k8s_openapi::api::core::v1::ContainerState> {
    let status = pod.status.as_ref()?;
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    all.into_iter().find(|s| s.name == name)?.state.as_ref()
}

/// Whether the newest instance has ended and another one is due.
fn waits(pod: &k8s_openapi::api::core::v1::Pod, name: &str) -> bool {
    state(pod, name).is_some_and(|s| s.waiting.is_some())
}

fn waiting_reason(pod: &k8s_openapi::api::core::v1::Pod, name: &str) -> String {
    let waiting = state(pod, name).and_then(|s| s.waiting.as_ref());
    waiting
        .and_then(|w| w.reason.clone())
        .unwrap_or_else(|| "ContainerCreating".into())
}
