//! Pods: they stop gracefully, and begin as Pending.

use serde_json::{Value, json};

use super::{Context, Strategy, common};

#[derive(Debug, Clone, Copy)]
pub struct Pod;

impl Strategy for Pod {
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_status(context, object, old);
    }

    /// What the delete asks for, else what the pod asks for. A pod that no kubelet runs, or that has ended, needs no
    /// time.
    fn grace_period(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = &object["spec"];
        let unscheduled = spec["nodeName"].as_str().is_none_or(str::is_empty);
        let ended = matches!(
            object["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        );
        if unscheduled || ended {
            return Some(0);
        }
        let period = requested
            .or_else(|| spec["terminationGracePeriodSeconds"].as_i64())
            .unwrap_or(0);
        Some(if period < 0 { 1 } else { period })
    }
}
