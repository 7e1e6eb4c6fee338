//! Secrets of the type `kubernetes.io/service-account-token`: whoever makes one, naming a ServiceAccount in an
//! annotation, finds a token for it inside. They go with their account.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use client::{CancellationToken, Next, WorkQueue, key_of, split_key};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::signer::{Signer, Subject};
use crate::frame::{Context, Error, Result, WORKERS, work};
use crate::meta::annotation;

const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const TOKEN: &str = "token";
const CA: &str = "ca.crt";
const NAMESPACE: &str = "namespace";

/// What is in need of work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Secret(String),
    /// A Secret that is gone, by its name, and the account that may still list it.
    Gone {
        account: String,
        secret: String,
    },
}

/// What is to be done about a Secret.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Keep,
    /// Its account does not exist (any more).
    Delete,
    /// These entries are missing or outdated; the token has yet to be signed.
    Fill {
        data: BTreeMap<&'static str, Vec<u8>>,
        token: bool,
    },
}

/// Decides about a Secret, given the account of the name that it has, and the authority of the cluster.
pub fn plan(secret: &Secret, account: Option<&ServiceAccount>, ca: Option<&str>) -> Plan {
    if annotation(secret, ACCOUNT_NAME).is_none_or(str::is_empty) {
        return Plan::Keep;
    }
    let wanted = annotation(secret, ACCOUNT_UID).filter(|uid| !uid.is_empty());
    let is_meant = |a: &&ServiceAccount| wanted.is_none() || a.metadata.uid.as_deref() == wanted;
    if account.filter(is_meant).is_none() {
        return Plan::Delete;
    }
    let held = |key: &str| {
        let data = secret.data.as_ref().and_then(|d| d.get(key));
        data.map(|bytes| bytes.0.as_slice()).unwrap_or_default()
    };
    let mut data = BTreeMap::new();
    if let Some(ca) = ca.filter(|ca| !ca.is_empty() && held(CA) != ca.as_bytes()) {
        data.insert(CA, ca.as_bytes().to_vec());
    }
    if held(NAMESPACE).is_empty() {
        let namespace = secret.namespace().unwrap_or_default();
        data.insert(NAMESPACE, namespace.into_bytes());
    }
    let token = held(TOKEN).is_empty();
    match data.is_empty() && !token {
        true => Plan::Keep,
        false => Plan::Fill { data, token },
    }
}

