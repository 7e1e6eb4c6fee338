//! A pod's life: `plan` and `status` decide, `worker` carries out, `manager` starts and ends workers.

pub mod manager;
pub mod memory;
pub mod ops;
pub mod plan;
pub mod publish;
pub mod resize;
pub mod start;
pub mod status;
pub mod worker;
