//! From stored objects to those of one version, and back.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::object;
use apimachinery::schema::Schema;
use apimachinery::status::{Result, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use super::webhook::Webhook;
use crate::registry::versions::Versions;

/// How a definition's versions become each other.
pub struct Family {
    pub kind: String,
    /// Of all versions, served or not, by `apiVersion`.
    pub schemas: HashMap<String, Arc<Schema>>,
    /// The `apiVersion` that is stored.
    pub stored: String,
    /// None: only the `apiVersion` differs.
    pub webhook: Option<Webhook>,
}

impl Family {
    /// The same objects in another version, without what that version does not know.
    pub async fn convert(&self, mut objects: Vec<Value>, to: &str) -> Result<Vec<Value>> {
        let kind = || format!("{}, Kind={}", self.stored, self.kind);
        for object in &objects {
            let from = object::api_version(object);
            if !self.schemas.contains_key(from) {
                let why = format!("request to convert CR from an invalid group/version: {from}");
                return Err(Status::internal(why));
            }
        }
        let foreign: Vec<usize> = (0..objects.len())
            .filter(|index| object::api_version(&objects[*index]) != to)
            .collect();
        if foreign.is_empty() {
            return Ok(objects);
        }
        match &self.webhook {
            None => {
                for index in &foreign {
                    objects[*index]["apiVersion"] = to.into();
                }
            }
            Some(webhook) => {
                let sent = foreign
                    .iter()
                    .map(|index| objects[*index].clone())
                    .collect();
                let from = foreign.first().map(|index| &objects[*index]);
                let shown = from.map_or_else(kind, |object| {
                    format!(
                        "{}, Kind={}",
                        object::api_version(object),
                        object::kind(object)
                    )
                });
                let converted = webhook.convert(sent, to, &shown).await?;
                for (index, object) in foreign.iter().zip(converted) {
                    objects[*index] = object;
                }
            }
        }
        if let Some(schema) = self.schemas.get(to) {
            for index in foreign {
                schema.prune(&mut objects[index]);
            }
        }
        Ok(objects)
    }
}

/// One version of a family.
pub struct Version {
    pub family: Arc<Family>,
    pub api_version: String,
}

impl Versions for Version {
    fn read(&self, mut stored: Vec<Value>) -> BoxFuture<'_, Result<Vec<Value>>> {
        async move {
            for object in &mut stored {
                // Stored long ago perhaps, under another schema of its version.
                if let Some(schema) = self.family.schemas.get(object::api_version(object)) {
                    schema.prune(object);
                    schema.apply_defaults(object);
                }
            }
            self.family.convert(stored, &self.api_version).await
        }
        .boxed()
    }

    fn write(&self, object: Value) -> BoxFuture<'_, Result<Value>> {
        async move {
            let family = &self.family;
            let mut converted = family.convert(vec![object], &family.stored).await?;
            let lost = || Status::internal("a conversion gave no object");
            converted.pop().ok_or_else(lost)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn versions_without_a_webhook() {
        let schema = |field: &str| {
            let schema = json!({"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"both": {"type": "string"}, field: {"type": "string", "default": "d"}}}}});
            Arc::new(Schema::from_open_api(&schema))
        };
        let family = Arc::new(Family {
            kind: "Foo".into(),
            schemas: [
                ("g.io/v1".to_owned(), schema("one")),
                ("g.io/v2".to_owned(), schema("two")),
            ]
            .into(),
            stored: "g.io/v1".into(),
            webhook: None,
        });
        let version = Version {
            family: family.clone(),
            api_version: "g.io/v2".into(),
        };
        let stored = |version: &str| json!({"apiVersion": version, "kind": "Foo", "metadata": {}, "spec": {"both": "x", "old": 1}});
        let read = version
            .read(vec![stored("g.io/v1"), stored("g.io/v2")])
            .await
            .unwrap();
        assert_eq!(
            read[0]["spec"],
            json!({"both": "x"}),
            "the default was that of the stored version"
        );
        assert_eq!(read[0]["apiVersion"], "g.io/v2");
        assert_eq!(read[1]["spec"], json!({"both": "x", "two": "d"}));
        let written = version.write(read[1].clone()).await.unwrap();
        assert_eq!(
            written,
            json!({"apiVersion": "g.io/v1", "kind": "Foo", "metadata": {}, "spec": {"both": "x"}})
        );
        assert!(version.read(vec![stored("g.io/v9")]).await.is_err());
    }
}