struct Controller {
    context: Arc<Context>,
    signer: Signer,
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let Some(signer) = context.settings.token_signer.clone() else {
        tracing::info!(
            "no --service-account-private-key-file: Secrets that ask for a token get none"
        );
        return;
    };
    let queue = WorkQueue::new();
    let informers = context.informers();
    let (secrets, accounts) = (
        &informers.token_secrets().informer,
        &informers.service_accounts().informer,
    );
    let q = queue.clone();
    secrets.on_change(move |old, new| {
        if let Some(secret) = new {
            q.add(Key::Secret(key_of(secret.as_ref())));
        } else if let Some(secret) = old
            && let Some(account) = annotation(secret.as_ref(), ACCOUNT_NAME)
        {
            q.add(Key::Gone {
                account: format!("{}/{account}", secret.namespace().unwrap_or_default()),
                secret: secret.name_any(),
            });
        }
    });
    let (q, copy) = (queue.clone(), secrets.clone());
    accounts.on_change(move |old, new| {
        let uid = |a: Option<&Arc<ServiceAccount>>| a.and_then(|a| a.uid());
        let Some(account) = new.or(old).filter(|_| uid(old) != uid(new)) else {
            return;
        };
        let (namespace, name) = (account.namespace().unwrap_or_default(), account.name_any());
        for secret in copy.namespace(&namespace) {
            if annotation(secret.as_ref(), ACCOUNT_NAME) == Some(&name) {
                q.add(Key::Secret(key_of(secret.as_ref())));
            }
        }
    });
    secrets.synced().await;
    accounts.synced().await;
    let controller = Controller {
        signer,
        context: context.clone(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        match key {
            Key::Secret(key) => self.fill(&key).await?,
            Key::Gone { account, secret } => self.forget(&account, &secret).await?,
        }
        Ok(Next::Done)
    }

    async fn fill(&self, key: &str) -> Result<()> {
        let secrets = self.context.informers().token_secrets();
        let Some(secret) = secrets.informer.get(key) else {
            return Ok(());
        };
        let ca = self.context.settings.root_ca.as_deref();
        let account = self.account(&secret).await?;
        match plan(&secret, account.as_deref(), ca) {
            Plan::Keep => Ok(()),
            Plan::Delete => secrets.delete_with(&secret, DeleteParams::default()).await,
            Plan::Fill { data, token } => {
                let Some(account) = account else {
                    return Ok(());
                };
                let patch = self.patch(&secret, &account, data, token)?;
                match secrets.patch_exact(&secret, patch).await {
                    // Somebody was faster: the next pass sees what they wrote.
                    Err(error) if !error.is_conflict() && !error.is_not_found() => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    /// The account that a Secret names; if the copy has none that fits, as the server has it: a Secret may well be
    /// seen before the account that was made a moment earlier.
    async fn account(&self, secret: &Secret) -> Result<Option<Arc<ServiceAccount>>> {
        let name = annotation(secret, ACCOUNT_NAME).unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        let namespace = secret.namespace().unwrap_or_default();
        let accounts = self.context.informers().service_accounts();
        let known = accounts.informer.get(&format!("{namespace}/{name}"));
        if let Some(known) = known
            && plan(secret, Some(&known), None) != Plan::Delete
        {
            return Ok(Some(known));
        }
        let fresh = accounts.api(&namespace).get_opt(name).await?;
        Ok(fresh.map(Arc::new))
    }

    fn patch(
        &self,
        secret: &Secret,
        account: &ServiceAccount,
        data: BTreeMap<&'static str, Vec<u8>>,
        token: bool,
    ) -> Result<Value> {
        let (namespace, name) = (secret.namespace().unwrap_or_default(), secret.name_any());
        let (account, uid) = (account.name_any(), account.uid().unwrap_or_default());
        let mut data = data;
        if token {
            let subject = Subject {
                namespace: &namespace,
                account: &account,
                account_uid: &uid,
                secret: &name,
            };
            let token = self.signer.token(subject).map_err(Error::Other)?;
            data.insert(TOKEN, token.into_bytes());
        }
        let data: BTreeMap<_, _> = data
            .into_iter()
            .map(|(key, bytes)| (key, BASE64.encode(bytes)))
            .collect();
        let annotations = json!({ACCOUNT_NAME: account, ACCOUNT_UID: uid});
        Ok(json!({"metadata": {"annotations": annotations}, "data": data}))
    }

    /// Takes a Secret that is gone off its account's list.
    async fn forget(&self, account: &str, secret: &str) -> Result<()> {
        let (namespace, name) = split_key(account);
        let secrets = self.context.informers().token_secrets();
        if secrets
            .informer
            .get(&format!("{namespace}/{secret}"))
            .is_some()
        {
            return Ok(());
        }
        let accounts = self.context.informers().service_accounts();
        let Some(fresh) = accounts.api(namespace).get_opt(name).await? else {
            return Ok(());
        };
        let listed = fresh.secrets.as_deref().unwrap_or_default();
        let left: Vec<_> = listed
            .iter()
            .filter(|r| r.name.as_deref() != Some(secret))
            .collect();
        if left.len() == listed.len() {
            return Ok(());
        }
        match accounts.patch_exact(&fresh, json!({"secrets": left})).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_secret_lacks() {
        let whole = || json!({"token": "dG9r", "ca.crt": "Y2E=", "namespace": "bnM="});
        let without = |key: &str| {
            let mut data = whole();
            data.as_object_mut().unwrap().remove(key);
            data
        };
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "robot", "uid": "u"}})).unwrap();
        let named = || json!({ACCOUNT_NAME: "robot"});
        let with_uid = |uid: &str| json!({ACCOUNT_NAME: "robot", ACCOUNT_UID: uid});
        let fill = |data: &[(&'static str, &str)], token| Plan::Fill {
            data: data
                .iter()
                .map(|(k, v)| (*k, v.as_bytes().to_vec()))
                .collect(),
            token,
        };
        let ca = Some("ca");
        for (annotations, data, there, ca, want) in [
            (
                named(),
                json!({}),
                true,
                ca,
                fill(&[(CA, "ca"), (NAMESPACE, "ns")], true),
            ),
            (
                named(),
                json!({}),
                true,
                None,
                fill(&[(NAMESPACE, "ns")], true),
            ),
            (with_uid("u"), whole(), true, ca, Plan::Keep),
            (with_uid("u"), without("token"), true, ca, fill(&[], true)),
            (
                with_uid("u"),
                without("ca.crt"),
                true,
                ca,
                fill(&[(CA, "ca")], false),
            ),
            (with_uid("u"), without("ca.crt"), true, None, Plan::Keep),
            (
                with_uid("u"),
                without("namespace"),
                true,
                ca,
                fill(&[(NAMESPACE, "ns")], false),
            ),
            // The authority was changed.
            (
                with_uid("u"),
                whole(),
                true,
                Some("new"),
                fill(&[(CA, "new")], false),
            ),
            (with_uid("other"), whole(), true, ca, Plan::Delete),
            (named(), json!({}), false, ca, Plan::Delete),
            (with_uid("u"), whole(), false, ca, Plan::Delete),
            // The API server takes none without a name.
            (json!({}), json!({}), false, ca, Plan::Keep),
        ] {
            let secret = serde_json::from_value(json!({
                "metadata": {"name": "s", "namespace": "ns", "annotations": annotations}, "data": data,
            }))
            .unwrap();
            let account = Some(&account).filter(|_| there);
            assert_eq!(plan(&secret, account, ca), want, "{annotations} {data}");
        }
    }
}
