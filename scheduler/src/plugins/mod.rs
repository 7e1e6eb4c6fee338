//! The default plugins, with Kubernetes' names, order and weights.

pub mod affinity;
pub mod node;
pub mod resources;
pub mod spread;

use crate::framework::Plugin;

/// All plugins, cheapest filters first.
pub fn default_plugins() -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(node::NodeUnschedulable),
        Box::new(node::NodeName),
        Box::new(node::TaintToleration),
        Box::new(node::NodeAffinity),
        Box::new(node::NodePorts),
        Box::new(resources::Fit),
        Box::new(resources::BalancedAllocation),
        Box::new(spread::PodTopologySpread),
        Box::new(affinity::InterPodAffinity),
        Box::new(node::ImageLocality),
    ]
}
