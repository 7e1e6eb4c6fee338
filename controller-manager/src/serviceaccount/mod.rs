//! What every namespace is given: a ServiceAccount `default`, and the cluster's certificate authority as a ConfigMap.
//! [`tokens`] fills Secrets that ask for the token of an account.

pub mod signer;
pub mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{CancellationToken, Next, WorkQueue, key_of, split_key};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use serde_json::json;

use crate::frame::{Context, Result, work};

const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

fn is_active(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
        && namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
}

/// Enqueues a namespace when it, or what it should have, changes.
fn watch<K>(context: &Context, owned: &client::Informer<K>) -> WorkQueue<String>
where
    K: kube::Resource + Send + Sync + 'static,
{
    let queue = WorkQueue::new();
    let q = queue.clone();
    context
        .informers()
        .namespaces()
        .informer
        .on_change(move |_, new| new.into_iter().for_each(|n| q.add(n.name_any())));
    let q = queue.clone();
    owned.on_change(move |old, new| {
        let key = new.or(old).map(|o| key_of(o.as_ref())).unwrap_or_default();
        q.add(split_key(&key).0.to_owned());
    });
    queue
}

/// Runs the controller that makes ServiceAccounts.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let accounts = context.informers().service_accounts();
    let queue = watch(&context, &accounts.informer);
    context.informers().namespaces().informer.synced().await;
    accounts.informer.synced().await;
    let context = &context;
    work(&queue, 1, &token, |namespace| async move {
        let active = context
            .informers()
            .namespaces()
            .informer
            .get(&namespace)
            .is_some_and(|n| is_active(&n));
        if active
            && accounts
                .informer
                .get(&format!("{namespace}/default"))
                .is_none()
        {
            let account = ServiceAccount {
                metadata: ObjectMeta {
                    name: Some("default".into()),
                    namespace: Some(namespace.clone()),
                    ..Default::default()
                },
                ..Default::default()
            };
            created(accounts.create(&namespace, &account).await)?;
        }
        Ok(Next::Done)
    })
    .await;
}

/// Runs the controller that publishes the certificate authority.
pub async fn run_root_ca(context: Arc<Context>, token: CancellationToken) {
    let Some(ca) = context.settings.root_ca.clone() else {
        tracing::info!(
            "no --root-ca-file: the certificate authority is not published to namespaces"
        );
        return;
    };
    let data = BTreeMap::from([("ca.crt".to_owned(), ca)]);
    let maps = context.informers().root_ca_maps();
    let queue = watch(&context, &maps.informer);
    context.informers().namespaces().informer.synced().await;
    maps.informer.synced().await;
    let (context, data) = (&context, &data);
    work(&queue, 1, &token, |namespace| async move {
        if !context
            .informers()
            .namespaces()
            .informer
            .get(&namespace)
            .is_some_and(|n| is_active(&n))
        {
            return Ok(Next::Done);
        }
        match maps.informer.get(&format!("{namespace}/{ROOT_CA}")) {
            Some(map) if map.data.as_ref() == Some(data) => {}
            Some(map) => maps.patch(&map, json!({"data": data})).await?,
            None => {
                let description = BTreeMap::from([(
                    "kubernetes.io/description".to_owned(),
                    ROOT_CA_DESCRIPTION.to_owned(),
                )]);
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(ROOT_CA.into()),
                        namespace: Some(namespace.clone()),
                        annotations: Some(description),
                        ..Default::default()
                    },
                    data: Some(data.clone()),
                    ..Default::default()
                };
                created(maps.create(&namespace, &map).await)?;
            }
        }
        Ok(Next::Done)
    })
    .await;
}

/// That someone else was faster, or the namespace gone by now, is as good.
fn created<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if !error.already_exists() && !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
