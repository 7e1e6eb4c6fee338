//! Resources whose stored documents are not what is served: custom resources, which are converted between versions,
//! pruned and defaulted whenever they are read.

use apimachinery::status::{Result, Status};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;

use super::table::Kept;
use crate::codec;

/// From stored documents to those of one version, and back.
pub trait Versions: Send + Sync {
    /// Documents as this version shows them, in the order given.
    fn read(&self, stored: Vec<Value>) -> BoxFuture<'_, Result<Vec<Value>>>;

    /// A document of this version as it is stored.
    fn write(&self, object: Value) -> BoxFuture<'_, Result<Value>>;
}

/// A document as it is stored, and as it is answered: the same but for [`Versions`].
pub(super) struct Encoded {
    pub stored: Bytes,
    pub shown: Bytes,
}

impl Encoded {
    pub fn same(stored: Bytes) -> Self {
        Self {
            shown: stored.clone(),
            stored,
        }
    }
}

/// Stored bytes as they are served, but for the resource version.
pub async fn revive(versions: Option<&dyn Versions>, stored: Vec<Bytes>) -> Result<Vec<Bytes>> {
    let Some(versions) = versions else {
        return Ok(stored);
    };
    let documents = stored
        .iter()
        .map(|bytes| serde_json::from_slice(bytes))
        .collect::<serde_json::Result<Vec<Value>>>()
        .map_err(Status::internal)?;
    if documents.is_empty() {
        return Ok(Vec::new());
    }
    let read = versions.read(documents).await?;
    Ok(read.iter().map(codec::encode).collect())
}

impl Kept {
    /// One stored document as it is served.
    pub async fn shown(&self, key: &str, stored: &Bytes) -> Result<Bytes> {
        let mut revived = revive(self.versions.as_deref(), vec![stored.clone()]).await?;
        self.adopt(key, revived.pop().as_ref().unwrap_or(stored))
    }
}
