//! Zone and region of a node on its pods, so that what runs in them can read where it is. A binding's labels become those
//! of its pod.

use apimachinery::object;
use apimachinery::resource::Resource;
use apimachinery::status::Result;
use futures::future::BoxFuture;

use super::{Attributes, Operation, Plugin, cached, is_pod};
use crate::registry::Registry;
use crate::strategy::check::text;

const LABELS: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];
/// What nodes without such labels do not have in them.
const COMMON: &str = "topology.kubernetes.io/";

pub struct PodTopologyLabels;

impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        is_pod(resource)
            && matches!(
                (operation, subresource),
                (Operation::Create, "" | "binding")
            )
    }

    fn admit<'a>(
        &'a self,
        a: &'a mut Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let target = &a.object["target"];
            let node = match a.subresource {
                "binding" if text(target, "kind") == "Node" => text(target, "name"),
                // A pod; a binding has no such field.
                _ => text(&a.object["spec"], "nodeName"),
            };
            if node.is_empty() {
                return Ok(());
            }
            // Of a node that there is not, nothing is known.
            let Some(node) = cached(registry, "", "nodes", "", node).await? else {
                return Ok(());
            };
            if !std::str::from_utf8(&node.bytes).is_ok_and(|text| text.contains(COMMON)) {
                return Ok(());
            }
            let node = node.value();
            for label in LABELS {
                if let Some(value) = object::labels(&node).and_then(|labels| labels.get(label)) {
                    a.object["metadata"]["labels"][label] = value.clone();
                    a.touched = true;
                }
            }
            Ok(())
        })
    }
}
