//! `metrics.k8s.io`.

use std::sync::Arc;

use apimachinery::resource::Resource;

pub fn resources() -> Vec<Arc<Resource>> {
    Vec::new()
}
